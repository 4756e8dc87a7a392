"""The desktop of a cave in a browser: noVNC's page, and RFB over a WebSocket."""

from __future__ import annotations

from ghost_hub.desktop.door import VIEW, doors

__all__ = ["VIEW", "doors"]
