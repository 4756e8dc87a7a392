"""The fake backend keeps the contract, and is never taken for a real one."""

from __future__ import annotations

import pytest

from ghost_mcp.backends.base import Backend
from ghost_mcp.backends.fake import FakeBackend
from ghost_mcp.testing import BackendContract


class TestFake(BackendContract):
    persistent = False
    can_pause = False
    measures = frozenset()
    refused = (
        {"network": {"mode": "allow", "allow": ["example.org"]}},
        {"image": "/"},
        {"workspace": "/tmp"},
        {"mounts": {"/data": "/tmp"}},
    )

    @pytest.fixture(autouse=True)
    def _engine(self) -> None:
        self.first = FakeBackend()

    def make(self) -> Backend:
        return FakeBackend(beside=self.first)
