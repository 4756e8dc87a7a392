# Only this file knows what of a browser outlives its end, and how the next one goes on with it.
"""A browser moves: it is closed in one place and started in another, with its profile and its tabs.

Chromium restores them itself: their histories, storage and session cookies, what was typed into forms, how far was
scrolled. It loads the pages again, so what only their scripts held is gone; and of the last second it may know nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ghost_servers.browser import address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from playwright.async_api import BrowserContext, Page

    from ghost_servers.browser.pipe import Opened
    from ghost_servers.browser.tab import Tab
    from ghost_servers.browser.window import Happened, Window

__all__ = ["Left", "go_on", "leave", "restored"]

# A page tells Chromium a second later what was typed into it, and how far it was scrolled.
SETTLE_S = 1.3
CLOSE_S = 8.0
RESTORE_S = 5.0
PAUSE_S = 0.05
LOAD_S = 5.0
_NOTE = (
    "the desktop was opened, and the browser moved onto it, where people see it: tabs, histories, cookies and storage "
    "are kept, the pages were loaded again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a browser left: its profile, its tabs with where they were, and what nobody was told yet."""

    profile: str
    tabs: tuple[Tab, ...]
    urls: tuple[str, ...]
    current: int
    following: int
    happened: Happened


async def leave(opened: Opened) -> Left:
    """Close a browser so that the next one can go on; one that does not close in time is left as it is then."""
    from playwright.async_api import Error  # heavy, and loaded by now

    window = opened.window
    tabs = tuple(window.tabs)
    current = tabs.index(window.current) if window.current in tabs else 0
    urls = tuple(tab.page.url for tab in tabs)
    happened = window.happened
    with suppress(Error, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            happened = await _told(window)
            if tabs:
                await tabs[current].page.bring_to_front()
            await asyncio.sleep(SETTLE_S)
            await window.context.close()
            await opened.pipe.until_ended()
    happened.notes.append(_NOTE)
    return Left(
        profile=opened.profile,
        tabs=tabs,
        urls=urls,
        current=current,
        following=window.following,
        happened=happened,
    )


async def _told(window: Window) -> Happened:
    """What nobody was told yet, the downloads with it: they end here."""
    await window.downloads.cancel("the browser moved; begin it again")
    happened, downloads = await window.told()
    happened.notes += [f"download {line}" for line in downloads]
    return happened


async def restored(context: BrowserContext, left: Left) -> list[Page]:
    """The pages of the tabs that were left, in their order: Chromium opens them again, we those that it does not."""
    from playwright.async_api import Error

    await _until_back(context, left.urls)
    pages = list(context.pages)
    found = _matched(pages, left.urls)
    there = [page or await context.new_page() for page in found] or [await context.new_page()]
    with suppress(Error, TimeoutError):
        async with asyncio.timeout(LOAD_S):
            for page, was, url in zip(there, found, left.urls, strict=False):
                if was is None and url.startswith(("http://", "https://")):
                    await page.goto(url, wait_until="commit")
            for page in pages:  # Chromium's own
                await page.close()
            await there[left.current].bring_to_front()
            await there[left.current].wait_for_load_state("load")
    return there


async def _until_back(context: BrowserContext, urls: Sequence[str]) -> None:
    """Wait until Chromium has opened them again; some may lead elsewhere now."""
    for _ in range(int(RESTORE_S / PAUSE_S)):
        if not Counter(urls) - Counter(page.url for page in context.pages):
            return
        await asyncio.sleep(PAUSE_S)


def _matched(pages: list[Page], urls: Sequence[str]) -> list[Page | None]:
    """Take the page of each URL out of ``pages``; one that leads elsewhere now stands for any that is not there."""
    exact = [_take(pages, url.__eq__) for url in urls]
    return [page or _take(pages, address.allowed) for page in exact]


def _take(pages: list[Page], fits: Callable[[str], bool]) -> Page | None:
    page = next((page for page in pages if fits(page.url)), None)
    if page is not None:
        pages.remove(page)
    return page


def go_on(window: Window, left: Left) -> None:
    """Make the window, which has the restored pages, what the last one was to those who call."""
    for tab, old in zip(window.tabs, left.tabs, strict=False):
        tab.inherit(old)
    window.current = window.tabs[left.current]
    window.following = left.following
    window.happened = left.happened
