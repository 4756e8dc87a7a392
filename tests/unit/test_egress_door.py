"""The cave's way out through a real warden: who serves it, and what programs meet when nobody does."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator

import pytest

from ghost_mcp.warden import wire

from .conftest import Cave, Client, Conversation, Refused

ASK = 'exec 3<>"/dev/tcp/127.0.0.1/${http_proxy##*:}"; '


@pytest.fixture
def opened(warden: Client) -> Client:
    """A warden whose cave has a way out."""
    warden.call("configure", egress=True)
    return warden


@pytest.fixture
def second(cave: Cave, opened: Client) -> Iterator[Client]:
    """Another hub."""
    client = Client(cave.path)
    yield client
    client.close()


def attach(client: Client) -> Conversation:
    stream = client.open("egress")
    assert stream.note()["port"] > 0
    return stream


def taken(client: Client) -> Conversation:
    """The next connection that comes to a hub."""
    while not client.accepted:
        client.read()
    incoming = client.accepted.popleft()
    assert incoming.note() == {"connected": True}
    return incoming


def text(stream: Conversation) -> bytes:
    """All that comes until the other side ends."""
    pieces: deque[bytes] = deque()
    while (frame := stream.next()).kind == wire.DATA:
        pieces.append(frame.body)
    return b"".join(pieces)


def test_a_cave_without_a_network_has_no_way_out(warden: Client) -> None:
    assert "egress" not in warden.hello
    with pytest.raises(Refused, match="unsupported"):
        warden.call("egress")
    assert warden.run("env")[1].lower().count(b"proxy") == 0


def test_programs_are_told_of_it_and_what_the_maker_sets_wins(warden: Client) -> None:
    warden.call("configure", egress=True, direct=["db", "cache"], env={"https_proxy": "mine"})
    code, found, _ = warden.run("env | grep -i proxy | sort")
    assert code == 0
    lines = dict(line.split("=", 1) for line in found.decode().splitlines())
    assert lines.pop("https_proxy") == "mine"
    assert lines.pop("NODE_USE_ENV_PROXY") == "1"
    assert lines["NO_PROXY"] == lines["no_proxy"] == "localhost,127.0.0.1,::1,db,cache"
    names = ("http_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    assert len({lines[name] for name in names}) == 1


def test_nobody_attached_is_said_in_a_readable_way(opened: Client) -> None:
    began = time.monotonic()
    code, said, _ = opened.run(f"{ASK} echo hello >&3; cat <&3")
    assert code == 0
    assert said.startswith(b"HTTP/1.1 503 No Ghost is attached")
    assert b"\r\n\r\nNo Ghost is attached to this cave's network now." in said
    assert time.monotonic() - began < 60
    # One that neither reads nor goes is let go, and holds nothing up.
    assert opened.run(f"{ASK} sleep 3; echo late")[1] == b"late\n"


def test_a_connection_comes_to_the_one_attached_and_both_ways_end_by_themselves(
    opened: Client,
) -> None:
    attach(opened)
    data = os.urandom(3 << 20)
    client = opened.open("exec", line=f"{ASK} cat <&3 | sha256sum")
    incoming = taken(opened)
    incoming.send(data)
    incoming.eof()
    assert text(client).split()[0].decode() == hashlib.sha256(data).hexdigest()
    while incoming.next().kind != wire.RESET:
        pass


def test_the_longest_attached_serves_and_the_next_takes_over(
    cave: Cave, opened: Client, second: Client
) -> None:
    assert second.hello["egress"] is False
    first = attach(opened)
    third = Client(cave.path)
    assert third.hello["egress"] is True
    third.close()
    attach(second)
    line = f"{ASK} cat <&3"
    running = opened.open("exec", line=line)
    one = taken(opened)
    one.send(b"first")
    one.eof()
    assert text(running) == b"first"
    first.reset()
    running = opened.open("exec", line=line)
    two = taken(second)
    two.send(b"second")
    two.eof()
    assert text(running) == b"second"
    second.close()
    assert b"503" in opened.run(f"{ASK} cat <&3")[1]


def test_serving_a_cave_does_not_keep_it_from_being_idle(warden: Client) -> None:
    warden.call("configure", egress=True, idle_s=0.5)
    attach(warden)
    with pytest.raises(ConnectionError):
        while True:
            warden.read()
