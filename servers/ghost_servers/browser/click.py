"""click: press a mouse button on an element or a point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import anyio
from pydantic import Field

from ghost_mcp.errors import InvalidArgument
from ghost_mcp.reply import Reply
from ghost_mcp.tool import Call, tool
from ghost_servers.browser.report import ChangeResult, act
from ghost_servers.browser.session import use_browser
from ghost_servers.browser.text import clean

if TYPE_CHECKING:
    from ghost_servers.browser.tab import Tab
    from ghost_servers.browser.window import Window

Modifier = Literal["Alt", "Control", "Meta", "Shift"]
Button = Literal["left", "right", "middle"]
# So long is waited for an element to be visible, at rest and uncovered.
PATIENCE_S = 5.0
RELEASE_S = 1.0
MAX_SIDE = 100_000


@tool(title="Click", effect="write", result=ChangeResult, open_world=True)
async def click(
    call: Call,
    *,
    ref: Annotated[str | None, Field(description="From an outline, like e12.")] = None,
    selector: str | None = None,
    text: Annotated[str | None, Field(description="Visible name of the element.")] = None,
    x: float | None = None,
    y: float | None = None,
    button: Button = "left",
    count: int = 1,
    modifiers: list[Modifier] | None = None,
    dialog: Annotated[
        str | None, Field(description="Answer confirm or prompt: accept, or the text.")
    ] = None,
    timeout_s: float = 15,
) -> Reply:
    """Click one element (ref, selector or text) or a point of the window. Returns what changed on the page."""
    point = (x, y) if x is not None and y is not None else None
    if sum(given is not None for given in (ref, selector, text, point)) != 1 or (x is None) != (
        y is None
    ):
        raise InvalidArgument("click: give one of ref, selector, text, or both x and y")
    if not 1 <= count <= 3:
        raise InvalidArgument("count must be 1 to 3")
    if point is not None and not all(0 <= side <= MAX_SIDE for side in point):
        raise InvalidArgument(f"x and y must be 0 to {MAX_SIDE}")

    async def press(window: Window) -> str:
        tab = window.current
        if point is not None:
            return await _at(tab, point, button, count, modifiers or [])
        element = await tab.find(ref=ref, selector=selector, text=text)
        await element.click(
            button=button,
            click_count=count,
            modifiers=modifiers,
            timeout=window.patience_s(PATIENCE_S) * 1000,
        )
        return f"clicked {clean(ref or selector or text, 100)}"

    async with use_browser(call, timeout_s) as window:
        window.dialog_answer = dialog
        try:
            window.turn_to(ref)
            return await act(window, press)
        finally:
            window.dialog_answer = None


async def _at(
    tab: Tab, point: tuple[float, float], button: Button, count: int, modifiers: list[Modifier]
) -> str:
    keyboard = tab.page.keyboard
    try:
        for key in modifiers:
            await keyboard.down(key)
        await tab.page.mouse.click(*point, button=button, click_count=count)
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(RELEASE_S):
            for key in modifiers:
                await keyboard.up(key)
    return f"clicked at {point[0]:g}, {point[1]:g}"
