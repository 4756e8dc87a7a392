"""scroll: move what is seen of a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ghost_mcp.errors import InvalidArgument
from ghost_mcp.reply import Reply
from ghost_mcp.tool import Call, tool
from ghost_servers.browser import world
from ghost_servers.browser.outline import Line, compare, excerpt
from ghost_servers.browser.report import ChangeResult, page_reply
from ghost_servers.browser.session import use_browser

if TYPE_CHECKING:
    from playwright.async_api import Frame, Locator

    from ghost_servers.browser.window import Window

Direction = Literal["down", "up", "left", "right"]
MAX_PIXELS = 1_000_000
VIEW_CHARS = 1_800


class ScrollResult(ChangeResult, total=False):
    position: str


@tool(title="Scroll", effect="write", result=ScrollResult)
async def scroll(
    call: Call,
    *,
    direction: Direction | None = None,
    amount: Annotated[int | None, Field(description="Pixels.")] = None,
    to: Literal["top", "bottom"] | None = None,
    ref: Annotated[
        str | None, Field(description="Into view; with direction or to, inside.")
    ] = None,
    selector: str | None = None,
    timeout_s: float = 15,
) -> Reply:
    """Scroll the page, or a pane of it; tells what came into view."""
    if amount is not None and not 1 <= amount <= MAX_PIXELS:
        raise InvalidArgument(f"amount must be 1 to {MAX_PIXELS}")
    if ref is not None and selector is not None:
        raise InvalidArgument("scroll: give ref or selector, not both")
    async with use_browser(call, timeout_s) as window:
        window.turn_to(ref)
        tab = window.current
        if not tab.lines:
            await window.look()
        before = tab.lines
        with window.activity() as activity:
            await activity.begin()
            where: Frame | Locator = tab.page.main_frame
            if ref is not None or selector is not None:
                where = element = await tab.find(ref=ref, selector=selector)
                await element.scroll_into_view_if_needed(timeout=window.patience_s() * 1000)
            inside = where is tab.page.main_frame or direction is not None or to is not None
            told = await _scroll(where, direction, amount, to) if inside else {}
            await activity.quiet(late=False)
        await window.ready()
        await window.look()
        return await _reply(window, before, told)


async def _scroll(
    where: Frame | Locator, direction: Direction | None, amount: int | None, to: str | None
) -> dict[str, Any]:
    sign = -1 if direction in ("up", "left") else 1
    step = {"pages": sign} if amount is None else {"px": sign * amount}
    across = direction in ("left", "right")
    return await world.ask(
        where, "scroll", x=step if across else {}, y={} if across else step, to=to
    )


async def _reply(window: Window, before: list[Line], told: dict[str, Any]) -> Reply:
    lines = window.current.lines
    seen = {(line.ref, line.text) for line in before if line.at == 0}
    view = [line for line in lines if line.at == 0 and (line.ref, line.text) not in seen]
    position = _position(told)
    reply = await page_reply(window, [position], changes=compare(before, lines))
    if position:
        reply.data["position"] = position
    if view:
        reply.data["outline"] = excerpt(view, VIEW_CHARS)
        reply.text += f"\nnow in view:\n{reply.data['outline']}"
    return reply


def _position(told: dict[str, Any]) -> str:
    """Where the page, or the pane, stands now."""
    top, rest, moved = told.get("top"), told.get("rest"), told.get("moved")
    if not isinstance(top, int) or not isinstance(rest, int):
        return ""
    stays = "" if moved != [0, 0] else "it did not move: "
    return f"{stays}{max(0, top)} px above, {max(0, rest)} px below"
