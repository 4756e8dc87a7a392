# Only this file touches the bytes between a browser in a cave and its driver here. Nothing listens on the host.
"""A browser in a cave, connected to a Playwright driver of its own through the cave's link.

The driver starts what it takes for a browser: bridge.py, which hands its DevTools pipe over to this process.
From then on the bytes flow driver <-> this process <-> link <-> Chromium's descriptors 3 and 4 in the cave.
Each browser has its own driver: any program of a cave can write into its browser's pipe, and a driver dies
of an answer that it did not expect.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import secrets
import socket
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread
from anyio.abc import SocketAttribute, UNIXSocketStream

from ghost_mcp.errors import BackendUnavailable, CaveGone, GhostError, TimedOut, Unsupported
from ghost_mcp.process import DEVTOOLS
from ghost_servers.browser import chromium, desktop, moving
from ghost_servers.browser.messages import Messages
from ghost_servers.browser.text import clean

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Playwright, ViewportSize

    from ghost_mcp.cave import Cave
    from ghost_mcp.process import Process
    from ghost_servers.browser.moving import Left
    from ghost_servers.browser.window import Window

__all__ = ["Opened", "Pipe", "open_browser"]

START_S = 30.0
# So long may each part of it take to close politely; then it is ended anyway.
CLOSE_S = 1.0
VIEWPORT: ViewportSize = {"width": 1280, "height": 800}  # where nobody sees it
# Where the driver would keep a profile, downloads and traces: the browser's are in the cave, and a driver that
# is told to write by what a hostile browser says finds no place to.
NOWHERE = "/dev/null"
MAX_LOG_LINES = 8
_NOISE = (b"dbus", b"udev", b"NETLINK", b"Fontconfig")
_BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Pipe:
    """The DevTools pipe of one browser, carried while the block is open. ``ended`` is set when it broke."""

    def __init__(self, process: Process, cave: Cave) -> None:
        self._process = process
        self._cave = cave
        self._log: deque[str] = deque(maxlen=MAX_LOG_LINES)
        self._connected: list[UNIXSocketStream] = []
        self._failure: GhostError | None = None
        self._messages = Messages()
        self._killed_before: int | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._killed_before = await self._killed()
        self._tasks.append(asyncio.create_task(self._receive()))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.wait(self._tasks)
        finally:
            await self._disconnect()

    async def connect(self, line: UNIXSocketStream) -> None:
        """Take the driver's two ends from bridge.py, which lives as long as ``line`` is open."""
        self._connected.append(line)
        _, fds = await line.receive_fds(1, 2)
        for fd in fds:
            self._connected.append(await UNIXSocketStream.from_socket(socket.socket(fileno=fd)))
        if self.ended.is_set() or len(fds) != 2:
            await self._disconnect()
            return
        self._tasks.append(asyncio.create_task(self._send()))

    def abort(self) -> None:
        """Give up a browser that does not react: its driver learns at once that it is gone."""
        self._failure = BackendUnavailable("it did not react any more")
        self.ended.set()
        for task in self._tasks:
            task.cancel()

    async def _disconnect(self) -> None:
        connected, self._connected = self._connected, []
        # All of them, when this is cancelled meanwhile, too.
        async with AsyncExitStack() as closing:
            for stream in connected:
                closing.push_async_callback(stream.aclose)

    async def _send(self) -> None:
        """Copy what the driver commands into the browser."""
        commands = self._connected[1]
        with suppress(*_BROKEN, CaveGone):
            while True:
                await self._process.send(await commands.receive())
        if not self.ended.is_set():
            self._failure = BackendUnavailable("its driver ended")
            self.ended.set()

    async def _receive(self) -> None:
        """Copy what the browser says to the driver, and keep the end of its log."""
        try:
            while (piece := await self._process.receive()) is not None:
                channel, data = piece
                if channel == DEVTOOLS:
                    await self._answer(data)
                else:
                    self._logged(data)
            await self._process.wait()
        except GhostError as exc:
            self._failure = exc
        except _BROKEN:
            self._failure = BackendUnavailable("its driver ended")
        finally:
            self.ended.set()
            await self._disconnect()

    async def _answer(self, data: bytes) -> None:
        passed = self._messages.feed(data)
        if passed and len(self._connected) == 3:  # before that nobody has asked it anything
            await self._connected[2].send(passed)

    def _logged(self, data: bytes) -> None:
        for line in data.splitlines():
            if line and not any(word in line for word in _NOISE):
                self._log.append(clean(line.decode("utf-8", "replace"), 300))

    async def until_ended(
        self, stop: asyncio.Event | None = None, timeout_s: float | None = None
    ) -> None:
        """Until the browser has ended, or ``stop`` is set, or the time is over."""
        waits = {asyncio.create_task(event.wait()) for event in (self.ended, stop) if event}
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()

    async def why(self) -> GhostError:
        """Why the browser ended, for the caller whose call it was."""
        code = self._process.poll()
        if isinstance(self._failure, CaveGone):
            return self._failure
        if code == chromium.MISSING:
            return Unsupported(
                f"cave {self._cave.name} has no Chromium",
                hint="Install it where the cave's programs come from (Debian: apt-get install chromium), "
                "or create the cave from an image that has it.",
            )
        how = f" (exit code {code})" if code is not None else ""
        if self._failure is not None:
            how = f": {self._failure.message}"
        short = await self._killed() != self._killed_before
        memory = "The cave ran out of memory: give it more. " if short else ""
        error = BackendUnavailable(
            f"the browser of cave {self._cave.name} ended{how}",
            hint=f"{memory}The next call starts a new one; its tabs are gone.",
            code="browser_ended",
        )
        for line in self._log:
            error.add_note(line)
        return error

    async def _killed(self) -> int | None:
        """How often the cave's memory limit has ended a program, if the backend knows."""
        with suppress(GhostError):
            return (await self._cave.usage()).oom_kills
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A running browser. ``profile`` is its profile's name in the cave; ``seen``: it is on the cave's desktop."""

    window: Window
    pipe: Pipe
    profile: str
    seen: bool


@asynccontextmanager
async def open_browser(cave: Cave, left: Left | None = None) -> AsyncIterator[Opened]:
    """A new Chromium in the cave under a new driver, with a first tab or those that were left; it ends with the block.

    It is on the cave's desktop, when that runs. Raises Unsupported when the cave has no Chromium, BackendUnavailable,
    TimedOut, and what the cave raises.
    """
    profile = left.profile if left is not None else secrets.token_hex(8)
    async with AsyncExitStack() as stack:
        display = await desktop.display(cave, stack)
        argv = chromium.command(profile, seen=bool(display), restored=left is not None)
        process = await stack.enter_async_context(cave.process(argv, env=display, devtools=True))
        pipe = await stack.enter_async_context(Pipe(process, cave))
        # The browser starts in the cave while its driver starts here.
        try:
            async with asyncio.timeout(START_S):
                window = await _open_window(cave, pipe, left, stack, seen=bool(display))
        except TimeoutError:
            raise TimedOut(f"the browser did not start within {START_S:g} s") from None
        except Exception as exc:
            if pipe.ended.is_set():
                raise await pipe.why() from exc
            if isinstance(exc, GhostError):
                raise
            raise BackendUnavailable(
                f"the browser could not be started: {clean(exc, 300)}"
            ) from exc
        yield Opened(window=window, pipe=pipe, profile=profile, seen=bool(display))


async def _open_window(
    cave: Cave, pipe: Pipe, left: Left | None, stack: AsyncExitStack, *, seen: bool
) -> Window:
    heavy = await anyio.to_thread.run_sync(importlib.import_module, "ghost_servers.browser.window")
    opening: type[Window] = heavy.Window
    playwright = await stack.enter_async_context(_driver())
    await opening.prepare(playwright)
    context = await stack.enter_async_context(_launched(playwright, pipe, seen=seen))
    if left is None:
        window = opening(cave, context, [await context.new_page()])
    else:
        window = opening(cave, context, await moving.restored(context, left))
        moving.go_on(window, left)
    stack.push_async_callback(window.aclose)
    await window.watch()
    return window


@asynccontextmanager
async def _driver() -> AsyncIterator[Playwright]:
    from playwright.async_api import async_playwright

    starting = asyncio.create_task(async_playwright().start())
    try:
        yield await asyncio.shield(starting)
    finally:
        stopping = asyncio.create_task(_stopped(starting))
        with suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                await asyncio.shield(stopping)


async def _stopped(starting: asyncio.Task[Playwright]) -> None:
    """Half started a driver cannot be stopped: that is always waited for, if need be after its owner has gone."""
    playwright = await starting
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await playwright.stop()


@asynccontextmanager
async def _launched(
    playwright: Playwright, pipe: Pipe, *, seen: bool
) -> AsyncIterator[BrowserContext]:
    """The browser as the driver sees it. Its "executable" is this Python with bridge.py.

    ``seen``: pages fill the window, whatever size people give it.
    """
    name = f"ghost-{secrets.token_hex(16)}"
    async with await anyio.create_unix_listener(f"\0{name}") as listener:
        launching = asyncio.create_task(
            playwright.chromium.launch_persistent_context(
                user_data_dir=NOWHERE,
                artifacts_dir=NOWHERE,
                accept_downloads=False,
                **({"no_viewport": True} if seen else {"viewport": VIEWPORT}),
                executable_path=sys.executable,
                ignore_default_args=True,
                args=["-I", "-S", str(Path(__file__).with_name("bridge.py")), name],
                env={},
                timeout=START_S * 1000,
            )
        )
        connecting = asyncio.create_task(_connect(listener, pipe))
        try:
            await asyncio.wait({launching, connecting}, return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                connecting.result()
            context = await launching
        finally:
            connecting.cancel()
            launching.cancel()
    try:
        yield context
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await context.close()


async def _connect(listener: Any, pipe: Pipe) -> None:
    """Give the pipe our own bridge's connection: of a process of this user, on a name that only it was told."""
    while True:
        line: UNIXSocketStream = await listener.accept()
        raw: socket.socket = line.extra_attributes[SocketAttribute.raw_socket]()
        peer = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", peer)[1] == os.geteuid():
            await pipe.connect(line)
            return
        await line.aclose()
