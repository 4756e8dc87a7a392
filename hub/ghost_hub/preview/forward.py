# Nothing is published: a request goes over the link to a port in the cave. What answers there is hostile, and bounded.
"""One request, or one WebSocket, forwarded to a program in a cave: see :func:`forward`.

Each has a connection of its own, which costs a round trip on the link and leaves no state behind. Bodies flow both
ways at once, piece by piece; who does not read holds the other side back, by the link's credit and the client's socket.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import h11

from ghost_hub.preview.errors import BadGateway
from ghost_hub.preview.headers import (
    Headers,
    Upstream,
    answer_headers,
    request_headers,
    target,
)
from ghost_mcp.errors import BackendUnavailable, CaveGone, GhostError, InvalidArgument, TimedOut

if TYPE_CHECKING:
    from anyio.abc import ByteStream
    from starlette.types import Receive, Scope, Send

__all__ = ["Upstream", "connected", "forward"]

#: A server that boots is waited for so long, and looked for that often.
READY_S = 15.0
LOOK_S = (0.02, 0.5)
#: Until the head of an answer: long polls take their time.
HEAD_S = 300.0
MAX_HEAD = 64 << 10
MAX_STATUS = 599
NO_CONTENT = 204
PIECE = 1 << 16
_BOOTING = ("connection_refused", "file_not_found")


async def forward(scope: Scope, receive: Receive, send: Send, upstream: Upstream) -> None:
    """Answer an ASGI request or WebSocket by the program behind ``upstream``.

    Raises NotFound for an address that is not under its prefix, BackendUnavailable when nothing listens there or what
    answers does not speak HTTP, TimedOut, CaveGone; never after the answer has begun, which is then cut off.
    A WebSocket's refusal is sent here.
    """
    if scope["type"] == "websocket":
        from ghost_hub.preview.sockets import forward_socket  # most requests are none

        await forward_socket(scope, receive, send, upstream)
        return
    path, headers = target(scope, upstream), request_headers(scope, upstream)
    async with connected(upstream) as stream:
        failure = await _Exchange(scope, receive, send, upstream, stream).run(path, headers)
    if failure is not None:
        raise failure


@asynccontextmanager
async def connected(upstream: Upstream, ready_s: float = READY_S) -> AsyncIterator[ByteStream]:
    """A connection to the program, waited for while it boots. Raises BackendUnavailable ``not_listening``."""
    until = anyio.current_time() + ready_s
    pause, most = LOOK_S
    async with AsyncExitStack() as stack:
        while True:
            try:
                stream = await stack.enter_async_context(upstream.dial())
                break
            except GhostError as error:
                if error.code not in _BOOTING:
                    raise
            if anyio.current_time() + pause > until:
                raise BackendUnavailable(
                    f"nothing listens on {upstream.host} in the cave",
                    hint="Start the program, on 127.0.0.1 or 0.0.0.0; its port must be the one in the address.",
                    code="not_listening",
                )
            await anyio.sleep(pause)
            pause = min(most, pause * 1.5)
        yield stream


class _Exchange:
    """One request and its answer over one connection."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, upstream: Upstream, stream: ByteStream
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._upstream, self._stream = upstream, stream
        self._conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._begun = False

    async def run(self, path: bytes, headers: list[tuple[bytes, bytes]]) -> GhostError | None:
        """What went wrong before the answer had begun."""
        given = dict(self._scope["headers"])
        if b"transfer-encoding" in given:
            headers = [*headers, (b"transfer-encoding", b"chunked")]
        elif b"content-length" in given:
            headers = [*headers, (b"content-length", given[b"content-length"])]
        headers = [*headers, (b"connection", b"close")]
        try:
            head = self._conn.send(
                h11.Request(method=self._scope["method"], target=path, headers=headers)
            )
        except h11.LocalProtocolError as exc:
            return InvalidArgument(f"this request cannot be forwarded: {exc}")
        failure: GhostError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._upload, head or b"", tasks.cancel_scope)
            failure = await self._download()
            tasks.cancel_scope.cancel()
        return None if self._begun else failure

    async def _upload(self, head: bytes, whole: anyio.CancelScope) -> None:
        """The request's body, and then the client's leaving."""
        with suppress(anyio.BrokenResourceError, h11.LocalProtocolError):
            # One that does not take the body may have answered already.
            await self._stream.send(head)
            more = True
            while more:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    whole.cancel()
                    return
                more = message.get("more_body", False)
                data = self._conn.send(h11.Data(data=message.get("body", b"")))
                data = (data or b"") + (b"" if more else self._conn.send(h11.EndOfMessage()) or b"")
                if data:
                    await self._stream.send(data)
        while (await self._receive())["type"] != "http.disconnect":
            pass
        whole.cancel()

    async def _download(self) -> GhostError | None:
        try:
            with anyio.fail_after(HEAD_S):
                response = await self._next()
                while isinstance(response, h11.InformationalResponse):
                    response = await self._next()
        except TimeoutError:
            return TimedOut("the program in the cave did not answer in time")
        except CaveGone as error:
            return error
        except (anyio.BrokenResourceError, h11.RemoteProtocolError) as exc:
            return BadGateway(
                f"what answers in the cave does not speak HTTP: {str(exc)[:100] or 'it hung up'}"
            )
        assert isinstance(response, h11.Response)  # noqa: S101  (what h11 says first)
        if response.status_code > MAX_STATUS:
            return BadGateway(f"no status of HTTP's: {response.status_code}")
        self._begun = True
        headers = answer_headers(_framed(response), self._scope, self._upstream)
        await self._send(
            {"type": "http.response.start", "status": response.status_code, "headers": headers}
        )
        with suppress(anyio.BrokenResourceError, h11.RemoteProtocolError, GhostError):
            while isinstance(event := await self._next(), h11.Data):
                await self._send(
                    {"type": "http.response.body", "body": bytes(event.data), "more_body": True}
                )
            await self._send({"type": "http.response.body"})
        return None

    async def _next(self) -> h11.Event:
        while (event := self._conn.next_event()) is h11.NEED_DATA:
            try:
                data = await self._stream.receive(PIECE)
            except anyio.EndOfStream:
                data = b""
            self._conn.receive_data(data)
        if not isinstance(event, h11.Event):
            raise h11.RemoteProtocolError("it speaks out of turn")
        return event


def _framed(response: h11.Response) -> Headers:
    """Its headers; none of them tells another size than the body has: that of chunks, or none (RFC 9112, section 6.3)."""
    sizeless = response.status_code == NO_CONTENT or any(
        name == b"transfer-encoding" for name, _ in response.headers
    )
    return [one for one in response.headers if not (sizeless and one[0] == b"content-length")]
