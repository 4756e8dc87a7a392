"""Ports in a cave through a real warden: reached from outside, and offered to the inside."""

from __future__ import annotations

import os

import pytest

from ghost_mcp.warden import wire

from .conftest import Cave, Client, Conversation, Refused

PYTHON = "/usr/bin/python3"
SERVER = """
import os, socket, sys
kind, where, what = sys.argv[1:]
server = socket.socket(getattr(socket, kind))
server.bind(where if kind == "AF_UNIX" else (where, 0))
server.listen()
print(where if kind == "AF_UNIX" else server.getsockname()[1], flush=True)
while True:
    client, _ = server.accept()
    if what == "echo":
        while data := client.recv(65536):
            client.sendall(data)
        client.sendall(b"bye")
    elif what == "flood":
        try:
            while True: client.sendall(bytes(65536))
        except OSError as exc: print("ended", exc.errno, flush=True)
    elif what == "hold":
        client.recv(1)
        print("held", flush=True)
        kept = client
        continue
    elif what == "abort":
        import struct
        client.recv(1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
"""


def line_of(stream: Conversation) -> str:
    data = b""
    while b"\n" not in data:
        frame = stream.next()
        assert frame.kind == wire.DATA, frame
        data += frame.body
    line, _, rest = data.partition(b"\n")
    if rest:
        stream.frames.appendleft(wire.Frame(wire.DATA, stream.id, 1, {}, rest))
    return line.decode()


def serve(
    warden: Client, what: str, kind: str = "AF_INET", where: str = "127.0.0.1"
) -> tuple[Conversation, str]:
    """A server in the cave, and its port or path."""
    stream = warden.open("exec", argv=[PYTHON, "-c", SERVER, kind, where, what])
    return stream, line_of(stream)


def connect(warden: Client, **head: object) -> Conversation:
    stream = warden.open("dial", **head)
    assert stream.note() == {"connected": True}
    return stream


@pytest.fixture(autouse=True)
def loopback(warden: Client) -> None:
    """The cave's network has its loopback up."""
    assert warden.run("grep -q 127.0.0.1 /proc/net/fib_trie")[0] == 0


def ended(stream: Conversation) -> bytes:
    """All that comes until the other side has ended its direction, and then the whole stream."""
    data, eof = b"", False
    while (frame := stream.next()).kind != wire.CLOSE:
        if frame.kind == wire.DATA:
            assert not eof
            data += frame.body
        eof = eof or frame.kind == wire.EOF
    assert frame.head["ok"] is True
    assert eof
    return data


@pytest.mark.parametrize("size", [0, 5, 3 << 20])
def test_a_dialled_port_carries_both_ways(warden: Client, size: int) -> None:
    _, port = serve(warden, "echo")
    stream = connect(warden, port=int(port))
    data = os.urandom(size)
    stream.send(data)
    stream.eof()
    assert ended(stream) == data + b"bye"


def test_paths_and_ipv6(cave: Cave, warden: Client) -> None:
    _, path = serve(warden, "echo", "AF_UNIX", "/workspace/socket")
    _, port = serve(warden, "echo", "AF_INET6", "::1")
    for stream in (connect(warden, path=path), connect(warden, port=int(port), host="::1")):
        stream.send(b"hello")
        stream.eof()
        assert ended(stream) == b"hellobye"


def test_many_at_once_stay_apart(warden: Client) -> None:
    _, port = serve(warden, "hold")
    held = [connect(warden, port=int(port)) for _ in range(100)]
    _, echo = serve(warden, "echo")
    stream = connect(warden, port=int(echo))
    stream.send(b"through")
    stream.eof()
    assert ended(stream) == b"throughbye"
    for stream in held:
        stream.reset()


def test_a_flood_is_held_and_ends_with_its_stream(warden: Client) -> None:
    server, port = serve(warden, "flood")
    stream = connect(warden, port=int(port))
    stream.fill()
    assert warden.run("echo free")[1] == b"free\n"
    stream.reset()
    assert line_of(server).startswith("ended ")


def test_an_aborted_connection_ends_its_stream(warden: Client) -> None:
    _, port = serve(warden, "abort")
    stream = connect(warden, port=int(port))
    stream.send(b"x")
    while stream.next().kind != wire.CLOSE:
        stream.eof()


@pytest.mark.parametrize(
    ("head", "code"),
    [
        ({"port": 1}, "connection_refused"),
        ({"port": 0}, "invalid_argument"),
        ({"port": 70_000}, "invalid_argument"),
        ({"port": "x"}, "invalid_argument"),
        ({"port": None}, "invalid_argument"),
        ({}, "invalid_argument"),
        ({"port": 80, "host": "no such name"}, "invalid_argument"),
        ({"port": 80, "host": "x" * 300}, "invalid_argument"),
        ({"port": 80, "host": "192.0.2.1"}, "io_error"),
        ({"path": "/none"}, "file_not_found"),
        ({"path": "/workspace/" + "x" * 200}, "invalid_path|invalid_argument"),
        ({"path": "/workspace"}, "connection_refused"),
        ({"path": "a\0b"}, "invalid_path|invalid_argument"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_bad_dials_say_why(warden: Client, head: dict[str, object], code: str) -> None:
    with pytest.raises(Refused, match=code):
        warden.call("dial", **head)


def test_a_full_queue_is_said(cave: Cave, warden: Client) -> None:
    """A unix socket that nobody accepts from: two fit its queue of one, the third is told."""
    code = "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('s'); s.listen(1); print(1, flush=True); time.sleep(60)"
    server = warden.open("exec", argv=[PYTHON, "-c", code])
    assert line_of(server) == "1"
    held = [connect(warden, path="/workspace/s") for _ in range(2)]
    with pytest.raises(Refused, match="limit_exceeded"):
        warden.call("dial", path="/workspace/s")
    for stream in held:
        stream.reset()
