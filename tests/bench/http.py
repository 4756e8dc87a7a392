"""The hub over HTTP, by a raw socket, in turns with a bare Starlette application on the same kind of server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread
import psutil

from tests.bench.measure import Row, Samples, turns
from tests.bench.place import Place

__all__ = ["Line", "Server", "both", "download", "idle", "mcp", "rest", "throughput"]

MEGABYTES = 200
CALLERS = 16
IDLE = 1000
ABOUT = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
FLOOR = "bare Starlette JSON route"


@dataclass(frozen=True, slots=True)
class Server:
    """One process that serves, and its token."""

    port: int
    token: str
    process: psutil.Process

    def dial(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def request(self, method: str, path: str, body: Any = None, *headers: str) -> bytes:
        """A whole request, ready to be sent."""
        raw = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            f"Authorization: Bearer {self.token}",
            "Content-Type: application/json",
            "Accept: application/json, text/event-stream",
            f"Content-Length: {len(raw)}",
            *headers,
        ]
        return "\r\n".join([*lines, "", ""]).encode() + raw

    def cpu_s(self) -> float:
        used = self.process.cpu_times()
        return float(used.user + used.system)


@contextmanager
def _server(which: str, place: Place) -> Iterator[Server]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.http_server", which],
        stdout=subprocess.PIPE,
        text=True,
        env=place.environment,
    ) as process:
        try:
            assert process.stdout is not None
            token = process.stdout.readline().strip()
            server = Server(int(process.stdout.readline()), token, psutil.Process(process.pid))
            yield server
            if which == "hub":
                with server.dial() as sock:
                    sock.sendall(server.request("DELETE", "/v1/caves/default"))
                    sock.recv(1 << 16)
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def both(place: Place) -> Iterator[tuple[Server, Server]]:
    """A served hub, and the floor beside it."""
    with ExitStack() as stack:
        yield (
            stack.enter_context(_server("hub", place)),
            stack.enter_context(_server("floor", place)),
        )


class Line:
    """One connection that asks the same again and again."""

    def __init__(self, server: Server, request: bytes) -> None:
        self._sock, self._request = server.dial(), request

    def ask(self) -> bytes:
        self._sock.sendall(self._request)
        return _answer(self._sock)

    def timed(self) -> Callable[[], Awaitable[float]]:
        async def side() -> float:
            started = time.perf_counter()
            self.ask()
            return (time.perf_counter() - started) * 1e3

        return side


def _answer(sock: socket.socket) -> bytes:
    """The body. Raises OSError for what is no success."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise OSError(f"{head[:200]!r} {body[:300]!r}")
    lower = head.lower()
    if b"content-length:" in lower:
        size = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < size:
            body += _more(sock)
    else:
        while not body.endswith(b"0\r\n\r\n"):
            body += _more(sock)
    return body


def _more(sock: socket.socket) -> bytes:
    data = sock.recv(1 << 16)
    if not data:
        raise OSError("the server closed the connection")
    return data


def _mcp(server: Server, method: str, **params: Any) -> bytes:
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": ABOUT}}
    headers = ["MCP-Protocol-Version: 2026-07-28", f"Mcp-Method: {method}"]
    if "name" in params:
        headers.append(f"Mcp-Name: {params['name']}")
    return server.request("POST", "/mcp", message, *headers)


def _call(server: Server) -> bytes:
    return _mcp(server, "tools/call", name="test_echo", arguments={"text": "x"})


def _floor(server: Server, path: str = "/echo") -> bytes:
    return server.request("POST", path, {"params": {"text": "x"}})


async def mcp(place: Place) -> list[Row]:
    """A no-op tool and the list of tools over Streamable HTTP, modern era."""
    with both(place) as (hub, bare):
        line, floor = Line(hub, _call(hub)), Line(bare, _floor(bare))
        assert b'"result":"x"' in line.ask().replace(b" ", b"")
        for _ in range(200):
            line.ask()
            floor.ask()
        rounds = place.rounds(40)
        before = hub.cpu_s()
        samples, floors = await turns(rounds, line.timed(), floor.timed(), block=25)
        cpu_ms = (hub.cpu_s() - before) / (len(samples.values) + 1) * 1e3
        listing, bare_list = Line(hub, _mcp(hub, "tools/list")), Line(bare, _floor(bare, "/tools"))
        assert b"shell_exec" in listing.ask()
        lists, list_floors = await turns(rounds, listing.timed(), bare_list.timed(), block=10)
    return [
        Row(
            what="no-op tool over /mcp",
            unit="ms",
            samples=samples,
            floor=floors,
            floor_what=FLOOR,
            goal_ratio=2.6,
        ),
        Row(
            what="CPU of that call, in the hub",
            unit="ms",
            samples=Samples((cpu_ms,)),
            goal_value=2.0,
        ),
        Row(
            what="tools/list over /mcp",
            unit="ms",
            samples=lists,
            floor=list_floors,
            floor_what="the same list by a bare Starlette JSON route",
            goal_ratio=1.5,
        ),
    ]


