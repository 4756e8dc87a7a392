# Messages, not bytes: a server by ASGI has no byte stream after the upgrade. Both sides speak by the same library.
"""A WebSocket forwarded to a program in a cave.

The hub ends the client's WebSocket and opens another over the link; that each message is parsed twice is the price of
seeing, and bounding, every one. Nothing is compressed on the way: the link does not leave the machine or is compressed
by whoever carries it, and a key press should not wait for a compressor.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidState, InvalidStatus, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.http11 import Response as Handshake
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from ghost_hub.preview.errors import BadGateway
from ghost_hub.preview.headers import Upstream, request_headers, target
from ghost_hub.problem import problem
from ghost_mcp.errors import GhostError, TimedOut

if TYPE_CHECKING:
    from anyio.abc import ByteStream
    from starlette.types import Receive, Scope, Send

__all__ = ["MAX_MESSAGE", "forward_socket", "refuse_socket"]

MAX_MESSAGE = 16 << 20
#: A program that asks so often whether somebody is there waits until it has read the answers.
MOST_PINGS = 64
HANDSHAKE_S = 30.0
CLOSE_S = 2.0
PIECE = 1 << 16


async def refuse_socket(
    scope: Scope, receive: Receive, send: Send, error: GhostError, status: int | None = None
) -> None:
    """Answer a WebSocket's request with what refused it: it never becomes one."""
    await problem(error, status=status)(scope, receive, send)


async def forward_socket(scope: Scope, receive: Receive, send: Send, upstream: Upstream) -> None:
    """See :func:`ghost_hub.preview.forward.forward`."""
    from ghost_hub.preview.forward import connected

    await receive()  # websocket.connect
    try:
        path = target(scope, upstream)
        async with connected(upstream) as stream:
            relay = _Relay(scope, receive, send, upstream, stream)
            await relay.open(path.decode("latin-1"))
            await relay.run()
    except GhostError as error:
        await refuse_socket(scope, receive, send, error)


class _Relay:
    def __init__(
        self, scope: Scope, receive: Receive, send: Send, upstream: Upstream, stream: ByteStream
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._upstream, self._stream = upstream, stream
        self._lock = anyio.Lock()
        self._message = bytearray()  # the frames of one that is not whole yet, empty ones too
        self._text = False
        self._pings = 0

    async def open(self, path: str) -> None:
        """Both handshakes, the program's first. Raises BackendUnavailable, TimedOut."""
        host, _, port = self._upstream.host.partition(":")
        plain, _, query = path.partition("?")
        uri = WebSocketURI(False, host, int(port or 80), plain, query)
        wanted = [Subprotocol(word) for word in self._scope["subprotocols"]]
        self._protocol = ClientProtocol(uri, subprotocols=wanted or None, max_size=MAX_MESSAGE)
        request = self._protocol.connect()
        for name, value in request_headers(self._scope, self._upstream):
            if name != b"host":
                request.headers[name.decode("latin-1")] = value.decode("latin-1")
        self._protocol.send_request(request)
        try:
            with anyio.fail_after(HANDSHAKE_S):
                await self._flush()
                early = await self._handshake()
        except TimeoutError:
            raise TimedOut("the program in the cave did not answer in time") from None
        except (anyio.BrokenResourceError, anyio.EndOfStream) as exc:
            raise self._refused(exc) from exc
        await self._send({"type": "websocket.accept", "subprotocol": self._protocol.subprotocol})
        for event in early:
            await self._told(event)

    async def _handshake(self) -> list[object]:
        """Wait for the program's answer; returns what came right behind it."""
        while True:
            self._protocol.receive_data(await self._stream.receive(PIECE))
            events = self._protocol.events_received()
            if (exc := self._protocol.handshake_exc) is not None:
                raise self._refused(exc)
            if events and isinstance(events[0], Handshake):
                return list(events[1:])

    def _refused(self, exc: Exception) -> GhostError:
        said = f": {exc.response.status_code}" if isinstance(exc, InvalidStatus) else ""
        return BadGateway(f"the program in the cave did not open a WebSocket{said}")

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._upload, tasks.cancel_scope)
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream, GhostError):
                await self._download()
            code = self._protocol.close_rcvd.code if self._protocol.close_rcvd else 1011
            tasks.cancel_scope.cancel()
        with suppress(Exception):  # the client has gone
            await self._send({"type": "websocket.close", "code": _sendable(code)})

    async def _upload(self, whole: anyio.CancelScope) -> None:
        with suppress(anyio.BrokenResourceError, InvalidState, ProtocolError):
            while (message := await self._receive())["type"] == "websocket.receive":
                text, data = message.get("text"), message.get("bytes")
                if text is not None:
                    self._protocol.send_text(text.encode())
                else:
                    self._protocol.send_binary(data or b"")
                await self._flush()
            self._protocol.send_close(_sendable(message.get("code") or 1000))
            with anyio.move_on_after(CLOSE_S):
                await self._flush()
        whole.cancel()

    async def _download(self) -> None:
        while True:
            self._protocol.receive_data(await self._stream.receive(PIECE))
            for event in self._protocol.events_received():
                await self._told(event)
            # Who holds it takes along what is there to be sent; of pongs, not any number.
            if not self._lock.locked() or self._pings > MOST_PINGS:
                await self._flush()
            if self._protocol.close_rcvd is not None or self._protocol.parser_exc is not None:
                return

    async def _told(self, event: object) -> None:
        """A frame of the program's: a whole message is passed on. Its pings are answered by the protocol."""
        if not isinstance(event, Frame) or event.opcode not in (
            Opcode.CONT,
            Opcode.TEXT,
            Opcode.BINARY,
        ):
            self._pings += 1
            return
        if event.opcode is not Opcode.CONT:
            self._text = event.opcode is Opcode.TEXT
        self._message += event.data
        if not event.fin:
            return
        data = bytes(self._message)
        self._message.clear()
        key, said = ("text", data.decode("utf-8", "replace")) if self._text else ("bytes", data)
        await self._send({"type": "websocket.send", key: said})

    async def _flush(self) -> None:
        async with self._lock:
            while pieces := self._protocol.data_to_send():
                self._pings = 0
                for piece in pieces:
                    await (self._stream.send(piece) if piece else self._stream.send_eof())


def _sendable(code: int) -> int:
    """A close code that may stand in a frame: RFC 6455, section 7.4."""
    return (
        code
        if code in range(3000, 5000) or code in (1000, 1001, 1002, 1003, *range(1007, 1012))
        else 1000
    )
