# One viewer of a terminal: it takes as fast as it can, holds nobody else up, and types when it is its turn.
"""What passes over the WebSocket of a terminal, in each of its modes: see ``terminal.py``."""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING, Any

import anyio
from starlette.websockets import WebSocketDisconnect

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from ghost_hub.terminal import Terminal

__all__ = ["MODES", "UNTAKEN", "Viewer"]

MODES = ("json", "raw", "line")
#: So many outputs are sent ahead of what a viewer says it has taken.
UNTAKEN = 16


class Viewer:
    """Over one WebSocket, from its accept to its close. ``at`` is up to where of all output it has been sent."""

    def __init__(self, terminal: Terminal, socket: WebSocket, mode: str, *, may_type: bool) -> None:
        self._terminal, self._socket, self._mode = terminal, socket, mode
        self.may_type = may_type
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        self._told: dict[str, Any] = {}
        self._sent = 0
        self._taken: int | None = None  # of what was sent; None is one that does not say
        self.at = 0

    async def run(self) -> None:
        """Until the terminal has ended, or the viewer has gone."""
        self._terminal.join(self)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._hear, tasks.cancel_scope)
                await self._show()
                tasks.cancel_scope.cancel()
        except* (WebSocketDisconnect, RuntimeError):
            pass  # the viewer has gone
        finally:
            self._terminal.leave(self)

    async def _say(self, kind: str, data: Any) -> None:
        if self._mode == "json":
            await self._socket.send_text(json.dumps({"type": kind, "data": data}))

    async def _show(self) -> None:
        """What the terminal shows, as fast as this viewer takes it."""
        terminal = self._terminal
        await self._say("session_id", terminal.id)
        await self._tell()
        while terminal.process is None and not terminal.ended:
            await terminal.changed.wait()
        await self._say("ready", None)
        old: int | None = terminal.end
        while True:
            changed = terminal.changed
            await self._tell()
            if old is not None and self.at >= old:
                old = None
                await self._say("replayed", None)
            at, piece = terminal.read(self.at)
            if piece and self._takes:
                await self._output(piece)
                self.at = at
                terminal.wake()
            elif terminal.ended and not piece:
                break
            else:
                await changed.wait()
        await self._say("exit", terminal.exit_code)
        await self._socket.close()

    @property
    def _takes(self) -> bool:
        return self._taken is None or self._sent - self._taken < UNTAKEN

    async def _tell(self) -> None:
        """What has changed around the terminal; at first, all of it."""
        terminal = self._terminal
        rows, columns = terminal.size
        now = {
            "typing": terminal.typist is self if self.may_type else None,
            "viewers": len(terminal.viewers),
            "size": {"rows": rows, "cols": columns},
        }
        for kind, data in now.items():
            if kind not in self._told or self._told[kind] != data:
                self._told[kind] = data
                await self._say(kind, data)

    async def _output(self, piece: bytes) -> None:
        if self._mode == "raw":
            await self._socket.send_bytes(piece)
        elif text := self._text.decode(piece):
            if self._mode == "json":
                self._sent += 1
                await self._say("output", text)
            else:
                await self._socket.send_text(text)

    async def _hear(self, whole: anyio.CancelScope) -> None:
        while (message := await self._socket.receive())["type"] == "websocket.receive":
            text = message.get("text")
            data = text.encode() if text is not None else message.get("bytes") or b""
            if self._mode == "json":
                await self._asked(data)
            else:
                await self._type(
                    data + b"\n" if self._mode == "line" and text is not None else data
                )
        whole.cancel()

    async def _asked(self, raw: bytes) -> None:
        try:
            asked = json.loads(raw)
            kind, data = asked["type"], asked.get("data")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            await self._say("error", "not a message: send {type, data} as JSON")
            return
        if kind == "input" and isinstance(data, str):
            await self._type(data.encode("utf-8", "replace"))
        elif kind == "resize" and isinstance(data, dict):
            await self._resize(data.get("rows"), data.get("cols"))
        elif kind == "ping":
            await self._say("pong", data if isinstance(data, int | float) else None)
        elif kind == "ack" and type(data) is int and data >= 0:
            self._taken = min(data, self._sent)
            self._terminal.wake()
        elif kind == "take":
            self._terminal.hand_to(self)

    async def _type(self, data: bytes) -> None:
        if self._terminal.typist is self:
            await self._terminal.type(data)

    async def _resize(self, rows: Any, columns: Any) -> None:
        if self._terminal.typist is not self or type(rows) is not int or type(columns) is not int:
            return
        if 0 < rows < 1000 and 0 < columns < 1000:
            await self._terminal.resize(rows, columns)
