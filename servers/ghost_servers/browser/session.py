# Only this file decides when a cave's browser starts and ends, and that every call on it ends in time.
"""The browser of one cave: started on first use, again after it has ended, closed with what keeps it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from ghost_mcp.errors import Conflict, GhostError, InvalidArgument, TimedOut
from ghost_servers.browser import desktop, moving
from ghost_servers.browser.pipe import open_browser

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave
    from ghost_mcp.tool import Call
    from ghost_servers.browser.moving import Left
    from ghost_servers.browser.pipe import Opened
    from ghost_servers.browser.window import Window

__all__ = ["BrowserSession", "use_browser"]

MIN_S, MAX_S = 1.0, 300.0
# What is kept of a call's time, at most so much and at most this share, to see whether the page still reacts.
LOOK_S, LOOK_SHARE = 0.5, 0.2
# A tab that does not react is closed after the call has ended, within this; else the browser is ended.
REPLACE_S = 4.0
CLOSE_S = 2.5
# Playwright tells that the browser is gone a moment before the browser's own end arrives.
NEWS_S = 0.5
_log = logging.getLogger(__name__)


def use_browser(call: Call, timeout_s: float) -> AbstractAsyncContextManager[Window]:
    """The window of the browser in the call's cave; see :meth:`BrowserSession.use`."""
    return call.keep.get("browser", lambda: BrowserSession(call.cave)).use(timeout_s)


class BrowserSession:
    """One at most for each cave. A call goes through :meth:`use`; :meth:`aclose` ends the browser."""

    def __init__(self, cave: Cave) -> None:
        self._cave = cave
        self._lock = asyncio.Lock()
        self._started: asyncio.Future[Opened] | None = None
        self._owner: asyncio.Task[None] | None = None
        self._repair: asyncio.Task[None] | None = None
        self._mover: asyncio.Task[None] | None = None
        self._told = True  # whether a caller was told why there is no browser
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def use(self, timeout_s: float) -> AsyncIterator[Window]:
        """The window, for one call alone, which ends within ``timeout_s``. Raises TimedOut and what starting raises.

        A page that does not react any more loses its tab, a browser that does not react is ended: the next
        call works.
        """
        if not MIN_S <= timeout_s <= MAX_S:
            raise InvalidArgument(f"timeout_s must be {MIN_S:g} to {MAX_S:g}")
        look_s = min(LOOK_S, timeout_s * LOOK_SHARE)
        end = asyncio.get_running_loop().time() + timeout_s - look_s
        try:
            async with asyncio.timeout_at(end):
                await self._lock.acquire()
        except TimeoutError:
            raise TimedOut("another call still uses this browser") from None
        try:
            async with self._bounded(end, timeout_s, look_s):
                running = await self._ready()
                async with self._explained(running):
                    await running.window.begin(end)
                    yield running.window
        finally:
            self._lock.release()

    @asynccontextmanager
    async def _bounded(self, end: float, timeout_s: float, look_s: float) -> AsyncIterator[None]:
        """End what runs longer; after anything that took too long, see to it that the next call works."""
        try:
            async with asyncio.timeout_at(end):
                yield
        except TimeoutError:
            hint = await self._recover(look_s)
            raise TimedOut(f"this took longer than {timeout_s:g} s", hint=hint) from None
        except TimedOut as exc:
            exc.hint = await self._recover(look_s) or exc.hint
            raise

    async def _recover(self, look_s: float) -> str:
        """Begin to replace the current tab if it does not react. Returns what is lost, or nothing."""
        running = self._running()
        if running is None or await running.window.reacts(look_s):
            return ""
        self._repair = asyncio.create_task(self._replace(running))
        return "The page does not react any more: its tab is closed."

    async def _replace(self, running: Opened) -> None:
        if not await running.window.replace(REPLACE_S):
            self._started = None  # that it is lost was told by the call that found it so
            running.pipe.abort()

    @asynccontextmanager
    async def _explained(self, running: Opened) -> AsyncIterator[None]:
        """Errors of Playwright as what they mean here: when the browser has ended, that."""
        from ghost_servers.browser import failures  # heavy, and loaded by now

        try:
            yield
        except failures.Error as exc:
            if "closed" in exc.message:
                await running.pipe.until_ended(timeout_s=NEWS_S)
            if running.pipe.ended.is_set():
                self._started = None  # told by this
                raise await running.pipe.why() from exc
            error = failures.translated(exc)
            if running.window.happened.notes:
                error.hint = "; ".join(running.window.happened.notes[:3])
            raise error from exc

    def _running(self) -> Opened | None:
        """What runs now, if it does."""
        started = self._started
        if started is None or not started.done() or started.exception():
            return None
        running = started.result()
        return None if running.pipe.ended.is_set() else running

    async def _ready(self) -> Opened:
        """The running browser; a new one when there is none, or it has ended."""
        await self._repaired()
        running = self._running()
        if running is not None:
            return running
        started = self._started
        if started is None or started.done():
            await self._tell_end()
            await self.aclose()
            started = self._begin()
        # Another call waits for the same start when this one gives up.
        return await asyncio.shield(started)

    async def _repaired(self) -> None:
        if self._repair is not None:
            await asyncio.wait([self._repair])
            self._repair = None

    async def _tell_end(self) -> None:
        """Raise once why the last browser ended, when it was not we who ended it: its tabs are gone."""
        last, self._started = self._started, None
        told, self._told = self._told, True
        if last is None:
            return
        if (failure := last.exception()) is None:
            raise await last.result().pipe.why()
        if not told:
            raise failure

    def _begin(self, left: Left | None = None) -> asyncio.Future[Opened]:
        self._stop = asyncio.Event()
        self._started = started = asyncio.get_running_loop().create_future()
        self._owner = asyncio.create_task(self._own(started, self._stop, left))
        return started

    async def _own(
        self, started: asyncio.Future[Opened], stop: asyncio.Event, left: Left | None
    ) -> None:
        """Hold a browser from its start to its end, in one task."""
        try:
            async with open_browser(self._cave, left) as opened:
                started.set_result(opened)
                if not opened.seen and left is None:
                    self._mover = asyncio.create_task(self._move(opened))
                await opened.pipe.until_ended(stop)
        except asyncio.CancelledError:
            if not started.done():
                _fail(started, Conflict("the browser was closed while it started"))
            raise
        except Exception as exc:  # noqa: BLE001  (handed to the call that waits)
            if started.done():
                _log.debug("a browser's end", exc_info=exc)
                return
            _fail(started, exc)

    async def _move(self, opened: Opened) -> None:
        """Take a browser that nobody sees onto its cave's desktop, once that runs and no call is under way."""
        with suppress(GhostError):  # the cave is gone
            await desktop.until_open(self._cave)
            async with self._lock:
                await self._repaired()
                if self._running() is opened:
                    left = await moving.leave(opened)
                    await self._end()
                    started = self._begin(left)
                    await asyncio.wait([started])
                    self._told = not started.exception()

    async def aclose(self) -> None:
        """End the browser, if there is one, within CLOSE_S."""
        for task in (self._repair, self._mover):
            if task is not None:
                task.cancel()
        await self._end()

    async def _end(self) -> None:
        owner, self._owner, self._started = self._owner, None, None
        if owner is None:
            return
        self._stop.set()
        try:
            await asyncio.wait([owner], timeout=CLOSE_S)
        finally:
            owner.cancel()
        await asyncio.wait([owner], timeout=CLOSE_S)


def _fail(started: asyncio.Future[Opened], exc: Exception) -> None:
    started.set_exception(exc)
    started.exception()  # seen, even when the call that waited has been cancelled
