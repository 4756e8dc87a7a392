# What a program in a cave says to its proxy is hostile: parsed by h11, bounded, and every request checked anew.
"""The proxy's HTTP: CONNECT, which is tunnelled unread, and requests for ``http://`` addresses, passed on one by one.

A redirect is a new request, and so meets the policy again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import h11

from ghost_mcp.egress.dial import Refused, Unreachable
from ghost_mcp.egress.flow import Exhausted
from ghost_mcp.egress.gateway import BROKEN, IDLE_S, Gateway, carry
from ghost_mcp.egress.hosts import read_port
from ghost_mcp.egress.policy import Target
from ghost_mcp.errors import InvalidArgument

if TYPE_CHECKING:
    from anyio.abc import ByteStream

__all__ = ["serve_http"]

HEAD_S = 60.0  # for a request's head, and between the requests of one connection
MAX_HEAD_BYTES = 64 << 10
# RFC 9110, section 7.6.1, and what else is said to a proxy alone.
_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te upgrade".split()
)

Headers = Sequence[tuple[bytes, bytes]]


class _BadRequest(Exception):
    """What was asked of the proxy cannot be done."""


async def serve_http(gateway: Gateway, near: ByteStream, first: bytes) -> None:
    """Serve one connection, whose first bytes were read, until either side ends it. Raises what is in BROKEN."""
    side = _Side(near, h11.SERVER)
    side.http.receive_data(first)
    while await _one(gateway, side):
        side.http.start_next_cycle()


class _Side:
    """One end of HTTP: a stream and the state of what is spoken on it."""

    def __init__(self, stream: ByteStream, role: Any) -> None:
        self.stream = stream
        self.http = h11.Connection(role, max_incomplete_event_size=MAX_HEAD_BYTES)
        self.bodiless = False  # an answer to HEAD

    async def next(self, wait_s: float) -> Any:
        """The next event. Raises h11.RemoteProtocolError and TimeoutError."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            try:
                with anyio.fail_after(wait_s):
                    data = await self.stream.receive()
            except anyio.EndOfStream:
                data = b""
            self.http.receive_data(data)
        return event

    async def send(self, event: h11.Event) -> None:
        if data := self.http.send(event):
            await self.stream.send(data)

    async def say(self, status: int, reason: str, told: Mapping[str, Any]) -> None:
        """An answer of the proxy's own, after which the connection ends."""
        if self.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return  # an answer is under way: that it breaks off is all that can be said
        body = json.dumps(told, indent=2).encode() + b"\n"
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        phrase = ascii(reason)[1:-1][:200]
        await self.send(h11.Response(status_code=status, headers=headers, reason=phrase))
        if not self.bodiless:
            await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())


async def _one(gateway: Gateway, near: _Side) -> bool:
    """One request and its answer; whether there may be another."""
    try:
        request = await near.next(HEAD_S)
        if isinstance(request, h11.Request):
            near.bodiless = request.method == b"HEAD"
            return await _serve(gateway, near, request)
    except TimeoutError:
        return False
    except (h11.RemoteProtocolError, _BadRequest, InvalidArgument) as exc:
        status = getattr(exc, "error_status_hint", 400)
        await near.say(status, "Bad request to Ghost's proxy", {"error": str(exc)})
    except Refused as exc:
        told = gateway.refusal(exc)
        await near.say(403, f"Refused by Ghost: {told['why']}", told)
    except Unreachable as exc:
        await near.say(504 if exc.late else 502, f"Ghost: {exc}", {"error": str(exc)})
    except Exhausted as exc:
        await near.say(403, f"Refused by Ghost: {exc}", {"error": str(exc)})
    return False


