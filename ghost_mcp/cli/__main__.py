"""``python -m ghost_mcp.cli`` is ``ghost``."""

from __future__ import annotations

from ghost_mcp.cli import main

raise SystemExit(main())
