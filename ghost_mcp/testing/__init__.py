"""What the author of a backend tests it with. Needs pytest and pytest-asyncio.

::

    from ghost_mcp.testing import BackendContract

    class TestMine(BackendContract):
        def make(self) -> Backend:
            return MyBackend(...)
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "ghost_mcp.testing.basis",
    "ghost_mcp.testing.calls",
    "ghost_mcp.testing.endings",
    "ghost_mcp.testing.files",
    "ghost_mcp.testing.lifetimes",
    "ghost_mcp.testing.truth",
)

from ghost_mcp.testing.contract import BackendContract

__all__ = ["BackendContract"]
