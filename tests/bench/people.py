"""What people feel: a key's echo in a terminal, and a preview, in turns with the least that each could be."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

from tests.bench.http import Line, Server, both
from tests.bench.measure import Row, Samples, turns
from tests.bench.place import Place

__all__ = ["preview", "terminal"]

UPSTREAM = Path(__file__).parents[1] / "hub/upstream.py"
MEGABYTES = 100
PORT = 8000
WAIT_S = 30
FLOOR = "a plain httpx streaming proxy"


async def terminal(place: Place) -> list[Row]:
    """A key and its echo, by the terminal's own line discipline, over a WebSocket each."""
    with (
        both(place) as (hub, bare),
        _pty(hub, "/v1/shell/ws?mode=raw") as ours,
        _pty(bare, "/pty") as least,
    ):
        ours.send(b"exec cat\n")
        _drained(ours)
        samples, floors = await turns(place.rounds(20), _key(ours), _key(least), block=25)
    return [
        Row(
            what="a key's echo in a terminal",
            unit="ms",
            samples=samples,
            floor=floors,
            floor_what="a bare PTY over a bare Starlette WebSocket",
            goal_ratio=2.0,
        )
    ]


@contextmanager
def _pty(server: Server, path: str) -> Iterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {server.token}"}
    with connect(
        f"ws://127.0.0.1:{server.port}{path}", additional_headers=headers, compression=None
    ) as opened:
        yield opened


def _drained(opened: ClientConnection) -> None:
    """Until the shell has gone, and has said its last."""
    try:
        while True:
            opened.recv(timeout=1)
    except TimeoutError:
        return


def _key(opened: ClientConnection) -> Callable[[], Awaitable[float]]:
    async def side() -> float:
        started = time.perf_counter()
        opened.send(b"x")
        while b"x" not in bytes(opened.recv(timeout=WAIT_S, decode=False)):
            pass
        return (time.perf_counter() - started) * 1e3

    return side


async def preview(place: Place) -> list[Row]:
    """The same server in a cave, seen at a preview's host, and on this machine behind the least of proxies."""
    with both(place) as (hub, bare), _served() as port:
        _started(hub)
        host = f"Host: {PORT}--default.caves.localhost:{hub.port}"
        samples, floors = await turns(
            place.rounds(6),
            _fetch(hub, f"/bytes/{MEGABYTES << 20}", host),
            _fetch(bare, f"/proxy/{port}/bytes/{MEGABYTES << 20}"),
        )
        itself = Server(port, "-", bare.process)
        firsts, behind, direct = await turns(
            place.rounds(50),
            _fetch(hub, "/bytes/1", host),
            _fetch(bare, f"/proxy/{port}/bytes/1"),
            _fetch(itself, "/bytes/1"),
        )
    more = Samples(tuple(value - direct.p50 for value in firsts.values))
    return [
        Row(
            what=f"preview of {MEGABYTES} MB",
            unit="ms",
            samples=samples,
            floor=floors,
            floor_what=f"{FLOOR}; half of its throughput is twice its time",
            goal_ratio=2.0,
        ),
        Row(
            what="preview, first byte, beyond the app's own",
            unit="ms",
            samples=more,
            goal_value=3.0,
            notes=(f"the app itself: p50 {direct.p50:.2f} ms; {FLOOR}: p50 {behind.p50:.2f} ms",),
        ),
    ]


@contextmanager
def _served() -> Iterator[int]:
    """The server on this machine, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with subprocess.Popen([sys.executable, UPSTREAM, str(port), "0"]) as process:
        try:
            _awaited(port)
            yield port
        finally:
            process.kill()


def _awaited(port: int) -> None:
    until = time.monotonic() + WAIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _started(hub: Server) -> None:
    """The server in the default cave, whose first request waits for it."""
    written = {"path": "up.py", "content": UPSTREAM.read_text()}
    Line(hub, hub.request("POST", "/v1/file/write", written)).ask()
    line = {"command": f"python3 up.py {PORT} 0", "background": True}
    Line(hub, hub.request("POST", "/v1/shell/exec", line)).ask()


def _fetch(server: Server, path: str, host: str = "") -> Callable[[], Awaitable[float]]:
    """Milliseconds from the request to the end of the answer, each over a connection of its own."""
    named = host or f"Host: 127.0.0.1:{server.port}"
    head = [f"GET {path} HTTP/1.1", named, f"Authorization: Bearer {server.token}"]
    request = "\r\n".join([*head, "Connection: close", "", ""]).encode()
    size = int(path.rpartition("/")[2])

    async def side() -> float:
        buffer, got = bytearray(1 << 20), 0
        with server.dial() as sock:
            started = time.perf_counter()
            sock.sendall(request)
            while count := sock.recv_into(buffer):
                got += count
            spent = (time.perf_counter() - started) * 1e3
        if got < size:
            raise OSError(f"{json.dumps(path)} broke off after {got} bytes")
        return spent

    return side
