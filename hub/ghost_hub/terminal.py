# A terminal outlives its viewers, never its cave or this hub. One viewer types; nobody who only looks can hold it up.
"""``/v1/shell/ws?cave=NAME``: a terminal in a cave over WebSocket.

As JSON, in: ``{type: input, data}``, ``{type: resize, data: {cols, rows}}``, ``{type: ping}``, ``{type: take}``,
``{type: ack, data}``; out: ``session_id``, ``ready``, ``output``, ``replayed``, ``typing``, ``viewers``, ``size``, ``exit``, ``pong``,
each ``{type, data}``. ``typing`` is null for who may only look on. With ``mode=raw`` messages are the bytes themselves; with
``mode=line`` each text message is one line, as ``wscat`` sends it: so it is at ``/``. ``session=ID`` comes back to a
terminal, with what it had shown, until ``replayed``. Who says how many ``output`` it has taken is sent no more than ``viewer.UNTAKEN`` ahead.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio
from starlette.routing import WebSocketRoute

from ghost_hub.preview.sockets import refuse_socket
from ghost_hub.principal import principal_of
from ghost_hub.viewer import MODES, Viewer
from ghost_mcp.calls import foreseen
from ghost_mcp.errors import GhostError, InvalidArgument, LimitExceeded, NotFound

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from starlette.routing import BaseRoute
    from starlette.websockets import WebSocket

    from ghost_hub.hub import Hub
    from ghost_mcp.cave import Cave
    from ghost_mcp.process import Process

__all__ = ["Terminal", "Terminals"]

SCROLLBACK = 1 << 20
#: Who types and has not taken this much holds the program back.
WINDOW = 1 << 18
PIECE = 1 << 15
MOST = 16  # of one cave
ALONE_S = 3600.0
SHELL = "command -v bash >/dev/null 2>&1 && exec bash; exec sh"


class Terminals:
    """The terminals of a hub; ``run()`` must be open while they live."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._tasks: TaskGroup | None = None
        self._open: dict[tuple[str, str], Terminal] = {}

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
            if mode not in MODES:
                raise InvalidArgument(f"mode: one of {', '.join(MODES)}")
            terminal = await self._terminal(socket)
        except GhostError as error:
            await refuse_socket(socket.scope, socket.receive, socket.send, error)
            return
        await socket.accept()
        may_type = principal_of(socket.scope).may("use")
        await Viewer(terminal, socket, mode, may_type=may_type).run()

    async def _terminal(self, socket: WebSocket) -> Terminal:
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

    async def _begin(self, cave: Cave) -> Terminal:
        """Raises LimitExceeded. Counted and begun in one step: many may ask at once."""
        if sum(there == cave.id for there, _ in self._open) >= MOST:
            raise LimitExceeded(f"{MOST} terminals are open in this cave", hint="End one: exit")
        terminal = Terminal(secrets.token_hex(16))
        self._open[cave.id, terminal.id] = terminal
        assert self._tasks is not None  # noqa: S101  (the application's lifespan holds it open)
        self._tasks.start_soon(self._live, cave, terminal)
        return terminal

    async def _live(self, cave: Cave, terminal: Terminal) -> None:
        try:
            await terminal.live(cave)
        except Exception as exc:  # noqa: BLE001 - the end of one terminal, and never of the hub
            foreseen(exc, "a terminal")
        finally:
            del self._open[cave.id, terminal.id]


class Terminal:
    """One program on a terminal of its own, the last of what it wrote, and who looks on."""

    def __init__(self, session: str) -> None:
        self.id = session
        self.viewers: list[Viewer] = []
        self.typist: Viewer | None = None
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

    def join(self, viewer: Viewer) -> None:
        """Somebody looks on; the first who may type does."""
        self.viewers.append(viewer)
        if self.typist is None:
            self.hand_to(viewer)
        self.wake()

    def leave(self, viewer: Viewer) -> None:
        """The keyboard goes to whoever came next and may have it."""
        self.viewers.remove(viewer)
        if self.typist is viewer:
            self.typist = next((one for one in self.viewers if one.may_type), None)
        self.wake()

    def hand_to(self, viewer: Viewer) -> None:
        if viewer.may_type:
            self.typist = viewer
            self.wake()

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
