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

# An action's own work shows within a pause; a page that never rests is not waited for.
PAUSE_S = 0.04
RESTLESS_S = 1.0
REQUESTS_S = 2.0
NAVIGATION_S = 10.0
_AWAITED = frozenset({"document", "xhr", "fetch", "script", "stylesheet"})


class Activity:
    """Watches one page from an action's start on. Use it as ``with Activity(page) as activity``."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._pending: set[Request] = set()
        self._leading: Request | None = None  # the request of a page that replaces this one
        self._changed = asyncio.Event()
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

    async def quiet(self) -> None:
        """Wait for it, within the bounds above. A page that closes meanwhile is quiet."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        seen = -1
        while not self._page.is_closed():
            await asyncio.sleep(PAUSE_S)
            passed = loop.time() - start
            if self._leading is not None and passed < NAVIGATION_S:
                await self._change(NAVIGATION_S - passed)
            elif self._pending and passed < REQUESTS_S:
                await self._change(REQUESTS_S - passed)
            else:
                changes = await self._changes()
                if changes == seen or passed > RESTLESS_S:
                    break
                seen = changes
        if self.navigated and not self._page.is_closed():
            with suppress(Error):
                await self._page.wait_for_load_state("load", timeout=NAVIGATION_S * 500)

    async def _change(self, timeout_s: float) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    async def _changes(self) -> int:
        try:
            told = (await world.ask(self._page.main_frame, "changes", timeout_s=RESTLESS_S)).get(
                "changes"
            )
        except Error:  # the page is being replaced
            return -2
        return told if isinstance(told, int) else -2
