"""A socket as a byte stream: bytes and ends both ways, and what a cancellation or a close does to who waits."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import anyio
import pytest

from ghost_mcp.sockets import Wired

PATIENCE_S = 30.0
Pair = tuple[Wired, Wired]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    one, other = map(Wired, socket.socketpair())
    yield one, other
    await one.aclose()
    await other.aclose()


async def test_bytes_pass_both_ways_whole_and_each_way_ends_by_itself(pair: Pair) -> None:
    one, other = pair
    data = bytes(range(256)) * 40_000  # more than a socket holds

    async def all_of(stream: Wired) -> bytes:
        return b"".join([piece async for piece in stream])

    async def say(stream: Wired) -> None:
        await stream.send(data)
        await stream.send_eof()

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            for stream in pair:
                tasks.start_soon(say, stream)
            assert await all_of(one) == data
            assert await all_of(other) == data


async def test_a_cancellation_loses_nothing(pair: Pair) -> None:
    one, other = pair
    got = b""
    with anyio.fail_after(PATIENCE_S):
        for number in range(50):
            with anyio.move_on_after(0):
                got += await one.receive()
            await other.send(bytes([number]))
            with anyio.CancelScope() as scope:
                scope.cancel()
                got += await one.receive()
        while len(got) < 50:
            got += await one.receive()
    assert got == bytes(range(50))


async def test_who_waits_is_told_of_the_close(pair: Pair) -> None:
    one, other = pair
    told: list[Exception] = []

    async def wait() -> None:
        try:
            await one.receive()
        except (anyio.ClosedResourceError, anyio.EndOfStream) as exc:
            told.append(exc)

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await one.aclose()
    assert isinstance(told[0], anyio.ClosedResourceError)
    for act in (one.receive(), one.send(b"x"), one.send_eof()):
        with pytest.raises(anyio.ClosedResourceError):
            await act
    with pytest.raises(anyio.EndOfStream):
        await other.receive()
    with pytest.raises(anyio.BrokenResourceError):
        await other.send(b"x")
    await one.aclose()


async def test_the_next_socket_of_a_closed_ones_number_hears(pair: Pair) -> None:
    """One is closed under somebody who waits, and before that somebody knows it the number is another's."""
    one, _ = pair
    now = anyio.Event()
    heard: list[bytes] = []

    async def wait() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await one.receive()

    async def come_after() -> None:
        await now.wait()
        mine, far = map(Wired, socket.socketpair())
        async with mine, far, anyio.create_task_group() as both:
            both.start_soon(far.send, b"x")
            heard.append(await mine.receive())

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(come_after)
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            now.set()
            await one.aclose()
    assert heard == [b"x"]
