"""type: write into an element and press keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ghost_mcp.errors import InvalidArgument, NotFound
from ghost_mcp.reply import Reply
from ghost_mcp.tool import Call, tool
from ghost_servers.browser import world
from ghost_servers.browser.click import PATIENCE_S
from ghost_servers.browser.report import ChangeResult, act
from ghost_servers.browser.session import use_browser
from ghost_servers.browser.text import clean
from ghost_servers.browser.upload import choose_files

if TYPE_CHECKING:
    from playwright.async_api import Locator, Page

    from ghost_servers.browser.window import Window

MAX_CHARS = 100_000
MAX_KEYS = 50
OPTION_S = 1.0
# Up to so many characters each one is a key press, as pages that complete words want it.
KEYED_CHARS = 200
# Inputs whose value is set, because what their keys do depends on the language of the browser.
_SET = frozenset({"date", "time", "datetime-local", "month", "week", "color", "range"})

_ALIASES = {
    "ctrl": "Control",
    "cmd": "Meta",
    "option": "Alt",
    "esc": "Escape",
    "return": "Enter",
    "del": "Delete",
    "up": "ArrowUp",
    "down": "ArrowDown",
    "left": "ArrowLeft",
    "right": "ArrowRight",
}
_PRESSED = frozenset(
    {"button", "link", "checkbox", "radio", "switch", "tab", "menuitem", "option", "image"}
)


@tool(title="Type", effect="write", result=ChangeResult, open_world=True)
async def type_(
    call: Call,
    *,
    text: Annotated[
        str | None,
        Field(description="For a select the option, for a file input a path in the cave."),
    ] = None,
    ref: Annotated[str | None, Field(description="Default: what has the focus.")] = None,
    selector: str | None = None,
    clear: bool = False,
    keys: Annotated[
        list[str] | None, Field(description="Pressed after the text: Control+A, ArrowDown.")
    ] = None,
    submit: Annotated[bool, Field(description="Press Enter.")] = False,
    timeout_s: float = 15,
) -> Reply:
    """Type text into an element or press keys. Returns what changed on the page."""
    if text is None and not keys and not submit and not clear:
        raise InvalidArgument("type: give text or keys")
    if ref is not None and selector is not None:
        raise InvalidArgument("type: give ref or selector, not both")
    if len(text or "") > MAX_CHARS or len(keys or []) > MAX_KEYS:
        raise InvalidArgument(f"at most {MAX_CHARS} characters and {MAX_KEYS} keys at once")

    async def write(window: Window) -> str:
        done = await _write(call, window, text, ref, selector, clear=clear)
        for key in [*(keys or []), *(["Enter"] if submit else [])]:
            await window.current.page.keyboard.press(_chord(key))
        pressed = f"pressed {clean(' '.join(keys or []), 100)}" if keys else ""
        return ", ".join(filter(None, [done, pressed, "submitted" if submit else ""]))

    async with use_browser(call, timeout_s) as window:
        window.turn_to(ref)
        return await act(window, write)


async def _write(
    call: Call,
    window: Window,
    text: str | None,
    ref: str | None,
    selector: str | None,
    *,
    clear: bool,
) -> str:
    """Bring text into the element that was named, or has the focus; says what was done."""
    tab, patience = window.current, window.patience_s(PATIENCE_S) * 1000
    element: Locator | None = None
    if ref is not None or selector is not None:
        element = await tab.find(ref=ref, selector=selector)
    told = await world.ask(element or tab.page.main_frame, "describe")
    if text is None and not clear:
        if element is not None:
            await element.focus(timeout=patience)
        return ""
    if element is None:
        return await _write_focused(tab.page, told, text or "", clear=clear)
    kind = told.get("type")
    if kind == "file":
        return await choose_files(call.cave, tab, element, text or "")
    if kind == "select":
        await element.select_option(text or "", timeout=min(patience, OPTION_S * 1000))
        return f"chose {clean(text, 100)}"
    if kind in _SET:
        await element.fill(text or "", timeout=patience)
        return _typed(text)
    await _require_text(element, told, patience)
    if clear:
        await element.fill("", timeout=patience)
    await _keyed(tab.page, text or "", at_end=not clear)
    return _typed(text)


async def _require_text(element: Locator, told: dict[str, Any], patience: float) -> None:
    """Give the element the focus. Raises InvalidArgument when it is none that takes text."""
    item = told.get("item")
    role = item.get("role") if isinstance(item, dict) else None
    if role not in _PRESSED:
        await element.focus(timeout=patience)
        item = (await world.ask(element, "describe")).get("item")
        if isinstance(item, dict) and item.get("focused") is True:
            return
    raise InvalidArgument(
        f"a {clean(role, 20)} takes no text", hint="Click it, or give the ref of a text field."
    )


async def _write_focused(page: Page, told: dict[str, Any], text: str, *, clear: bool) -> str:
    if told.get("item") is None and len(text) > KEYED_CHARS:
        raise NotFound("nothing has the focus", hint="Give the ref of the element to type into.")
    if clear:
        await page.keyboard.press("Control+A")
        await page.keyboard.press("Delete")
    await _keyed(page, text, at_end=False)
    return _typed(text)


async def _keyed(page: Page, text: str, *, at_end: bool) -> None:
    if at_end and text:
        await page.keyboard.press("Control+End")
    if len(text) <= KEYED_CHARS:
        await page.keyboard.type(text)
    else:
        await page.keyboard.insert_text(text)


def _chord(keys: str) -> str:
    """A key or chord as Playwright names it. Control+K is what a keyboard gives: k, as long as Shift is up."""
    parts = [_ALIASES.get(part.lower(), part) for part in keys.split("+")]
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-1] = parts[-1].lower()
    return "+".join(parts)


def _typed(text: str | None) -> str:
    return f"typed {len(text)} character{'s' * (len(text) != 1)}" if text else "emptied it"
