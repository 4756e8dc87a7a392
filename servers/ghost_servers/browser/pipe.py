# Only this file touches the bytes between a browser in a cave and its driver here. Nothing listens on the host.
"""A browser in a cave, connected to a Playwright driver of its own through the cave's link.

The driver starts what it takes for a browser: bridge.py, which hands its DevTools pipe over to this process.
From then on the bytes flow driver <-> this process <-> link <-> Chromium's descriptors 3 and 4 in the cave.
Each browser has its own driver: any program of a cave can write into its browser's pipe, and a driver
that reads nonsense there dies.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.abc import SocketAttribute, UNIXSocketStream

from ghost_mcp.cave import DEVTOOLS
from ghost_mcp.errors import BackendUnavailable, CaveGone, GhostError, TimedOut, Unsupported
from ghost_servers.browser import chromium
from ghost_servers.browser.text import clean

if TYPE_CHECKING:
    from anyio.abc import Listener
    from playwright.async_api import Browser, Playwright

    from ghost_mcp.cave import Cave, Process

__all__ = ["Pipe", "open_browser"]

START_S = 30.0
# Closing politely lets the driver remove its own temporary files; then it is ended anyway.
CLOSE_S = 2.0
# One DevTools message; a picture of a huge page is the largest. The driver holds a whole one in memory.
MAX_MESSAGE = 64 << 20
MAX_LOG_LINES = 8
_NOISE = (b"dbus", b"udev", b"NETLINK", b"Fontconfig")
_BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Pipe:
    """The DevTools pipe of one browser. ``ended`` is set when the browser has; ``why()`` says how."""

    def __init__(self, process: Process, cave: Cave) -> None:
        self._process = process
        self._cave = cave
        self._log: deque[str] = deque(maxlen=MAX_LOG_LINES)
        self._to_driver: UNIXSocketStream | None = None
        self._failure: GhostError | None = None
        self._unfinished = 0
        self.ended = anyio.Event()

    async def carry(self, ends: list[UNIXSocketStream]) -> None:
        """Copy what the driver sends into the browser, until either of them ends. What the browser sends
        is copied by :meth:`watch`."""
        commands, self._to_driver = ends
        with suppress(*_BROKEN, CaveGone):
            while True:
                await self._process.send(await commands.receive())

    async def watch(self) -> None:
        """Receive what the browser sends, from its start to its end: DevTools messages, and its log."""
        try:
            while (piece := await self._process.receive()) is not None:
                channel, data = piece
                if channel == DEVTOOLS:
                    await self._devtools(data)
                else:
                    self._logged(data)
            await self._process.wait()
        except GhostError as exc:
            self._failure = exc
        except _BROKEN:
            self._failure = BackendUnavailable("the browser's driver ended")
        finally:
            self.ended.set()

    async def _devtools(self, data: bytes) -> None:
        """Pass bytes on to the driver. Messages end with NUL; one that does not end would fill the memory."""
        end = data.rfind(b"\0")
        self._unfinished = len(data) - end - 1 if end >= 0 else self._unfinished + len(data)
        if self._unfinished > MAX_MESSAGE:
            raise BackendUnavailable("the browser sent a message that is too large")
        if self._to_driver is not None:  # nobody has asked it anything before
            await self._to_driver.send(data)

    def _logged(self, data: bytes) -> None:
        for line in data.splitlines():
            if line and not any(word in line for word in _NOISE):
                self._log.append(clean(line.decode("utf-8", "replace"), 300))

    async def why(self) -> GhostError:
        """Why the browser ended, for the caller whose call it was."""
        code = self._process.poll()
        if isinstance(self._failure, CaveGone):
            return self._failure
        if code == chromium.MISSING:
            return Unsupported(
                f"cave {self._cave.name} has no Chromium",
                hint="Install it where the cave's files come from (Debian: apt-get install chromium), "
                "or create the cave from an image that has it.",
            )
        how = f" (exit code {code})" if code is not None else ""
        if self._failure is not None:
            how = f": {self._failure.message}"
        error = BackendUnavailable(
            f"the browser of cave {self._cave.name} ended{how}",
            hint=f"{await self._short_of_memory()}The next call starts a new one; its tabs are gone.",
            code="browser_ended",
        )
        for line in self._log:
            error.add_note(line)
        return error

    async def _short_of_memory(self) -> str:
        with suppress(GhostError):
            if (await self._cave.usage()).oom_kills:
                return "The cave ran out of memory: give it more. "
        return ""


@asynccontextmanager
async def open_browser(cave: Cave) -> AsyncIterator[tuple[Playwright, Browser, Pipe]]:
    """A new Chromium in the cave under a new driver; both end with the block.

    Raises Unsupported when the cave has no Chromium, BackendUnavailable, TimedOut, and what the cave raises.
    """
    async with cave.process(chromium.command(), devtools=True) as process:
        pipe = Pipe(process, cave)
        async with anyio.create_task_group() as tasks, _driver() as playwright:
            tasks.start_soon(pipe.watch)
            try:
                with anyio.fail_after(START_S):
                    browser = await _launch(playwright, pipe, tasks.start_soon)
            except TimeoutError:
                raise TimedOut(f"the browser did not start within {START_S:g} s") from None
            try:
                yield playwright, browser, pipe
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_S):
                    await browser.close()
                tasks.cancel_scope.cancel()
