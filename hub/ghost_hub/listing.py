# What is the same for everyone is made once. Whatever is not plainly that one question goes on to the SDK.
"""The answer to ``tools/list`` of the modern era, kept: clients ask for it at each start, and it never changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Listing"]

METHOD = "tools/list"
MOST = 4096  # the question's bytes
_META = "io.modelcontextprotocol/"
_VERSION, _CLIENT, _ABLE = (
    f"{_META}{word}" for word in ("protocolVersion", "clientInfo", "clientCapabilities")
)


class Listing:
    """An ASGI application around the SDK's. It keeps the first good answer, and gives it to the same question."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._kept: dict[str, tuple[list[tuple[bytes, bytes]], bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        version = _asked_version(scope)
        if version is None:
            await self._app(scope, receive, send)
            return
        first = await receive()
        question = _question(first, version)
        kept = self._kept.get(version)
        if question is not None and kept is not None:
            await _answer(send, question, *kept)
            return
        answering = send if question is None else _Keeping(self._kept, version, send).send
        await self._app(scope, _replayed(first, receive), answering)


def _asked_version(scope: Scope) -> str | None:
    """The protocol's version, for what may be the question."""
    if scope["method"] != "POST":
        return None
    headers = dict(scope["headers"])
    accepted = headers.get(b"accept", b"")
    if headers.get(b"mcp-method") != METHOD.encode() or b"application/json" not in accepted:
        return None
    if not headers.get(b"content-type", b"").startswith(b"application/json"):
        return None
    version = headers.get(b"mcp-protocol-version", b"").decode("latin-1")
    return version if version >= "2026" else None


def _question(message: Message, version: str) -> str | int | None:
    """The request's id, when it asks for the list and for nothing else."""
    body = message.get("body", b"")
    if message["type"] != "http.request" or message.get("more_body") or len(body) > MOST:
        return None
    try:
        asked = json.loads(body)
        meta = asked["params"]["_meta"]
        plain = (
            asked.keys() == {"jsonrpc", "id", "method", "params"}
            and asked["jsonrpc"] == "2.0"
            and asked["method"] == METHOD
            and asked["params"].keys() == {"_meta"}
            and meta.keys() == {_VERSION, _CLIENT, _ABLE}
            and meta[_VERSION] == version
            and isinstance(meta[_ABLE], dict)
            and all(isinstance(meta[_CLIENT][word], str) for word in ("name", "version"))
        )
        number = asked["id"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return number if plain and type(number) in (int, str) else None


def _replayed(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


async def _answer(
    send: Send, number: str | int, headers: list[tuple[bytes, bytes]], result: bytes
) -> None:
    body = b'{"jsonrpc":"2.0","id":' + json.dumps(number).encode() + b',"result":' + result + b"}"
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


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
