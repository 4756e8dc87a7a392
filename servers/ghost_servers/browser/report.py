# What every tool of this server answers with is put together here.
"""A page as an answer: whole after a load, what changed after an action."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from ghost_mcp.reply import Reply
from ghost_servers.browser.outline import compare, excerpt
from ghost_servers.browser.text import bounded, clean

if TYPE_CHECKING:
    from ghost_servers.browser.tab import Tab
    from ghost_servers.browser.window import Window

__all__ = ["ChangeResult", "act", "page_reply"]

URL_CHARS = 500
DIALOG_CHARS, EVENTS_CHARS = 1_000, 2_500


class ChangeResult(TypedDict, total=False):
    url: str
    title: str
    changes: str
    outline: str
    events: list[str]
    tabs: list[str]


async def act(window: Window, action: Callable[[Window], Awaitable[str]]) -> Reply:
    """Do something to the current page and tell what came of it.

    ``action`` answers with what it did, in a few words. A new document, or a new tab, is told by its
    outline, else the difference to the outline that was told last.
    """
    tab = window.current
    if not tab.lines:
        await window.look()
    before, url = tab.lines, tab.page.url
    with window.activity() as activity:
        await activity.begin()
        done = await action(window)
        await activity.quiet()
    await window.ready()
    if window.current is not tab:
        await window.loaded()
    await window.look()
    if window.current is not tab or activity.replaced:
        return await page_reply(window, [done, _place(tab, window, url)])
    changes = compare(before, tab.lines)
    moved = _place(tab, window, url) if tab.page.url != url else ""
    same = "" if changes or moved else "nothing changed that the outline shows"
    return await page_reply(window, [done, moved, same], changes=changes)


def _place(tab: Tab, window: Window, url: str) -> str:
    now = clean(window.current.page.url, URL_CHARS)
    if window.current is tab:
        return f"now at {now}" if tab.page.url != url else "the page was loaded again"
    return f"now in another tab, at {now}"


async def page_reply(
    window: Window, done: list[str], *, changes: str | None = None, status: int | None = None
) -> Reply:
    """The current page, as it was looked at last: its outline, or only ``changes`` when they are given."""
    tab = window.current
    data: dict[str, Any] = {"url": clean(tab.page.url, URL_CHARS), "title": await tab.title()}
    text = [line for line in done if line]
    if changes is None:
        data["outline"] = excerpt(tab.lines)
        text.append(_heading(data, status))
        text.append(data["outline"] or "(nothing to see on this page)")
    else:
        data["changes"] = changes
        text += [f"changed:\n{changes}"] if changes else []
    if status is not None:
        data["status"] = status
    await _besides(window, data, text)
    return Reply(text="\n".join(text), data=data)


def _heading(data: dict[str, Any], status: int | None) -> str:
    shown = f' "{data["title"]}"' if data["title"] else ""
    return f"{data['url']}{shown}{f' (status {status})' if status is not None else ''}"


async def _besides(window: Window, data: dict[str, Any], text: list[str]) -> None:
    """What happened besides: dialogs, downloads, errors in the console; and the tabs when there are several."""
    happened, downloads = await window.told()
    events = bounded([f"dialog: {line}" for line in happened.dialogs], DIALOG_CHARS, "more dialogs")
    events += [f"download: {line}" for line in downloads]
    events += [f"note: {line}" for line in happened.notes]
    if happened.closed_popups:
        events.append(f"note: {happened.closed_popups} more pop-ups were closed at once")
    if count := window.current.console_errors:
        events += [f"console error: {line}" for line in window.current.console]
        if count > len(window.current.console):
            events.append(f"console errors: {count} in all")
        window.current.forget_console()
    if events:
        data["events"] = bounded(events, EVENTS_CHARS, "more events")
        text += data["events"]
    if len(window.tabs) > 1:
        data["tabs"] = [_tab_line(window, tab) for tab in window.tabs]
        text += ["tabs:", *data["tabs"]]


def _tab_line(window: Window, tab: Tab) -> str:
    mark = " (current)" if tab is window.current else ""
    return f"{window.tabs.index(tab) + 1}: {clean(tab.page.url, 100)}{mark}"
