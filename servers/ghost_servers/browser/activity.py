# Only this file decides when the consequences of an action have come.
"""Waits until a page is quiet: no request it owes to the action, no change of its tree."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from playwright.async_api import Error

from ghost_servers.browser import world

if TYPE_CHECKING:
    from playwright.async_api import Frame, Page, Request

__all__ = ["Activity"]

# An action's work shows within a pause, when nothing was seen at all within a longer one; a page that never
# rests is not waited for.
PAUSE_S, LATE_S = 0.03, 0.25
RESTLESS_S = 0.6
REQUESTS_S = 2.0
NAVIGATION_S = 10.0
LOAD_S = 5.0
ASK_S = 1.0
_AWAITED = frozenset({"document", "xhr", "fetch", "script", "stylesheet"})


class Activity:
    """Watches one page from an action's start on. Use it as ``with Activity(page) as activity``."""

    def __init__(self, page: Page, end: float) -> None:
        self._page = page
        self._end = end  # of the call, in seconds of the event loop
        self._pending: set[Request] = set()
        self._leading: Request | None = None  # the request of a page that replaces this one
        self._changed = asyncio.Event()
        self._seen = 0
        self._stirred = False
        self.navigated = False
        self.replaced = False  # by another document

    def __enter__(self) -> Self:
        for event, handler in self._handlers():
            self._page.on(event, handler)  # type: ignore[call-overload]
        return self

    def __exit__(self, *exc: object) -> None:
        for event, handler in self._handlers():
            self._page.remove_listener(event, handler)

    def _handlers(self) -> tuple[tuple[str, object], ...]:
        return (
            ("request", self._asked),
            ("requestfinished", self._answered),
            ("requestfailed", self._answered),
            ("framenavigated", self._went),
            ("close", self._closed),
        )

    def _asked(self, request: Request) -> None:
        if request.resource_type in _AWAITED and len(self._pending) < 500:
            self._pending.add(request)
        with suppress(Error):  # a request without a frame
            if request.is_navigation_request() and request.frame == self._page.main_frame:
                self._leading = request
        self._stirred = True
        self._changed.set()

    def _answered(self, request: Request) -> None:
        self._pending.discard(request)
        if request is self._leading and request.failure is not None:
            self._leading = None
        self._changed.set()

    def _went(self, frame: Frame) -> None:
        if frame == self._page.main_frame:
            self.replaced |= self._leading is not None
            self.navigated, self._leading = True, None
            self._changed.set()

    def _closed(self, page: Page) -> None:
        self._changed.set()

    async def begin(self) -> None:
        """To be called just before the action."""
        self._seen = await self._changes()

    async def until_navigated(self, timeout_s: float) -> None:
        """Wait until the page has been replaced, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.navigated:
                    self._changed.clear()
                    await self._changed.wait()

    @property
    def pending(self) -> bool:
        """Whether the page still loads something that it will show."""
        return bool(self._pending)

    async def quiet(self, *, late: bool = True) -> None:
        """Wait for it, within the bounds above; with ``late`` also a little for what has not begun yet.

        A page that closes meanwhile is quiet.
        """
        self._stirred |= not late
        start = asyncio.get_running_loop().time()
        while not self._page.is_closed():
            await asyncio.sleep(PAUSE_S)
            passed_s = asyncio.get_running_loop().time() - start
            if self._leading is not None and passed_s < NAVIGATION_S:
                await self._change(NAVIGATION_S - passed_s)
            elif self._pending and passed_s < REQUESTS_S:
                await self._change(REQUESTS_S - passed_s)
            elif await self._rests(passed_s):
                break
        if self.navigated and not self._page.is_closed():
            with suppress(Error):
                rest_s = self._end - asyncio.get_running_loop().time()
                await self._page.wait_for_load_state(
                    "load", timeout=max(0.1, min(LOAD_S, rest_s / 2)) * 1000
                )

    async def _rests(self, passed_s: float) -> bool:
        """Whether the page's tree did not change since the last time, or never stops to."""
        seen, self._seen = self._seen, await self._changes()
        self._stirred |= seen != self._seen
        if seen == self._seen:
            return self._stirred or passed_s > LATE_S
        return passed_s > RESTLESS_S

    async def _change(self, timeout_s: float) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    async def _changes(self) -> int:
        try:
            told = (await world.ask(self._page.main_frame, "changes", timeout_s=ASK_S)).get(
                "changes"
            )
        except Error:  # the page is being replaced
            return -2
        return told if isinstance(told, int) else -2
