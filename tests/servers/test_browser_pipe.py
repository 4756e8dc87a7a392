"""What carries a browser's DevTools pipe leaves nothing open, however it ends."""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest
from anyio.abc import UNIXSocketStream

from ghost_mcp import Cave
from ghost_servers.browser.pipe import Pipe, _driver
from ghost_servers.browser.session import BrowserSession


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


async def test_a_driver_that_is_given_up_twice_while_it_starts() -> None:
    """It ends all the same: nothing of it goes on when nobody waits for it any more."""
    before = asyncio.all_tasks()

    def ours() -> set[asyncio.Task[object]]:
        return asyncio.all_tasks() - before

    def reads() -> bool:
        return any("PipeTransport.run" in repr(task.get_coro()) for task in ours())

    async def drive() -> None:
        async with _driver():
            raise AssertionError("it was given up")

    driving = asyncio.create_task(drive())
    async with asyncio.timeout(60):
        while not reads():  # its program runs, and has said nothing yet
            await asyncio.sleep(0)
        for _ in range(2):
            driving.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([driving])
        while left := ours():
            await asyncio.wait(left)


async def test_a_browser_that_is_closed_while_it_starts_is_nobodys_failure(cave: Cave) -> None:
    told: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: told.append(context))
    session = BrowserSession(cave)
    session._begin()
    await asyncio.sleep(0)
    await session.aclose()
    gc.collect()  # a failure that nobody heard of is told now
    await asyncio.sleep(0)
    assert told == []
