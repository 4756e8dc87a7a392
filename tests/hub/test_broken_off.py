"""What a hub has opened is closed, also when it cannot begin, or when whoever asked goes in the middle."""

from __future__ import annotations

import gc
import socket
from pathlib import Path
from typing import Any, Self

import anyio
import pytest

from ghost_hub.hub import Hub
from ghost_hub.rest.download import _Streamed
from ghost_hub.serve import run
from ghost_hub.settings import HubSettings
from ghost_hub.tokens import Tokens
from ghost_mcp import Cave, Ghost
from ghost_mcp.backends.fake import FakeBackend
from ghost_mcp.errors import BackendUnavailable, InvalidArgument


async def test_a_hub_that_cannot_begin_ends_what_it_has_begun() -> None:
    ended: list[str] = []

    class Odd(FakeBackend):
        async def __aenter__(self) -> Self:
            ghost.spawn(work)
            await anyio.wait_all_tasks_blocked()
            raise ValueError("nobody foresaw this")

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("work")

    ghost = Ghost(backend=Odd())
    with pytest.raises(ValueError, match="nobody foresaw"):
        async with Hub(ghost=ghost):
            pass
    assert ended == ["work"]


def test_a_hub_that_finds_a_door_taken_closes_the_others(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = HubSettings(port=0, terminal_port=port, auth=False)
        with pytest.raises(BackendUnavailable):
            run(settings, Tokens(str(tmp_path)), lambda line: None)
    gc.collect()  # a socket that is still open says so now


def test_a_hub_without_its_certificate_closes_its_doors(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pem")
    settings = HubSettings(port=0, auth=False, tls_cert=missing, tls_key=missing)
    with pytest.raises(InvalidArgument):
        run(settings, Tokens(str(tmp_path)), lambda line: None)
    gc.collect()


async def test_a_download_whose_client_has_gone_reads_no_further(cave: Cave) -> None:
    await cave.write("big", bytes(1 << 20))
    async with cave.reading("big", count=0) as (about, _):
        pass
    answer = _Streamed(cave, about, (0, about.size), 200, {}, "text/plain")
    link = await cave.ghost.link(cave.id)
    with anyio.CancelScope() as gone:

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                gone.cancel()
                await anyio.sleep_forever()

        await answer.stream_response(send)
    assert gone.cancelled_caught
    assert link._streams == {}
