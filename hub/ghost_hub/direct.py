# A call that asks for nothing but its answer takes the short way; the layers around calls are the same on both ways.
"""``tools/call`` of the modern era over HTTP, without the SDK's session, tasks and second serialization.

They cost more than twice what a bare route costs in all. What needs the SDK goes to it: progress, a second round, a
person who may be asked, tracing, and whatever is not plainly right.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from pydantic_core import to_json

from ghost_hub.plain import JSON_HEADERS, document, plainly, replayed, respond, wants
from ghost_mcp import tracing
from ghost_servers.serving import rendered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mcp.server import Server
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ghost_hub.plain import Plain
    from ghost_mcp.calls import Calls
    from ghost_mcp.places import Caves

__all__ = ["Direct", "Serves"]

METHOD = "tools/call"
LOOK_S = 0.25
PATIENCE_S = (
    15.0  # then the answer begins, as a stream that is kept alive: proxies end what is silent
)
_PING = b": ping\r\n\r\n"
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"connection", b"keep-alive"),
    (b"x-accel-buffering", b"no"),
]
_META = "io.modelcontextprotocol/"


class Serves(Protocol):
    """What the hub is here: an MCP server, and the calls behind it."""

    @property
    def server(self) -> Server[Any]: ...

    @property
    def calls(self) -> Calls: ...

    def of_scope(self, scope: Mapping[str, Any]) -> Caves:
        """The caves of whoever sent a request."""


class Direct:
    """An ASGI application around the SDK's. ``attend()`` must run meanwhile: it looks after calls that take long."""

    def __init__(self, app: ASGIApp, hub: Serves) -> None:
        self._app = app
        self._hub = hub
        about = {f"{_META}serverInfo": hub.server.server_info_stamp}
        self._stamp = b',"_meta":' + to_json(about) + b"}"
        self._young: set[_UnderWay] = set()
        self._some = anyio.Event()

    async def attend(self) -> None:
        """A call that is answered at once pays for no task of its own."""
        async with anyio.create_task_group() as tasks:
            while True:
                await self._some.wait()
                await anyio.sleep(LOOK_S)
                old = time.monotonic() - LOOK_S
                for call in [one for one in self._young if one.began < old]:
                    self._young.discard(call)
                    tasks.start_soon(call.attend)
                if not self._young:
                    self._some = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not wants(scope, METHOD.encode()) or tracing.started():
            await self._app(scope, receive, send)
            return
        first = await receive()
        asked = plainly(scope, first, METHOD)
        if asked is None or not self._simple(asked.params):
            await self._app(scope, replayed(first, receive), send)
            return
        call = _UnderWay(receive, send)
        self._young.add(call)
        self._some.set()
        try:
            with call.scope:
                await call.answer(document(asked.id, await self._run(scope, asked)))
        finally:
            self._young.discard(call)
            call.end()
        if call.failed is not None:
            raise call.failed

    def _simple(self, params: dict[str, Any]) -> bool:
        meta = params["_meta"]
        return (
            params["name"] in self._hub.calls.tools
            and params.keys() <= {"name", "arguments", "_meta"}
            and "progressToken" not in meta
            and "elicitation" not in meta[f"{_META}clientCapabilities"]
        )

    async def _run(self, scope: Scope, asked: Plain) -> bytes:
        name, arguments = asked.params["name"], asked.params.get("arguments") or {}
        done = await self._hub.calls.run(self._hub.of_scope(scope), name, arguments)
        result = rendered(name, done).model_dump_json(by_alias=True, exclude_none=True)
        return result[:-1].encode() + self._stamp


class _UnderWay:
    """One call and its client. Until it is attended nobody but its own task speaks to the client."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.began = time.monotonic()
        self.scope = anyio.CancelScope()
        self.failed: Exception | None = None
        self._receive, self._send = receive, send
        self._speaking = anyio.Lock(fast_acquire=True)
        self._attending: anyio.CancelScope | None = None
        self._over = False
        self._streams = False

    async def answer(self, body: bytes) -> None:
        async with self._speaking:
            if self._streams:
                event = b"event: message\r\ndata: " + body + b"\r\n\r\n"
                await self._send({"type": "http.response.body", "body": event})
            else:
                await respond(self._send, JSON_HEADERS, body)
            self.end()

    def end(self) -> None:
        """Nobody attends to it any more."""
        if not self._over and self._attending is not None:
            self._attending.cancel()
        self._over = True

    async def attend(self) -> None:
        """Keep the answer alive, and end the call when its client has gone or may not hear it."""
        if self._over:
            return
        try:
            async with anyio.create_task_group() as tasks:
                self._attending = tasks.cancel_scope
                tasks.start_soon(self._keep_alive)
                while (await self._receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()
        except Exception as exc:  # noqa: BLE001 - the call's own task raises it
            self.failed = exc
        if not self._over:
            self.scope.cancel()

    async def _keep_alive(self) -> None:
        while True:
            await anyio.sleep(PATIENCE_S)
            async with self._speaking:
                if not self._streams:
                    start = {"type": "http.response.start", "status": 200}
                    await self._send({**start, "headers": _STREAM_HEADERS})
                    self._streams = True
                await self._send({"type": "http.response.body", "body": _PING, "more_body": True})
