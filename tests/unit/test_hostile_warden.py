"""A warden that answers what no warden does: it hurts its own cave's link, and nothing beside it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest

from ghost_mcp.errors import GhostError, ProtocolFailure
from ghost_mcp.secrets.masker import Masker
from ghost_mcp.sockets import Wired
from ghost_mcp.warden import wire
from ghost_mcp.warden.link import Link, configure
from ghost_mcp.warden.linkstream import LinkStream

PATIENCE_S = 30


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@asynccontextmanager
async def answering(
    head: dict[str, Any], *, opens: dict[str, Any] | None = None
) -> AsyncIterator[Link]:
    """A link, of a cave with a secret, whose far end answers every operation so; before that it may open a stream."""
    ours, theirs = (Wired(one) for one in socket.socketpair())

    async def warden() -> None:
        conn = wire.Connection(hub=False)
        await theirs.send(conn.send_hello({}))
        while True:
            try:
                frames = conn.receive(await theirs.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return
            for frame in frames:
                if frame.kind == wire.OPEN:
                    before = b"" if opens is None else conn.open(opens)[1]
                    await theirs.send(before + conn.send_close(frame.stream, head, b"x"))

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(warden)
            link = await Link.open(ours, tasks, name="hostile")
            link.masker = Masker({"KEY": b"s3cret-of-a-test"})
            yield link
            await link.aclose()
        await theirs.aclose()


@pytest.mark.parametrize(
    "odd",
    [
        {"offset": "x"},
        {"offset": None, "size": []},
        {"output": {"1": {"head": -1, "from": {}}}},
        {"output": {"1": 7}, "running": "yes"},
        {"path": 3, "data": [None]},
    ],
    ids=str,
)
@pytest.mark.parametrize("op", ["read", "exec", "output", "search"])
async def test_an_odd_answer_is_taken_or_refused(op: str, odd: dict[str, Any]) -> None:
    async with answering({"ok": True, **odd}) as link:
        try:
            await link.call(op, {"count": 1})
        except GhostError as exc:
            assert exc.code != "internal"


@pytest.mark.parametrize("depth", [wire.DEEPEST + 1, 300, 700])
@pytest.mark.parametrize("ok", [True, False])
async def test_a_deep_answer_ends_the_link(ok: bool, depth: int) -> None:
    async with answering({"ok": ok, "code": "conflict", "data": {"x": nested(depth)}}) as link:
        with pytest.raises(ProtocolFailure):
            await link.call("stat", {})
        assert not link.alive


async def test_what_nobody_foresaw_ends_one_link_and_not_who_reads_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def odd(stream: LinkStream, head: dict[str, Any]) -> None:
        raise ZeroDivisionError(head["said"])

    async with answering({"ok": True}, opens={"said": "hostile words"}) as link:
        link.on_accept = odd
        with pytest.raises(ProtocolFailure):
            await link.call("stat", {})
    assert "ZeroDivisionError" in caplog.text
    assert "hostile words" not in caplog.text


@pytest.mark.parametrize("configured", [False, True])
async def test_a_stream_before_anybody_asks_for_one_is_a_failure_of_the_cave(
    configured: bool,
) -> None:
    """In one breath with the greeting: whoever opens the link is told, as of any other cave that breaks the protocol."""
    ours, theirs = (Wired(one) for one in socket.socketpair())
    conn = wire.Connection(hub=False)
    await theirs.send(conn.send_hello({}) + conn.open({"op": "accepted"})[1])
    async with anyio.create_task_group() as tasks, ours, theirs:
        with anyio.fail_after(PATIENCE_S), pytest.raises(ProtocolFailure):
            if configured:
                await configure(ours, {})
            else:
                await Link.open(ours, tasks, name="hostile")


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, wire.Connection, Wired]]:
    """A link, and its far end for the test to play: the warden has greeted, and reads what the test reads."""
    ours, theirs = (Wired(one) for one in socket.socketpair())
    conn = wire.Connection(hub=False)
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            await theirs.send(conn.send_hello({}))
            link = await Link.open(ours, tasks, name="hostile")
            yield link, conn, theirs
            tasks.cancel_scope.cancel()
        await theirs.aclose()


async def sending(link: Link) -> None:
    with suppress(GhostError):
        async with link.stream("sink") as stream:
            while True:
                await stream.send(bytes(wire.WINDOW))


async def test_pings_of_a_warden_that_does_not_read_are_not_heaped_up() -> None:
    async with linked() as (link, conn, theirs), anyio.create_task_group() as tasks:
        tasks.start_soon(
            sending, link
        )  # whoever sends waits for the warden, which holds nobody else up
        while not link._sending:
            await anyio.sleep(0.01)
        flood = conn.send_ping(b"x" * 64) * 1_000
        with suppress(anyio.BrokenResourceError):
            while link.alive:
                await theirs.send(flood)
        assert isinstance(link._failure, ProtocolFailure)
        assert len(link._outgoing) < 2_000
        tasks.cancel_scope.cancel()


async def test_a_warden_that_is_slow_may_be_sent_to_by_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each waits for a while, and together they always wait: that is no warden which does not read."""
    patience_s = 3.0
    monkeypatch.setattr("ghost_mcp.warden.link.STALL_S", patience_s)
    async with linked() as (link, conn, theirs), anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(sending, link)
        until = anyio.current_time() + patience_s + 1
        while anyio.current_time() < until and link.alive:
            taken = conn.receive(await theirs.receive())
            given = [
                conn.consumed(one.stream, len(one.body)) for one in taken if one.kind == wire.DATA
            ]
            await theirs.send(b"".join(given)) if any(given) else None
            await anyio.sleep(0.01)
        assert link.alive
        tasks.cancel_scope.cancel()
