"""A backend without sockets: the same terminal loop, over a socket that is lent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ghost_mcp import GhostError
from ghost_mcp.cli.attach import Attachment
from ghost_mcp.cli.bridge import connected
from ghost_mcp.cli.programs import _reach

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Cli

FLOOD = 5_000_000


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    monkeypatch.setenv("GHOST_STATE_DIR", str(state_dir))


def test_a_flood_both_ways(named: str) -> None:
    """The local backend's asynchronous path stands for a backend that has no other."""
    sinks = {1: bytearray(), 2: bytearray()}
    with (
        open("/dev/zero", "rb") as zeros,
        connected(_reach(named, "local")) as sock,
    ):
        attached = Attachment(sock, sinks={1: sinks[1], 2: sinks[2]}, source=zeros.fileno())
        attached.greet(60, silent=pytest.fail)
        answer = attached.run({"argv": ["head", "-c", str(FLOOD)], "stdin": "open"})
    assert answer["exit_code"] == 0
    assert sinks[1] == bytes(FLOOD)


def test_what_connecting_raises_is_raised() -> None:
    with pytest.raises(GhostError, match="no such cave"), connected(_reach("nosuchcave", "local")):
        pytest.fail("there is no such cave")


def test_a_cave_that_ends_under_a_call(cli: Cli) -> None:
    cli("create", "mayfly", "--timeout", "3s")
    with (
        pytest.raises(GhostError, match="the cave ended"),
        connected(_reach("mayfly", "local")) as sock,
    ):
        attached = Attachment(sock, sinks={1: bytearray(), 2: bytearray()}, source=None)
        attached.greet(60, silent=pytest.fail)
        attached.run({"argv": ["sleep", "60"]})
    cli("destroy", "mayfly")
