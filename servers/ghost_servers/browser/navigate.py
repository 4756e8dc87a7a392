"""navigate: go to a page, through the history, between tabs; or look at the page again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ghost_mcp.errors import InvalidArgument
from ghost_mcp.reply import Reply
from ghost_mcp.tool import Call, tool
from ghost_servers.browser.address import intended
from ghost_servers.browser.report import ChangeResult, page_reply
from ghost_servers.browser.session import use_browser

if TYPE_CHECKING:
    from ghost_servers.browser.loading import Loaded
    from ghost_servers.browser.window import Window

WaitUntil = Literal["load", "domcontentloaded", "networkidle"]
Action = Literal["back", "forward", "reload", "new_tab", "close_tab"]


class NavigateResult(ChangeResult, total=False):
    status: int
    loading: bool


@tool(title="Open a page", effect="write", result=NavigateResult, open_world=True)
async def navigate(
    call: Call,
    *,
    url: Annotated[str | None, Field(description="http(s); localhost is the cave itself.")] = None,
    action: Action | None = None,
    tab: Annotated[int | None, Field(description="Switch to it first.")] = None,
    wait_until: WaitUntil = "load",
    timeout_s: float = 30,
) -> Reply:
    """Open a page in the cave's browser; without url, look at the current one again.

    Returns an outline in which elements have refs like e12 for the other tools.
    """
    if url is not None and action not in (None, "new_tab"):
        raise InvalidArgument(f"navigate: give url or action {action}, not both")
    goal = intended(url) if url is not None else None
    async with use_browser(call, timeout_s) as window:
        await _change_tab(window, tab, action)
        if goal is None and action in ("back", "forward", "reload"):
            goal = action
        loaded: Loaded | None = None
        if goal is not None:
            loaded = await window.load(goal, wait_until)
        await window.ready()
        await window.look()
        if loaded is None:
            return await page_reply(window, [])
        reply = await page_reply(window, [loaded.note], status=loaded.status)
        if loaded.loading:
            reply.data["loading"] = True
        return reply


async def _change_tab(window: Window, tab: int | None, action: Action | None) -> None:
    if tab is not None:
        window.choose(tab)
    if action == "new_tab":
        await window.new_tab()
    elif action == "close_tab":
        await window.close_tab()
