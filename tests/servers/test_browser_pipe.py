"""What carries a browser's DevTools pipe leaves nothing open, however it ends."""

from __future__ import annotations

import asyncio
import socket

import pytest
from anyio.abc import UNIXSocketStream

from ghost_mcp import Cave
from ghost_servers.browser.pipe import Pipe


@pytest.mark.parametrize("passes", range(5))
async def test_one_that_is_ended_while_it_ends(cave: Cave, passes: int) -> None:
    """``passes``: how many turns of the loop lie between the two."""
    bridge, line = socket.socketpair()
    (driver, commands), (answers, told) = socket.socketpair(), socket.socketpair()
    with bridge, driver, told:
        socket.send_fds(bridge, [b"\0"], [commands.fileno(), answers.fileno()])
        commands.close()
        answers.close()
        async with (
            cave.process(["sleep", "60"], devtools=True) as process,
            Pipe(process, cave) as pipe,
        ):
            await pipe.connect(await UNIXSocketStream.from_socket(line))
            pipe.abort()
            for _ in range(passes):
                await asyncio.sleep(0)
        for end in (bridge, driver, told):
            assert end.recv(1) == b""
