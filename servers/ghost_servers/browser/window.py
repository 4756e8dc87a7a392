# Only this file decides what becomes of pop-ups, dialogs and tabs that go where they may not.
"""One running browser: its tabs, and what happened in them since the last answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from playwright.async_api import Error

from ghost_mcp.errors import GhostError, LimitExceeded, NotFound
from ghost_servers.browser import address, world
from ghost_servers.browser.activity import Activity
from ghost_servers.browser.downloads import Downloads
from ghost_servers.browser.loading import Loaded, WaitUntil, load
from ghost_servers.browser.tab import Tab
from ghost_servers.browser.text import clean

if TYPE_CHECKING:
    from playwright.async_api import (
        BrowserContext,
        ConsoleMessage,
        Dialog,
        Frame,
        Page,
        Playwright,
        WebError,
    )

    from ghost_mcp.cave import Cave

__all__ = ["Happened", "Window"]

MAX_TABS = 10
# A page that asks more often than this within one call is closed: it would ask for ever.
MAX_DIALOGS = 20
MAX_CONSOLE = 100
MAX_NOTES = 10
LOAD_S = 5.0
ANSWER_S = 1.5


@dataclass(slots=True)
class Happened:
    """What a caller is told besides the page itself."""

    dialogs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    closed_popups: int = 0
    console: int = 0


class Window:
    """The tabs of one browser. It hears of what happens after :meth:`watch`."""

    def __init__(self, cave: Cave, context: BrowserContext, pages: Iterable[Page]) -> None:
        self.cave = cave
        self.context = context
        self.tabs: list[Tab] = []
        for page in pages:
            self._adopt(page)
        self.current = self.tabs[0]  # the tab that calls act on
        self.happened = Happened()
        self.dialog_answer: str | None = None  # for confirm and prompt, during one call
        self.following = 1
        self._end = 0.0
        self.downloads = Downloads(cave, context)
        self._tasks: set[asyncio.Task[None]] = set()

    @staticmethod
    async def prepare(playwright: Playwright) -> None:
        """Once for each driver, before it opens a page."""
        await world.prepare(playwright)

    async def watch(self) -> None:
        """From now on what happens in the browser is heard of."""
        self.context.on("page", self._opened)
        self.context.on("dialog", self._asked)
        self.context.on("console", self._logged)
        self.context.on("weberror", self._raised)
        await self.downloads.watch()

    async def aclose(self) -> None:
        await self.downloads.aclose()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def begin(self, end: float) -> None:
        """Be ready for a call that has until ``end``, in seconds of the event loop."""
        self._end = end
        await self.ready()

    def patience_s(self, at_most_s: float = math.inf) -> float:
        """How long the current call may wait for something, so that it can still look and answer."""
        left_s = self._end - asyncio.get_running_loop().time()
        return max(0.2, min(at_most_s, left_s - min(ANSWER_S, left_s / 4)))

    def activity(self) -> Activity:
        """A watch on the current page, for one action."""
        return Activity(self.current.page, self._end)

    # --- tabs ------------------------------------------------------------------------------------

    def choose(self, number: int) -> None:
        """Make the tab of that number, counted from 1, the current one. Raises NotFound."""
        if not 1 <= number <= len(self.tabs):
            raise NotFound(f"there is no tab {number}", hint=f"There are {len(self.tabs)} tabs.")
        self.current = self.tabs[number - 1]

    def turn_to(self, ref: str | None) -> None:
        """Make the tab current in which that reference was told, if it is another one."""
        if ref is not None and not self.current.knows(ref):
            self.current = next((tab for tab in self.tabs if tab.knows(ref)), self.current)

    async def new_tab(self) -> None:
        """Open an empty tab and make it the current one. Raises LimitExceeded."""
        if len(self.tabs) >= MAX_TABS:
            raise LimitExceeded(f"there are {MAX_TABS} tabs", hint="Close one: action close_tab.")
        page = await self.context.new_page()
        self.current = self._adopt(page)

    async def close_tab(self) -> None:
        """Close the current tab; the last one is replaced by an empty one."""
        await self._shut(self.current)
        await self.ready()

    async def ready(self) -> None:
        """See to it that the current tab works: one that crashed is replaced."""
        if self.current.crashed:
            where = clean(self.current.url, 100)
            self._note(f"the tab at {where} crashed and was closed")
            await self._shut(self.current)
        if self.current.page.is_closed():
            await self.new_tab()

    async def reacts(self, timeout_s: float) -> bool:
        """Whether the current tab answers at all."""
        try:
            async with asyncio.timeout(timeout_s):
                await world.ask(self.current.page.main_frame, "changes")
        except (TimeoutError, Error, GhostError):
            return False
        return True

    async def replace(self, timeout_s: float) -> bool:
        """Give up the current tab, which does not answer. False when that does not give one that does."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._shut(self.current)
                if self.current.page.is_closed():
                    await self.new_tab()
                await world.ask(self.current.page.main_frame, "changes")
        except (TimeoutError, Error, GhostError):
            return False
        return True

    async def _shut(self, tab: Tab) -> None:
        await tab.page.close()
        self._left(tab.page)

    def _adopt(self, page: Page) -> Tab:
        known = next((tab for tab in self.tabs if tab.page == page), None)
        if known is not None:
            return known
        tab = Tab(page)
        self.tabs.append(tab)
        page.on("close", self._left)
        page.on("crash", self._crashed)
        page.on("framenavigated", self._went)
        return tab

    def _tab(self, page: Page | None) -> Tab | None:
        return next((tab for tab in self.tabs if tab.page == page), None)

    def _opened(self, page: Page) -> None:
        """A pop-up, or a tab of our own."""
        if len(self.tabs) >= MAX_TABS:
            self.happened.closed_popups += 1
            self._do(page.close)
            return
        self.current = self._adopt(page)

    def _left(self, page: Page) -> None:
        tab = self._tab(page)
        if tab is None:
            return
        self.tabs.remove(tab)
        if tab is self.current and self.tabs:
            self.current = self.tabs[-1]

    def _crashed(self, page: Page) -> None:
        if (tab := self._tab(page)) is not None:
            tab.crashed = True

    def _went(self, frame: Frame) -> None:
        """The second barrier behind Chromium's own: no tab stays at an address of another kind."""
        if frame.parent_frame is None and not address.allowed(frame.url):
            self._note(f"refused: the page went to {clean(frame.url, 100)}")
            self._do(partial(frame.goto, address.BLANK))

    # --- what happens ----------------------------------------------------------------------------

    async def _asked(self, dialog: Dialog) -> None:
        kind, given = dialog.type, self.dialog_answer
        accept = kind in ("alert", "beforeunload") or given not in (None, "dismiss")
        done = "accepted" if accept else "dismissed"
        self.happened.dialogs.append(f'{kind} "{clean(dialog.message, 200)}" {done}')
        with suppress(Error):
            if not accept:
                await dialog.dismiss()
            elif kind == "prompt" and given not in (None, "accept"):
                await dialog.accept(given)
            else:
                await dialog.accept()
            if len(self.happened.dialogs) >= MAX_DIALOGS and dialog.page is not None:
                self._note(f"closed a tab: there were {MAX_DIALOGS} dialogs")
                await dialog.page.close()

    def _logged(self, message: ConsoleMessage) -> None:
        self.happened.console += 1
        if self.happened.console == MAX_CONSOLE:  # until the next answer
            self.context.remove_listener("console", self._logged)
        tab = self._tab(message.page) if message.type == "error" else None
        if tab is not None:
            self._error(tab, message.text)

    def _raised(self, error: WebError) -> None:
        tab = self._tab(error.page)
        if tab is not None:
            self._error(tab, error.error.message)

    def _note(self, text: str) -> None:
        if len(self.happened.notes) < MAX_NOTES:
            self.happened.notes.append(text)

    @staticmethod
    def _error(tab: Tab, text: str) -> None:
        tab.console_errors += 1
        tab.console.append(clean(text, 200))

    def _do(self, work: Callable[[], Awaitable[object]]) -> None:
        async def run() -> None:
            with suppress(Error):
                await work()

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- answering -------------------------------------------------------------------------------

    async def told(self) -> tuple[Happened, list[str]]:
        """What happened since the last answer, and the downloads."""
        downloads = await self.downloads.told()
        happened, self.happened = self.happened, Happened()
        if happened.console >= MAX_CONSOLE:
            self.context.on("console", self._logged)
        return happened, downloads

    async def load(self, goal: str, wait_until: WaitUntil) -> Loaded:
        """Load a URL, or go back, forward, or reload, in the current tab; see loading.load."""
        tab = self.current
        tab.forget_console()
        return await load(
            tab,
            goal,
            wait_until=wait_until,
            end=self._end,
            patience_s=self.patience_s(),
            network=self.cave.info.spec.network.mode,
        )

    async def loaded(self) -> None:
        """Wait until the current tab, which is a new one, has loaded; not longer than LOAD_S."""
        with suppress(Error):
            await self.current.page.wait_for_load_state(
                "load", timeout=self.patience_s(LOAD_S) * 1000
            )

    async def look(self) -> None:
        """See the current tab anew."""
        self.following = await self.current.look(self.following)
