"""The terminal loop against wardens that misbehave: what comes from a cave is hostile."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from threading import Thread

import pytest

from ghost_mcp.cli import attach
from ghost_mcp.cli.attach import Attachment
from ghost_mcp.errors import CaveGone, GhostError, LimitExceeded, ProtocolFailure, TimedOut
from ghost_mcp.warden import wire


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end, and the warden's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(60)
        yield ours, theirs


def attached(sock: socket.socket) -> Attachment:
    return Attachment(sock, sinks={1: bytearray(), 2: bytearray()}, source=None)


def never() -> None:
    pytest.fail("it was not silent")


def opened(theirs: socket.socket) -> tuple[wire.Connection, int]:
    """A warden that has greeted and got the question; the stream it came on."""
    warden = wire.Connection(hub=False)
    theirs.sendall(warden.send_hello({}))
    while True:
        for frame in warden.receive(theirs.recv(65536)):
            if frame.kind == wire.OPEN:
                return warden, frame.stream


def test_garbage_is_no_hello(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ProtocolFailure):
        attached(ours).greet(1, silent=never)


def test_an_end_is_no_hello(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.close()
    with pytest.raises(CaveGone):
        attached(ours).greet(1, silent=never)


def test_silence_is_asked_about_once_and_ends(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "HELLO_S", 0.3)
    asked: list[int] = []
    with pytest.raises(TimedOut):
        attached(ends[0]).greet(0.1, silent=lambda: asked.append(1))
    assert asked == [1]
    ends[1].setblocking(False)
    with pytest.raises(BlockingIOError):  # nothing was asked of a warden that may wake up later
        ends[1].recv(1)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            lambda w, s: w.send_close(s, {"ok": False, "code": "no_space", "message": "full"}),
            LimitExceeded,
        ),
        (
            lambda w, s: w.send_close(s, {"code": "x" * 999, "message": "y" * 60_000}),
            ProtocolFailure,
        ),
        (lambda w, s: w.send_close(s, {"ok": True, "exit_code": "0"}), ProtocolFailure),
        (lambda w, s: w.send_reset(s), CaveGone),
        (lambda w, s: wire._HEADER.pack(1 << 30, s, wire.DATA, 1), ProtocolFailure),
        (lambda w, s: wire._HEADER.pack(0, s + 2, wire.EOF, 0), ProtocolFailure),
        (lambda w, s: w.send_data(s, b"x", 9) + w.send_reset(s), CaveGone),
    ],
)
def test_a_bad_answer(
    ends: tuple[socket.socket, socket.socket], answer: object, error: type[GhostError]
) -> None:
    ours, theirs = ends

    def misbehave() -> None:
        warden, stream = opened(theirs)
        assert callable(answer)
        theirs.sendall(answer(warden, stream))

    thread = Thread(target=misbehave)
    thread.start()
    try:
        attachment = attached(ours)
        attachment.greet(60, silent=never)
        with pytest.raises(error) as caught:
            attachment.run({"argv": ["true"]})
        assert len(caught.value.message) <= 2000
    finally:
        thread.join(60)


def test_a_ping_is_answered_while_a_program_runs(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    pongs: list[bytes] = []

    def ping() -> None:
        warden, stream = opened(theirs)
        theirs.sendall(warden.send_ping(b"there?"))
        while not pongs:
            frames = warden.receive(theirs.recv(65536))
            pongs.extend(frame.body for frame in frames if frame.kind == wire.PONG)
        head = {"ok": True, "exit_code": 0, "timed_out": False, "duration_s": 0.1}
        theirs.sendall(warden.send_close(stream, head))

    thread = Thread(target=ping)
    thread.start()
    attachment = attached(ours)
    attachment.greet(60, silent=never)
    assert attachment.run({"argv": ["true"]})["exit_code"] == 0
    thread.join(60)
    assert pongs == [b"there?"]
