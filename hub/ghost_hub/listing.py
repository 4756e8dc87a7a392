# What is the same for everyone is made once. Whatever is not plainly that one question goes on to the SDK.
"""The answer to ``tools/list`` of the modern era, kept: clients ask for it at each start, and it never changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ghost_hub.plain import document, plainly, replayed, respond, wants

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Listing"]

METHOD = "tools/list"


class Listing:
    """An ASGI application around the SDK's. It keeps the first good answer, and gives it to the same question."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._kept: dict[str, tuple[list[tuple[bytes, bytes]], bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not wants(scope, METHOD.encode()):
            await self._app(scope, receive, send)
            return
        first = await receive()
        asked = plainly(scope, first, METHOD)
        if asked is None or asked.params.keys() != {"_meta"}:  # a page of it is another question
            await self._app(scope, replayed(first, receive), send)
        elif (kept := self._kept.get(asked.version)) is not None:
            headers, result = kept
            await respond(send, headers, document(asked.id, result))
        else:
            keeping = _Keeping(self._kept, asked.version, send)
            await self._app(scope, replayed(first, receive), keeping.send)


class _Keeping:
    """Passes an answer on, and keeps it when it is one document with a result."""

    def __init__(self, kept: dict[str, Any], version: str, send: Send) -> None:
        self._kept, self._version, self._send = kept, version, send
        self._headers: list[tuple[bytes, bytes]] = []
        self._good = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            self._good = (
                message["status"] == 200 and headers.get(b"content-type") == b"application/json"
            )
            self._headers = [(k, v) for k, v in message["headers"] if k != b"content-length"]
        elif self._good and not message.get("more_body"):
            answer = json.loads(message["body"])
            if "tools" in answer.get("result", {}):
                result = json.dumps(answer["result"], ensure_ascii=False, separators=(",", ":"))
                self._kept[self._version] = (self._headers, result.encode())
        await self._send(message)
