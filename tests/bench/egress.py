"""A cave's network, beside a bare proxy: what passes in a second, and what the way costs in time."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from ghost_mcp import CaveSpec, NetworkPolicy
from tests.bench.measure import Row, Samples, turns

if TYPE_CHECKING:
    from ghost_mcp import Cave
    from tests.bench.place import Place

__all__ = ["latency", "throughput"]

SIZE = 192 << 20
ROUNDS = 7
TRIPS = 200

# Answers each line that is a number with so many bytes.
SERVER = """
import asyncio
async def serve(reader, writer):
    piece = bytes(1 << 18)
    while line := await reader.readline():
        left = int(line)
        while left:
            data = piece[:left]
            writer.write(data)
            left -= len(data)
            await writer.drain()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
# The floor: the least that a proxy for CONNECT can be, with asyncio's own streams.
PROXY = """
import asyncio
async def copy(reader, writer):
    while data := await reader.read(1 << 18):
        writer.write(data)
        await writer.drain()
    writer.close()
async def serve(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    host, port = head.split()[1].decode().split(":")
    far_reader, far_writer = await asyncio.open_connection(host, int(port))
    writer.write(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
    await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
# Asks for bytes through a proxy, over and over in one tunnel or each time in a new one; prints milliseconds.
CLIENT = """
import os, socket, sys, time
port, size, times, anew = map(int, sys.argv[1:])
proxy = int(sys.argv[0]) if sys.argv[0].isdigit() else int(os.environ["http_proxy"].rpartition(":")[2])
room = bytearray(1 << 18)
def opened():
    sock = socket.create_connection(("127.0.0.1", proxy))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" % port)
    head = sock.recv(4096)
    assert b" 200 " in head, head
    return sock
sock = opened()
for _ in range(times):
    began = time.perf_counter()
    if anew:
        sock = opened()
    sock.sendall(b"%d\\n" % size)
    left = size
    while left:
        count = sock.recv_into(room)
        assert count
        left -= count
    print((time.perf_counter() - began) * 1e3)
"""


@asynccontextmanager
async def _running(source: str) -> AsyncIterator[int]:
    """A program of the above, ended with the block: the port it says."""
    process = await anyio.open_process([sys.executable, "-c", source])
    try:
        assert process.stdout is not None
        yield int(await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 20))
    finally:
        process.kill()
        await process.wait()
        await process.aclose()


Asked = Callable[[int, int, bool], Awaitable[list[float]]]


@asynccontextmanager
async def _both(here: Place) -> AsyncIterator[tuple[Asked, Asked]]:
    """The client in a cave through Ghost, and on this machine through the bare proxy."""
    async with _running(SERVER) as port, _running(PROXY) as proxy, here.ghost() as ghost:
        network = NetworkPolicy(mode="allow", allow=(f"127.0.0.1:{port}",))
        cave: Cave = await ghost.create(CaveSpec(ephemeral=True, network=network))

        def words(size: int, times: int, anew: bool) -> list[str]:
            return [str(port), str(size), str(times), str(int(anew))]

        async def ours(size: int, times: int, anew: bool) -> list[float]:
            source = CLIENT.replace("sys.argv[0]", repr("-"))
            done = await cave.exec(["python3", "-c", source, *words(size, times, anew)])
            assert done.exit_code == 0, done.stderr
            return [float(line) for line in done.stdout.split()]

        async def bare(size: int, times: int, anew: bool) -> list[float]:
            source = CLIENT.replace("sys.argv[0]", repr(str(proxy)))
            argv = ["/usr/bin/python3", "-c", source, *words(size, times, anew)]
            done = await anyio.run_process(argv)
            return [float(line) for line in done.stdout.split()]

        yield ours, bare
        await cave.destroy()


async def throughput(here: Place) -> list[Row]:
    async with _both(here) as (ours, bare):

        async def through_ghost() -> float:
            return (await ours(SIZE, 1, False))[0]

        async def through_bare() -> float:
            return (await bare(SIZE, 1, False))[0]

        found, floor = await turns(here.rounds(ROUNDS), through_ghost, through_bare)
    rate = SIZE / (1 << 20) / (found.p50 / 1e3)
    return [
        Row(
            what=f"{SIZE >> 20} MiB into a cave",
            unit="ms",
            samples=found,
            floor=floor,
            floor_what="a bare asyncio CONNECT proxy",
            goal_ratio=1 / 0.6,
            notes=(f"{rate:.0f} MiB/s",),
        )
    ]


async def latency(here: Place) -> list[Row]:
    rows = []
    async with _both(here) as (ours, bare):
        for what, anew in (
            ("a round trip in a tunnel", False),
            ("a new tunnel and a round trip", True),
        ):
            mine: list[float] = []
            theirs: list[float] = []
            for _ in range(here.rounds(5)):
                mine += await ours(1, TRIPS, anew)
                theirs += await bare(1, TRIPS, anew)
            floor = Samples(tuple(theirs))
            rows.append(
                Row(
                    what=f"{what}: added",
                    unit="ms",
                    samples=Samples(tuple(value - floor.p50 for value in mine)),
                    floor_what="",
                    goal_value=1.0,
                    notes=(f"a bare asyncio CONNECT proxy: p50 {floor.p50:.2f} ms",),
                )
            )
    return rows
