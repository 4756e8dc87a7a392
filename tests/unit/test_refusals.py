"""What the library answers to those who call it wrongly: a GhostError that says what was meant."""

from __future__ import annotations

from typing import Any

import pytest

from ghost_mcp import CaveSpec, Ghost
from ghost_mcp.backends.fake import FakeBackend
from ghost_mcp.errors import GhostError, InvalidArgument, NotFound


@pytest.mark.parametrize(
    ("given", "said", "hint"),
    [
        ({"memory": "1g"}, "unknown cave setting: memory", "limits"),
        ({"limits": {"memory": 1}}, "unknown limit: memory", "memory_bytes"),
        ({"network": {"rules": []}}, "unknown network setting: rules", "allow"),
        ({"project": {"path": "x"}}, "unknown project setting: path", "file"),
        ({"limits": {"memory_bytes": "1g"}}, "memory_bytes must be a number of at least 33554432", "1 << 30"),
        ({"timeout_s": "soon"}, "timeout_s must be a number of at least 0.1", ""),
    ],
)  # fmt: skip
def test_settings_that_are_none(given: dict[str, Any], said: str, hint: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as caught:
        CaveSpec.from_dict(given)
    assert hint in caught.value.hint


async def test_a_ghost_that_is_not_open_makes_nothing() -> None:
    backend = FakeBackend()
    with pytest.raises(GhostError, match="not open") as caught:
        await Ghost(backend=backend).create()
    assert "async with" in caught.value.hint
    async with Ghost(backend=backend) as ghost:
        assert await ghost.list() == []


async def test_a_name_is_no_spec_and_a_silent_port_is_named() -> None:
    async with Ghost(backend=FakeBackend()) as ghost:
        wrong: Any = "dev"
        with pytest.raises(InvalidArgument, match="not a CaveSpec: 'dev'") as caught:
            await ghost.create(wrong)
        assert "name='dev'" in caught.value.hint
        async with await ghost.create(ephemeral=True) as cave:
            with pytest.raises(NotFound, match="nothing listens on port 1"):
                async with cave.dial(1):
                    pass
