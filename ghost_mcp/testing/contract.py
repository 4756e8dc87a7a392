# Every backend passes this suite, Ghost's own and others'. What may differ is declared in basis.py, and nothing else.
"""The contract of :class:`~ghost_mcp.backends.base.Backend` as an abstract pytest suite."""

from __future__ import annotations

import pytest

from ghost_mcp.testing.calls import Calls
from ghost_mcp.testing.egress import Egress
from ghost_mcp.testing.endings import Endings, Pools
from ghost_mcp.testing.files import Files
from ghost_mcp.testing.lifetimes import Creation, States
from ghost_mcp.testing.truth import Truth

__all__ = ["BackendContract"]


@pytest.mark.asyncio
class BackendContract(Creation, States, Endings, Pools, Calls, Files, Egress, Truth):
    """Subclass it as ``class TestX(BackendContract)`` and define ``make()``.

    Override the attributes and methods of :class:`~ghost_mcp.testing.basis.Basis` where the backend differs.
    The caves under test need a POSIX shell, coreutils, setsid and a Python (``python`` says how to call it).
    """
