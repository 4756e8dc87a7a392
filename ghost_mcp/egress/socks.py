"""The proxy's SOCKS5 (RFC 1928), for programs that speak neither HTTP nor TLS: CONNECT only, no authentication."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import anyio

from ghost_mcp.egress.dial import Refused, Unreachable
from ghost_mcp.egress.gateway import Gateway, carry
from ghost_mcp.egress.policy import Target
from ghost_mcp.errors import InvalidArgument

if TYPE_CHECKING:
    from anyio.abc import ByteStream

__all__ = ["VERSION", "serve_socks"]

VERSION = 5
HEAD_S = 60.0
_OK, _NOT_ALLOWED, _HOST_UNREACHABLE, _BAD_COMMAND, _BAD_ADDRESS = 0, 2, 4, 7, 8


class _Closed(Exception):
    """The program went away, or does not speak the protocol."""


class _Reader:
    """Exact counts of bytes from a stream."""

    def __init__(self, stream: ByteStream, first: bytes) -> None:
        self._stream = stream
        self.rest = first

    async def take(self, count: int) -> bytes:
        while len(self.rest) < count:
            try:
                self.rest += await self._stream.receive()
            except anyio.EndOfStream:
                raise _Closed from None
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken


async def serve_socks(gateway: Gateway, near: ByteStream, first: bytes) -> None:
    """Serve one connection, whose first bytes were read. Raises what is in BROKEN."""
    reader = _Reader(near, first)
    try:
        with anyio.fail_after(HEAD_S):
            target = await _greeted(near, reader)
    except (TimeoutError, _Closed):
        return
    except InvalidArgument:
        await near.send(_reply(_BAD_ADDRESS))
        return
    if target is None:
        await near.send(_reply(_BAD_COMMAND))
        return
    try:
        async with gateway.reach(target, "SOCKS5") as far:
            await near.send(_reply(_OK))
            if reader.rest:
                await far.send(reader.rest)
            await carry(near, far)
    except Refused:
        await near.send(_reply(_NOT_ALLOWED))
    except Unreachable:
        await near.send(_reply(_HOST_UNREACHABLE))


async def _greeted(near: ByteStream, reader: _Reader) -> Target | None:
    """Where to; None for a command other than CONNECT. Raises _Closed, InvalidArgument."""
    _, methods = await reader.take(2)
    if 0 not in await reader.take(methods):
        await near.send(bytes([VERSION, 0xFF]))
        raise _Closed
    await near.send(bytes([VERSION, 0]))
    version, command, _, kind = await reader.take(4)
    if version != VERSION or kind not in (1, 3, 4):
        raise _Closed
    if kind == 3:
        host = (await reader.take((await reader.take(1))[0])).decode("latin-1")
    elif kind == 1:
        host = str(IPv4Address(await reader.take(4)))
    else:
        host = str(IPv6Address(await reader.take(16)))
    port = int.from_bytes(await reader.take(2), "big")
    return Target.read(host, port) if command == 1 and port else None


def _reply(code: int) -> bytes:
    return bytes([VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0])
