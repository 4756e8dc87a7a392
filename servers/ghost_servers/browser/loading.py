# Only this file decides when a page counts as loaded.
"""Loading a page into a tab."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from playwright.async_api import Error
from playwright.async_api import TimeoutError as PlaywrightTimeout

from ghost_mcp.errors import Conflict, TimedOut
from ghost_servers.browser import address
from ghost_servers.browser.activity import Activity
from ghost_servers.browser.text import clean

if TYPE_CHECKING:
    from playwright.async_api import Page, Response

    from ghost_servers.browser.tab import Tab

__all__ = ["Loaded", "WaitUntil", "load"]

# A page that is there is waited for so long to be complete; some never are.
LOAD_S = 15.0
# The page that Chromium shows instead of one that failed comes a moment later, and would interrupt the next load.
ERROR_PAGE_S = 0.5
WaitUntil = Literal["load", "domcontentloaded", "networkidle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """``status`` is the server's, ``note`` says what is odd: the page is there but not complete, or never came."""

    status: int | None = None
    loading: bool = False
    note: str = ""


async def load(
    tab: Tab, goal: str, *, wait_until: WaitUntil, end: float, patience_s: float, network: str
) -> Loaded:
    """Load ``goal``: a URL, or back, forward, reload. A page that does not complete is left as it is then.

    Raises what a failed load means, TimedOut when no answer came at all, Conflict without such a history.
    """
    late = asyncio.get_running_loop().time() + patience_s
    with Activity(tab.page, end) as activity:
        try:
            response = await _commit(tab, goal, patience_s)
        except PlaywrightTimeout as exc:
            await _give_up(tab)
            raise TimedOut(
                f"{clean(goal, 200)} did not answer within {patience_s:.1f} s",
                hint="Is the server stuck? Set timeout_s to wait longer.",
            ) from exc
        except Error as exc:
            if "ERR_ABORTED" in exc.message or "Download is starting" in exc.message:
                return Loaded(note="no page came: a download, or the server answered without one")
            if "interrupted by another navigation" not in exc.message:
                await activity.until_navigated(ERROR_PAGE_S)
                raise address.failed(goal, exc.message, network=network) or exc from exc
            response = None  # a script of the page went on to another one
        rest_s = min(LOAD_S, max(0.1, late - asyncio.get_running_loop().time()))
        loaded = await _complete(tab.page, response, wait_until, rest_s)
        if activity.pending and not loaded.loading:  # a page that its scripts fill
            await activity.quiet(late=False)
        return loaded


async def _complete(
    page: Page, response: Response | None, wait_until: WaitUntil, rest_s: float
) -> Loaded:
    status = response.status if response is not None else None
    try:
        await page.wait_for_load_state(wait_until, timeout=rest_s * 1000)
    except PlaywrightTimeout:
        return Loaded(status=status, loading=True, note=f"still loading after {rest_s:.1f} s")
    kind = await response.header_value("content-type") if response is not None else None
    if kind and kind.startswith("application/pdf"):
        note = "this is a PDF: see it by screenshot; to read it, download and convert it"
        return Loaded(status=status, note=note)
    return Loaded(status=status)


async def _give_up(tab: Tab) -> None:
    with suppress(Error):
        await (await tab.devtools()).send("Page.stopLoading")


async def _commit(tab: Tab, goal: str, patience_s: float) -> Response | None:
    page, timeout = tab.page, patience_s * 1000
    if goal == "reload":
        return await page.reload(wait_until="commit", timeout=timeout)
    if goal not in ("back", "forward"):
        return await page.goto(goal, wait_until="commit", timeout=timeout)
    await _require_history(tab, page, goal)
    if goal == "back":
        return await page.go_back(wait_until="commit", timeout=timeout)
    return await page.go_forward(wait_until="commit", timeout=timeout)


async def _require_history(tab: Tab, page: Page, goal: str) -> None:
    history = await (await tab.devtools()).send("Page.getNavigationHistory")
    index, entries = history.get("currentIndex"), history.get("entries")
    count = len(entries) if isinstance(entries, list) else 0
    if (index == 0) if goal == "back" else (index == count - 1):
        raise Conflict(f"there is no page to go {goal} to from {clean(page.url, 200)}")
