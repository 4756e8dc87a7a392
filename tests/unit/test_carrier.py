"""A relay hands its own input and output to the warden; whoever sends descriptors otherwise has them closed."""

from __future__ import annotations

import _socket
import array
import os
import socket
from collections.abc import Iterator

import pytest

from ghost_mcp.warden import wire
from ghost_mcp.warden.carrier import HANDOVER, Carrier


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Carrier]]:
    theirs, ours = socket.socketpair()
    carrier = Carrier(_socket.socket(fileno=ours.detach()))
    with theirs:
        yield theirs, carrier
        carrier.close()


def _send(theirs: socket.socket, data: bytes, *fds: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())]
    theirs.sendmsg([data], rights if fds else [])


def test_what_is_handed_over_carries_the_link(ends: tuple[socket.socket, Carrier]) -> None:
    theirs, carrier = ends
    given, ours = os.pipe(), os.pipe()
    _send(theirs, HANDOVER, given[0], ours[1])
    with pytest.raises(BlockingIOError):
        carrier.receive(100)
    assert carrier.relayed
    assert not os.get_inheritable(carrier.reads)
    assert not os.get_inheritable(carrier.writes)
    with pytest.raises(BlockingIOError):  # nothing came yet, and nobody waits for it
        carrier.receive(100)
    os.write(given[1], b"from the hub")
    assert carrier.receive(100) == b"from the hub"
    assert carrier.send(b"from the warden") == 15
    assert os.read(ours[0], 100) == b"from the warden"
    os.close(given[1])
    assert carrier.receive(100) == b""
    for fd in (given[0], *ours):
        os.close(fd)


def test_a_socket_that_hands_nothing_over_is_what_it_is(
    ends: tuple[socket.socket, Carrier],
) -> None:
    theirs, carrier = ends
    for data in (b"first", b"second"):
        _send(theirs, data)
        assert carrier.receive(100) == data
    assert not carrier.relayed


@pytest.mark.parametrize(("data", "count"), [(b"x", 2), (HANDOVER, 1), (HANDOVER * 2, 2)])
def test_what_was_not_agreed_ends_the_link_and_is_closed(
    ends: tuple[socket.socket, Carrier], data: bytes, count: int
) -> None:
    theirs, carrier = ends
    reads, writes = os.pipe()
    _send(theirs, data, *([writes] * count))
    os.close(writes)
    assert carrier.receive(100) == b""
    assert not carrier.relayed
    assert os.read(reads, 1) == b""  # nobody holds the other end any more
    os.close(reads)


def test_descriptors_that_come_later_are_nobodys(ends: tuple[socket.socket, Carrier]) -> None:
    theirs, carrier = ends
    reads, writes = os.pipe()
    _send(theirs, b"first")
    assert carrier.receive(100) == b"first"
    _send(theirs, HANDOVER, reads, writes)
    assert carrier.receive(100) == HANDOVER
    os.close(writes)
    assert os.read(reads, 1) == b""
    os.close(reads)


def test_no_frame_begins_like_a_handover() -> None:
    assert wire.MAX_PAYLOAD < HANDOVER[0] << 24
    greeting = wire.Connection(hub=False).send_hello({"boot": 1})
    assert wire.payload_size(greeting[: wire.HEADER_SIZE]) == len(greeting) - wire.HEADER_SIZE
