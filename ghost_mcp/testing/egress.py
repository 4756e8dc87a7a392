"""The part of the contract that holds a cave to its network policy: what is listed is reached, by a proxy only."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from ghost_mcp.errors import Conflict
from ghost_mcp.ghost import Ghost
from ghost_mcp.testing.basis import Basis, until

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave

__all__ = ["Egress"]

# Asks the cave's proxy in the words given, ends its own side, and prints all that comes back.
_ASK = """
import os, socket, sys
host, port = os.environ["http_proxy"][7:].split(":")
with socket.create_connection((host, int(port)), 10) as proxy:
    proxy.settimeout(20)
    proxy.sendall(sys.argv[1].encode())
    proxy.shutdown(socket.SHUT_WR)
    while True:
        data = proxy.recv(65536)
        if not data:
            break
        sys.stdout.write(data.decode("latin-1"))
"""
_DIRECT = """
import socket, sys
for family, kind, host in (
    (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
    (socket.AF_INET, socket.SOCK_STREAM, sys.argv[2]),
    (socket.AF_INET, socket.SOCK_DGRAM, sys.argv[2]),
):
    try:
        with socket.socket(family, kind) as probe:
            probe.settimeout(3)
            probe.connect((host, int(sys.argv[1])))
            probe.send(b"direct")
            print("reached" if kind == socket.SOCK_STREAM else "sent", host)
    except OSError:
        pass
try:
    socket.getaddrinfo("localhost.example", 80)
    print("resolved")
except OSError:
    pass
"""


@asynccontextmanager
async def _outside() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server on this machine's loopback: its port, and what came to it. It echoes until its client's end."""
    came: list[bytes] = []

    async def serve(client: SocketStream) -> None:
        async with client:
            try:
                async for data in client:
                    came.append(data)
                    await client.send(b"echo:" + data)
            except anyio.BrokenResourceError:
                return

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = int(listener.extra(SocketAttribute.local_port))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            yield port, came
            tasks.cancel_scope.cancel()


class Egress(Basis):
    """Network policies, where Ghost's proxy is what holds them."""

    def _skip_unless_proxied(self, mode: str = "allow") -> None:
        refused = {change.get("network", {}).get("mode") for change in self.refused}
        if mode in refused or mode not in self.make().proxied:
            pytest.skip(f"not run: no proxy of Ghost's for the network mode {mode} here")

    async def _tunnel(self, cave: Cave, target: str, body: str = "") -> str:
        """What comes back for a CONNECT, and after it for the body."""
        words = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n{body}"
        return await self.script(cave, _ASK, words)

    async def test_a_cave_without_a_network_has_no_proxy(self) -> None:
        async with self.cave() as cave:
            assert "_proxy=" not in (await cave.exec(["env"])).stdout.lower()
            with pytest.raises(Conflict):
                cave.allow("a.example")

    async def test_what_is_listed_is_reached_and_nothing_else(self) -> None:
        self._skip_unless_proxied()
        async with _outside() as (port, came), _outside() as (other, _):
            listed = f"127.0.0.1:{port}"
            async with self.cave(network={"mode": "allow", "allow": [listed]}) as cave:
                refused = await self._tunnel(cave, f"127.0.0.1:{other}")
                assert refused.startswith("HTTP/1.1 403 Refused by Ghost: "), refused
                told = json.loads(refused.partition("\r\n\r\n")[2])
                assert set(told) == {"blocked", "rule", "why", "how_to_allow"}
                assert told["blocked"] == f"127.0.0.1:{other}"
                reached = await self._tunnel(cave, listed, "hello")
                assert reached.startswith("HTTP/1.1 200 ")
                assert reached.endswith("\r\n\r\necho:hello")
                assert b"".join(came) == b"hello"
                steps = [("refused", f"127.0.0.1:{other}"), ("open", listed), ("closed", listed)]

                async def recorded() -> bool:  # the end is, once both sides have seen it
                    seen = [(step["event"], step["target"]) for step in cave.connections()]
                    assert seen == steps[: len(seen)]
                    return seen == steps

                await until(recorded)

    async def test_the_proxy_is_the_only_way_out(self) -> None:
        self._skip_unless_proxied()
        async with _outside() as (port, came):
            network = {"mode": "allow", "allow": [f"127.0.0.1:{port}"]}
            async with self.cave(network=network) as cave:
                reached = await self.script(cave, _DIRECT, str(port), "192.0.2.1")
                assert reached == "" or not cave.info.assurance["network"].enforced
                assert came == []

    async def test_a_grant_holds_from_the_next_connection_and_ends(self) -> None:
        self._skip_unless_proxied()
        async with _outside() as (port, _), self.cave(network={"mode": "allow"}) as cave:
            listed = f"127.0.0.1:{port}"
            assert " 403 " in await self._tunnel(cave, listed)
            async with self.view(cave.id) as elsewhere:
                elsewhere.allow(listed)
            assert " 200 " in await self._tunnel(cave, listed)
            async with self.view(cave.id) as elsewhere:
                elsewhere.allow(listed, for_s=0.001)
                await anyio.sleep(0.01)
            assert " 403 " in await self._tunnel(cave, listed)

    async def test_open_never_reaches_this_machine(self) -> None:
        self._skip_unless_proxied("open")
        async with _outside() as (port, came), self.cave(network={"mode": "open"}) as cave:
            for host in ("127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "localhost"):
                assert not (await self._tunnel(cave, f"{host}:{port}")).startswith("HTTP/1.1 200")
            assert " 403 " in await self._tunnel(cave, "169.254.169.254:80")
            assert came == []

    async def test_the_network_outlives_the_process_that_served_it(self) -> None:
        self._skip_unless_proxied()
        if not self.persistent:
            pytest.skip("not run: these caves end with their process")
        async with _outside() as (port, _), self.backend() as backend:
            listed = f"127.0.0.1:{port}"
            network: dict[str, Any] = {"mode": "allow", "allow": [listed]}
            info = await backend.create(self.spec(network=network))
            for _ in range(2):
                async with Ghost(backend=self.make()) as ghost:
                    cave = await ghost.get(info.id)
                    assert " 200 " in await self._tunnel(cave, listed)
            await backend.stop(info.id)
            await backend.start(info.id)
            async with self.view(info.id) as cave:
                assert " 200 " in await self._tunnel(cave, listed)
