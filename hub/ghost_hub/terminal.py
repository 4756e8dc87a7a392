# A terminal outlives its viewers, never its cave or this hub. One viewer types; nobody who only looks can hold it up.
"""``/v1/shell/ws?cave=NAME``: a terminal in a cave over WebSocket.

As JSON, in: ``{type: input, data}``, ``{type: resize, data: {cols, rows}}``, ``{type: ping}``, ``{type: take}``,
``{type: ack, data}``; out: ``session_id``, ``ready``, ``output``, ``replayed``, ``typing``, ``viewers``, ``size``, ``exit``, ``pong``,
each ``{type, data}``. ``typing`` is null for who may only look on. With ``mode=raw`` messages are the bytes themselves; with
``mode=line`` each text message is one line, as ``wscat`` sends it: so it is at ``/``. ``session=ID`` comes back to a
terminal, with what it had shown, until ``replayed``. Who says how many ``output`` it has taken is sent no more than UNTAKEN ahead.
"""

from __future__ import annotations

import codecs
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from ghost_hub.preview.sockets import refuse_socket
from ghost_hub.principal import principal_of
from ghost_mcp.calls import foreseen
from ghost_mcp.errors import GhostError, InvalidArgument, LimitExceeded, NotFound

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from starlette.routing import BaseRoute
    from starlette.websockets import WebSocket

    from ghost_hub.hub import Hub
    from ghost_mcp.cave import Cave, Process

__all__ = ["Terminals"]

SCROLLBACK = 1 << 20
#: Who types and has not taken this much holds the program back.
WINDOW = 1 << 18
PIECE = 1 << 15
UNTAKEN = 16
MOST = 16  # of one cave
ALONE_S = 3600.0
SHELL = "command -v bash >/dev/null 2>&1 && exec bash; exec sh"
_MODES = ("json", "raw", "line")