async def _serve(gateway: Gateway, near: _Side, request: h11.Request) -> bool:
    asked = request.target.decode("latin-1")
    if request.method == b"CONNECT":
        target = _authority(asked, None)
        if not isinstance(await near.next(HEAD_S), h11.EndOfMessage):
            raise _BadRequest("a CONNECT request has no body")
        async with gateway.reach(target, "CONNECT") as far:
            await near.send(h11.Response(status_code=200, headers=[], reason=b"Connected"))
            early, _ = near.http.trailing_data
            if early:
                await far.send(early)
            await carry(near.stream, far)
        return False
    scheme, _, rest = asked.partition("://")
    if scheme.lower() != "http" or not rest:
        raise _BadRequest("this is a cave's proxy: it takes CONNECT, and requests for http:// URLs")
    cut = min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))
    path = rest[cut:] if rest[cut:].startswith("/") else f"/{rest[cut:]}"
    target = _authority(rest[:cut], 80)
    async with gateway.reach(target, request.method.decode("latin-1")[:20]) as far:
        server = _Side(far, h11.CLIENT)
        headers = [(b"Host", rest[:cut].encode("latin-1")), *_outbound(request.headers)]
        await _exchange(
            near,
            server,
            h11.Request(method=request.method, target=path.encode("latin-1"), headers=headers),
        )
    return near.http.our_state is h11.DONE and near.http.their_state is h11.DONE


def _authority(text: str, port: int | None) -> Target:
    """Host and port of a request. Raises _BadRequest, InvalidArgument."""
    if text.startswith("["):
        host, _, rest = text.partition("]")
        host, digits = f"{host}]", rest.removeprefix(":")
    else:
        host, _, digits = text.partition(":")
    if digits:
        port = read_port(digits)
    if port is None:
        raise _BadRequest("no port was asked for")
    return Target.read(host, port)


async def _exchange(near: _Side, server: _Side, request: h11.Request) -> None:
    """Pass a request on and its answer back, bodies both ways at once. Raises what ended it badly."""
    failures: list[Exception] = []

    async def upload() -> None:
        try:
            await server.send(request)
            while isinstance(event := await near.next(IDLE_S), h11.Data):
                await server.send(h11.Data(data=event.data))
            if isinstance(event, h11.EndOfMessage):
                await server.send(h11.EndOfMessage())
        except BROKEN:
            return  # it reads no more, and may yet answer
        except (h11.ProtocolError, TimeoutError, Exhausted) as exc:
            failures.append(exc)
            tasks.cancel_scope.cancel()

    async def download() -> None:
        try:
            while await _passed(near, server):
                pass
        except h11.RemoteProtocolError as exc:
            failures.append(Unreachable(f"the server does not speak HTTP/1.1: {exc}"))
        except TimeoutError:
            failures.append(Unreachable("the server does not answer", late=True))
        except (*BROKEN, h11.LocalProtocolError, Exhausted) as exc:
            failures.append(exc)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(upload)
        tasks.start_soon(download)
    if failures:
        raise failures[0]


async def _passed(near: _Side, server: _Side) -> bool:
    """Pass one event of an answer back; whether there are more."""
    event = await server.next(IDLE_S)
    if isinstance(event, h11.Data):
        await near.send(h11.Data(data=event.data))
    elif isinstance(event, h11.EndOfMessage):
        await near.send(h11.EndOfMessage())
        return False
    elif isinstance(event, h11.Response | h11.InformationalResponse):
        kind = type(event)
        headers = _inbound(event.headers)
        await near.send(kind(status_code=event.status_code, headers=headers, reason=event.reason))
    else:
        raise h11.RemoteProtocolError("it closed the connection without an answer")
    return True


def _outbound(headers: Headers) -> list[tuple[bytes, bytes]]:
    kept = _end_to_end(headers)
    framed = any(name == b"transfer-encoding" for name, _ in kept)
    drop = {b"host", b"content-length"} if framed else {b"host"}
    return [*((n, v) for n, v in kept if n not in drop), (b"Connection", b"close")]


def _inbound(headers: Headers) -> list[tuple[bytes, bytes]]:
    """An answer's own headers; without a length h11 frames its body anew, as the program's HTTP version asks."""
    kept = _end_to_end(headers)
    framed = any(name == b"transfer-encoding" for name, _ in kept)
    drop = {b"transfer-encoding", b"content-length"} if framed else set()
    return [(n, v) for n, v in kept if n not in drop]


def _end_to_end(headers: Headers) -> list[tuple[bytes, bytes]]:
    named = {
        word.strip().lower()
        for name, value in headers
        if name == b"connection"
        for word in value.split(b",")
    } - {b"transfer-encoding", b"content-length", b"host"}
    return [(n, v) for n, v in headers if n not in _HOP and n not in named]
