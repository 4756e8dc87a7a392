# What passes between a client and the application, once the guard has let it in: bounded, and only while it is allowed.
"""A request's body, and what goes on for longer than a moment."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ghost_hub.answered import Refused
from ghost_hub.preview import PREVIEW
from ghost_hub.principal import principal_of
from ghost_hub.quota import Tally
from ghost_mcp.errors import GhostError, LimitExceeded, QuotaExceeded, TimedOut

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from ghost_hub.principal import Principal

__all__ = ["Body", "Held", "Lasting"]

# These take a body of any size, piece by piece.
STREAMED_PATHS = frozenset({"/v1/filesystem/upload"})
_PROXIED = re.compile(r"/caves/[^/]+/(abs)?proxy/")
BODY_S = 20.0
RECHECK_S = 1.0


class Held:
    """How much of each owner's bodies the hub holds: ``most`` bytes together, however many requests bring them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = Tally()

    def more(self, owner: str, count: int) -> bool:
        """Whether so many more may be held, which they are then."""
        if self._bytes[owner] + count > self._most:
            return False
        self._bytes[owner] += count
        return True

    def less(self, owner: str, count: int) -> None:
        self._bytes.less(owner, count)


class Body:
    """A request's body, bounded in size and in how long the client may take for it.

    Beyond the bounds the application sees a client that has gone, and what it still says is not sent. ``over()`` is to
    be called at the request's end: what of it was held is not any more.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, most: int, held: Held) -> None:
        path = scope["path"]
        streamed = PREVIEW in scope or path in STREAMED_PATHS or _PROXIED.match(path) is not None
        self._receive, self._send = receive, send
        self._owner = principal_of(scope).owner
        # As JSON a file is held like any other body.
        self._all, self._held = None if streamed and not _is_json(scope) else held, 0
        self._most = self._left = float("inf") if streamed else most
        self._deadline = float("inf") if streamed else time.monotonic() + BODY_S
        self._whole = False
        self.answered = False
        self.refused: Refused | None = None

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            # At each request: anyio's scope takes twice as long.
            async with asyncio.timeout(min(BODY_S, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            return self._refuse(TimedOut("the request's body did not come in time"), 408)
        if message["type"] == "http.request":
            count = len(message.get("body", b""))
            self._left -= count
            self._whole = not message.get("more_body", False)
            if count and not self._holds(count):
                error = QuotaExceeded(
                    "too much is sent at once in your name", hint="Send fewer large bodies at once."
                )
                return self._refuse(error, QuotaExceeded.http_status)
            if self._left < 0:
                return self._refuse(
                    LimitExceeded(
                        f"the body is larger than {self._most} bytes",
                        hint="Larger files go to /v1/filesystem/upload.",
                        code="too_large",
                    ),
                    413,
                )
        return message

    def _holds(self, count: int) -> bool:
        if self._all is None:
            return True
        if not self._all.more(self._owner, count):
            return False
        self._held += count
        return True

    def over(self) -> None:
        if self._all is not None and self._held:
            self._all.less(self._owner, self._held)
            self._held = 0

    def _refuse(self, error: GhostError, status: int) -> Message:
        self.refused = Refused(error, status=status)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.refused is None or self.answered:
            self.answered = True
            await self._send(message)


def _is_json(scope: Scope) -> bool:
    return any(
        key == b"content-type" and b"json" in value.lower() for key, value in scope["headers"]
    )


class Lasting:
    """What goes on: of what is said later than RECHECK_S after the last look, the token must still allow it."""

    def __init__(self, receive: Receive, send: Send, principal: Callable[[], Principal]) -> None:
        self._receive, self._send, self._principal = receive, send, principal
        self._seen = time.monotonic()
        self._headers: Iterable[tuple[bytes, bytes]] = ()
        self.cut = False
        self.gone: OSError | None = None  #: a server's word for a WebSocket whose client has left

    async def receive(self) -> Message:
        """Of a WebSocket: its client has gone when the token has."""
        message = await self._receive()
        if message["type"] == "websocket.receive" and self._due():
            try:
                self._principal()
            except Refused:
                await self._cut("websocket.send")
                return {"type": "websocket.disconnect", "code": 1008}
        return message

    async def send(self, message: Message) -> None:
        """Raises Refused when the token has been revoked, or has expired, meanwhile."""
        kind = message["type"]
        if kind == "http.response.start":
            self._headers = message["headers"]
        elif (message.get("more_body") or kind == "websocket.send") and self._due():
            try:
                self._principal()
            except Refused:
                await self._cut(kind)
                raise
        if not self.cut:  # nothing may follow what ended it
            try:
                await self._send(message)
            except OSError as exc:
                self.gone = exc
                raise

    async def _cut(self, kind: str) -> None:
        self.cut = True
        if kind == "websocket.send":
            await self._send({"type": "websocket.close", "code": 1008})
        # One that said its size breaks off instead.
        elif b"content-length" not in dict(self._headers):
            await self._send({"type": "http.response.body", "body": b""})

    def _due(self) -> bool:
        now = time.monotonic()
        due = now - self._seen > RECHECK_S
        if due:
            self._seen = now
        return due