async def rest(place: Place) -> list[Row]:
    """The same no-op by REST."""
    with both(place) as (hub, bare):
        body = {"tool": "test_echo", "arguments": {"text": "x"}}
        line = Line(hub, hub.request("POST", "/mcp/execute", body))
        floor = Line(bare, _floor(bare))
        for _ in range(200):
            line.ask()
            floor.ask()
        samples, floors = await turns(place.rounds(40), line.timed(), floor.timed(), block=25)
    return [
        Row(
            what="no-op tool by REST",
            unit="ms",
            samples=samples,
            floor=floors,
            floor_what=FLOOR,
            goal_ratio=2.0,
        )
    ]


async def throughput(place: Place) -> list[Row]:
    """16 callers at once: milliseconds for a call, all of them together, so that less is better as everywhere."""
    calls = place.rounds(60)

    def crowd(server: Server, request: bytes) -> Callable[[], Awaitable[float]]:
        lines = [Line(server, request) for _ in range(CALLERS)]

        def work(line: Line) -> None:
            for _ in range(calls):
                line.ask()

        def run() -> float:
            threads = [threading.Thread(target=work, args=(line,)) for line in lines]
            started = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return (time.perf_counter() - started) * 1e3 / (calls * CALLERS)

        async def side() -> float:
            return await anyio.to_thread.run_sync(run)

        return side

    with both(place) as (hub, bare):
        Line(hub, _call(hub)).ask()
        samples, floors = await turns(
            place.rounds(5), crowd(hub, _call(hub)), crowd(bare, _floor(bare))
        )
    return [
        Row(
            what=f"a call over /mcp, {CALLERS} callers",
            unit="ms",
            samples=samples,
            floor=floors,
            floor_what=f"{FLOOR}; 40 % of its throughput is 2.5 times its time",
            goal_ratio=2.5,
        )
    ]


async def download(place: Place) -> list[Row]:
    """A file of 200 MB out of a cave, and what the hub grows by."""
    with both(place) as (hub, bare):
        size = MEGABYTES << 20
        made = Line(
            hub,
            hub.request(
                "POST", "/v1/shell/exec", {"command": f"head -c {size} /dev/urandom > big"}
            ),
        )
        made.ask()
        folder = Path(place.environment["GHOST_STATE_DIR"])
        copy = folder / "big"
        with copy.open("wb") as file:
            for _ in range(MEGABYTES):
                file.write(bytes(1 << 20))
        before, peak = hub.process.memory_info().rss, 0

        def fetch(server: Server, path: str) -> Callable[[], Awaitable[float]]:
            request = server.request("GET", path)

            def run() -> float:
                nonlocal peak
                with server.dial() as sock:
                    started = time.perf_counter()
                    sock.sendall(request)
                    buffer, got = bytearray(1 << 20), 0
                    while got < size:
                        count = sock.recv_into(buffer)
                        if not count:
                            raise OSError(f"the answer broke off after {got} bytes")
                        got += count
                    spent = (time.perf_counter() - started) * 1e3
                peak = max(peak, hub.process.memory_info().rss)
                return spent

            async def side() -> float:
                return await anyio.to_thread.run_sync(run)

            return side

        samples, floors = await turns(
            place.rounds(5),
            fetch(hub, "/v1/filesystem/download?path=big"),
            fetch(bare, f"/file?path={copy}"),
        )
        copy.unlink()
    return [
        Row(what=f"download {MEGABYTES} MB", unit="ms", samples=samples, floor=floors, floor_what="FileResponse of the same size", goal_ratio=1.5),
        Row(what="what the hub grows by meanwhile", unit="MB", samples=Samples(((peak - before) / 2**20,)), goal_value=32),
    ]  # fmt: skip


async def idle(place: Place) -> list[Row]:
    """Sessions of the older protocol that nobody uses, and SSE clients that only listen."""
    greeting = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "bench", "version": "1"},
        },
    }
    with _server("hub", place) as hub:
        line = Line(hub, hub.request("POST", "/mcp", greeting))
        sessions = _grown(hub, f"an idle session, of {IDLE}", line.ask)
    with _server("hub", place) as hub, ExitStack() as stack:
        request = hub.request("GET", "/sse")

        def listen() -> None:
            sock = stack.enter_context(hub.dial())
            sock.sendall(request)
            while b"session_id=" not in sock.recv(1 << 16):
                pass

        listeners = _grown(hub, f"an open SSE client, of {IDLE}", listen)
    return [sessions, listeners]


def _grown(hub: Server, what: str, add: Callable[[], object]) -> Row:
    """What the hub grows by for each of IDLE that are added, once it has had some."""
    for _ in range(20):
        add()
    before = hub.process.memory_info().rss
    for _ in range(IDLE):
        add()
    grown = (hub.process.memory_info().rss - before) / IDLE / 1024
    return Row(what=what, unit="KB", samples=Samples((grown,)), goal_value=64)