class Terminals:
    """The terminals of a hub; ``run()`` must be open while they live."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._tasks: TaskGroup | None = None
        self._open: dict[tuple[str, str], _Terminal] = {}

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as self._tasks:
            yield
            self._tasks.cancel_scope.cancel()

    def routes(self) -> list[BaseRoute]:
        return [
            WebSocketRoute("/v1/shell/ws", self._serve),
            WebSocketRoute("/", partial(self._serve, usual="line")),
        ]

    async def _serve(self, socket: WebSocket, usual: str = "json") -> None:
        try:
            mode = socket.query_params.get("mode", usual)
            if mode not in _MODES:
                raise InvalidArgument(f"mode: one of {', '.join(_MODES)}")
            terminal = await self._terminal(socket)
        except GhostError as error:
            await refuse_socket(socket.scope, socket.receive, socket.send, error)
            return
        await socket.accept()
        may_type = principal_of(socket.scope).may("use")
        await _Viewer(terminal, socket, mode, may_type=may_type).run()

    async def _terminal(self, socket: WebSocket) -> _Terminal:
        """The one the address names, or a new one. Raises NotFound, and what reaching the cave raises."""
        principal_of(socket.scope).need("read")
        caller = self._hub.of_scope(socket.scope)
        place = await caller.place(socket.query_params.get("cave"))
        session = socket.query_params.get("session") or socket.query_params.get("session_id")
        if session is not None:
            found = self._open.get((place.cave.id, session))
            if found is None:
                raise NotFound(
                    f"no terminal {session[:40]!r} in cave {place.cave.name}",
                    hint="It has ended: leave session out for a new one.",
                )
            return found
        principal_of(socket.scope).need("use")
        return await self._hub.calls.operate(
            caller,
            "terminal",
            {},
            cave=place.cave.name,
            effect="write",
            kind="operation",
            work=partial(self._begin, place.cave),
        )

    async def _begin(self, cave: Cave) -> _Terminal:
        """Raises LimitExceeded. Counted and begun in one step: many may ask at once."""
        if sum(there == cave.id for there, _ in self._open) >= MOST:
            raise LimitExceeded(f"{MOST} terminals are open in this cave", hint="End one: exit")
        terminal = _Terminal(secrets.token_hex(16))
        self._open[cave.id, terminal.id] = terminal
        assert self._tasks is not None  # noqa: S101  (the application's lifespan holds it open)
        self._tasks.start_soon(self._live, cave, terminal)
        return terminal

    async def _live(self, cave: Cave, terminal: _Terminal) -> None:
        try:
            await terminal.live(cave)
        except Exception as exc:  # noqa: BLE001 - the end of one terminal, and never of the hub
            foreseen(exc, "a terminal")
        finally:
            del self._open[cave.id, terminal.id]


class _Terminal:
    """One program on a terminal of its own, the last of what it wrote, and who looks on."""

    def __init__(self, session: str) -> None:
        self.id = session
        self.viewers: list[_Viewer] = []
        self.typist: _Viewer | None = None
        self.exit_code: int | None = None
        self.ended = False
        self.process: Process | None = None
        self.size = (24, 80)
        self._shown = bytearray()
        self._from = 0  # where in all of its output what is kept begins
        self.changed = anyio.Event()

    @property
    def end(self) -> int:
        return self._from + len(self._shown)

    def wake(self) -> None:
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    def read(self, at: int) -> tuple[int, bytes]:
        """A piece from ``at``, or from where what is kept begins, and where it ends."""
        start = max(at, self._from) - self._from
        piece = bytes(self._shown[start : start + PIECE])
        return self._from + start + len(piece), piece

    async def live(self, cave: Cave) -> None:
        try:
            env = {"TERM": "xterm-256color"}
            async with cave.process(SHELL, env=env, pty=self.size) as process:
                self.process = process
                self.wake()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._alone, tasks.cancel_scope)
                    await self._pump(process)
                    self.exit_code = await process.wait()
                    tasks.cancel_scope.cancel()
        except* GhostError:
            pass  # the cave has gone: the viewers are told that it has ended
        finally:
            self.process, self.ended = None, True
            self.wake()

    async def type(self, data: bytes) -> None:
        """Give the program input; nothing happens when it has ended, of which its viewers are told."""
        if self.process is not None:
            with suppress(GhostError):
                await self.process.send(data)

    async def resize(self, rows: int, columns: int) -> None:
        """The same for its size."""
        if self.process is not None:
            with suppress(GhostError):
                await self.process.resize(rows, columns)
                self.size = (rows, columns)
                self.wake()

    async def _pump(self, process: Process) -> None:
        while (piece := await process.receive()) is not None:
            self._shown += piece[1]
            if (over := len(self._shown) - SCROLLBACK) > 0:
                del self._shown[:over]
                self._from += over
            self.wake()
            while self.typist is not None and self.end - self.typist.at > WINDOW:
                await self.changed.wait()

    async def _alone(self, whole: anyio.CancelScope) -> None:
        """End it when nobody has looked for ALONE_S."""
        while True:
            with anyio.move_on_after(ALONE_S) as waited:
                while not self.viewers:
                    await self.changed.wait()
            if waited.cancelled_caught:
                whole.cancel()
                return
            while self.viewers:
                await self.changed.wait()


class _Viewer:
    def __init__(
        self, terminal: _Terminal, socket: WebSocket, mode: str, *, may_type: bool
    ) -> None:
        self._terminal, self._socket, self._mode = terminal, socket, mode
        self._may_type = may_type
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        self._told: dict[str, Any] = {}
        self._sent = 0
        self._taken: int | None = (
            None  # output messages; None is one that does not say what it takes
        )
        self.at = 0

    async def run(self) -> None:
        terminal = self._terminal
        terminal.viewers.append(self)
        if self._may_type and terminal.typist is None:
            terminal.typist = self
        terminal.wake()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._hear, tasks.cancel_scope)
                await self._show()
                tasks.cancel_scope.cancel()
        except* (WebSocketDisconnect, RuntimeError):
            pass  # the viewer has gone
        finally:
            terminal.viewers.remove(self)
            if terminal.typist is self:
                others = (one for one in terminal.viewers if one._may_type)
                terminal.typist = next(others, None)
            terminal.wake()

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
            "typing": terminal.typist is self if self._may_type else None,
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
        elif kind == "take" and self._may_type:
            self._terminal.typist = self
            self._terminal.wake()

    async def _type(self, data: bytes) -> None:
        if self._terminal.typist is self:
            await self._terminal.type(data)

    async def _resize(self, rows: Any, columns: Any) -> None:
        if self._terminal.typist is not self or type(rows) is not int or type(columns) is not int:
            return
        if 0 < rows < 1000 and 0 < columns < 1000:
            await self._terminal.resize(rows, columns)
