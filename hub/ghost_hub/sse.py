# A client that only listens costs two tasks and no buffer: what the server says goes to its socket at once.
"""MCP over SSE, for older clients: ``GET /sse`` is what the hub says, ``POST /messages/`` what the client says.

The SDK has this transport too (mcp 2.3, ``mcp.server.sse``); it holds some eight tasks and four queues for each
client, 73 KB, and this one half of that.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import anyio
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp_types import jsonrpc_message_adapter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from ghost_hub.principal import principal_of
from ghost_hub.quota import Tally
from ghost_mcp.errors import InvalidArgument, NotFound, QuotaExceeded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyio.streams.memory import MemoryObjectSendStream
    from mcp.server import Server
    from starlette.types import Receive, Scope, Send

__all__ = ["ENDLESS", "MESSAGES", "Sse"]

MESSAGES = "/messages/"
PING_S = 15.0
#: So many messages of an owner may wait for clients that do not read; until they have, nothing more is taken of them.
MOST_WAITING = 512
#: In the ASGI scope of an answer that has no end of its own: a server that shuts down need not wait for it.
ENDLESS = "ghost.endless"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Sse:
    """The sessions of all SSE clients, ``most`` at once. ``ping()`` must run while they are served."""

    def __init__(self, server: Server[Any], most: int) -> None:
        self._server = server
        self._most = most
        self._sessions: dict[str, _Session] = {}
        self._waiting = Tally()  # messages of an owner that somebody holds

    async def ping(self) -> None:
        """Let proxies on the way see that the connections live; one task for all of them."""
        while True:
            await anyio.sleep(PING_S)
            async with anyio.create_task_group() as tasks:
                for session in list(self._sessions.values()):
                    tasks.start_soon(session.ping)

    async def listen(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application: one session, until either side goes. Raises QuotaExceeded."""
        if len(self._sessions) >= self._most:
            raise QuotaExceeded(f"{self._most} SSE clients listen already, which is the most")
        scope[ENDLESS] = True
        incoming, arriving = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        session = _Session(principal_of(scope).owner, incoming, send, self._waiting)
        name = secrets.token_hex(16)
        self._sessions[name] = session
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await session.say(_event("endpoint", f"{MESSAGES}?session_id={name}"))
            with session.scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_gone, receive, session.scope)
                    options = self._server.create_initialization_options()
                    await self._server.run(arriving, session, options)
                    session.scope.cancel()
        finally:
            del self._sessions[name]
            incoming.close()
            arriving.close()

    async def take(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application: one message of a session's owner. Raises NotFound, InvalidArgument."""
        request = Request(scope, receive)
        session = self._sessions.get(request.query_params.get("session_id", ""))
        # Another owner's session is answered as one that is not there.
        if session is None or session.owner != principal_of(scope).owner:
            raise NotFound("there is no such session", hint="GET /sse opens one.")
        if self._waiting[session.owner] >= MOST_WAITING:
            raise QuotaExceeded(
                f"{MOST_WAITING} messages of yours wait for who listens",
                hint="Read what GET /sse has sent, and try again.",
            )
        try:
            message = jsonrpc_message_adapter.validate_json(await request.body(), by_name=False)
        except ValidationError:
            raise InvalidArgument("the body is no JSON-RPC message of MCP") from None
        await Response("Accepted", 202)(scope, receive, send)
        try:
            metadata = ServerMessageMetadata(request_context=request)
            with session.held():
                await session.incoming.send(SessionMessage(message, metadata=metadata))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):  # it has just gone
            return


class _Session:
    """One client, and the SDK's write stream to it."""

    __slots__ = ("_send", "_waiting", "incoming", "owner", "scope")

    def __init__(
        self,
        owner: str,
        incoming: MemoryObjectSendStream[SessionMessage | Exception],
        send: Send,
        waiting: Tally,
    ) -> None:
        self.owner, self.incoming, self._send, self._waiting = owner, incoming, send, waiting
        #: It lives in this.
        self.scope = anyio.CancelScope()

    async def say(self, event: bytes) -> None:
        """Waits while the client is slow. To one that has gone, the server sends nothing."""
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def ping(self) -> None:
        try:
            # One that does not read holds the others up no longer.
            with anyio.move_on_after(PING_S):
                await self.say(b": ping\r\n\r\n")
        except Exception:  # noqa: BLE001 - its token is no longer valid, or it broke: that ends it, and no other
            self.scope.cancel()

    @contextmanager
    def held(self) -> Iterator[None]:
        """A message waits until the server, or the client, takes it."""
        self._waiting[self.owner] += 1
        try:
            yield
        finally:
            self._waiting.less(self.owner)

    async def send(self, item: SessionMessage) -> None:
        text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        with self.held():
            await self.say(_event("message", text))

    async def aclose(self) -> None:
        """The answer ends with its request."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def _event(kind: str, data: str) -> bytes:
    return f"event: {kind}\r\ndata: {data}\r\n\r\n".encode("utf-8", "replace")


async def _gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
