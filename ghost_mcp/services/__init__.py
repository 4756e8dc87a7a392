"""Services: programs in a cave that are started on first use, restarted, and stopped when idle."""

from __future__ import annotations

from ghost_mcp.services.declared import Declared, declared
from ghost_mcp.services.service import Service, ServiceStatus, running

__all__ = ["Declared", "Service", "ServiceStatus", "declared", "running"]
