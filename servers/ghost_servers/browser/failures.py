# Foreign errors stop here: Playwright's words become errors a model can act on.
"""Playwright's errors as Ghost's."""

from __future__ import annotations

import re

from playwright.async_api import Error
from playwright.async_api import TimeoutError as PlaywrightTimeout

from ghost_mcp.errors import BackendUnavailable, GhostError, InvalidArgument, NotFound, TimedOut
from ghost_servers.browser.text import clean

__all__ = ["Error", "translated"]

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# What the call log says about an element that cannot be acted on, and what to do about it.
_OBSTACLES = (
    ("intercepts pointer events", "Something covers it: close that first, or scroll."),
    ("element is not visible", "It is hidden: open what it is in first."),
    ("element is outside of the viewport", "Scroll to it first."),
    ("element is not enabled", "It is disabled: fill in what it needs first."),
    ("element is not stable", "It moves: try again when it rests."),
    ("element is not editable", "It is read-only."),
    ("did not find some options", "Use one of its options, as the outline shows them."),
)


def translated(error: Error) -> GhostError:
    """The GhostError for an error of Playwright that nothing more is known about."""
    message = _ANSI.sub("", error.message)
    if isinstance(error, PlaywrightTimeout):
        return _obstacle(message)
    first = clean(re.sub(r"^[A-Za-z]+\.[a-z_]+: ", "", message.strip().partition("\n")[0]), 300)
    lowered = message.lower()
    if "unknown key" in lowered:
        return InvalidArgument(first, hint="Keys look like Enter, Tab, ArrowDown, Control+A.")
    if "selector" in lowered and any(
        word in lowered for word in ("parsing", "not a valid", "unknown engine", "unexpected")
    ):
        return InvalidArgument(
            f"not a selector: {first}", hint="Use CSS, text=..., role=... or xpath=...."
        )
    if "closed" in lowered or "crash" in lowered:
        return BackendUnavailable(
            "the tab closed or crashed during this call",
            hint="Look again: navigate without url.",
            code="tab_closed",
        )
    if (
        "not an <input>" in lowered
        or "is not a <select>" in lowered
        or "not an htmlelement" in lowered
    ):
        return InvalidArgument(f"the element does not take this: {first}")
    if "detached" in lowered or "not attached" in lowered:
        return NotFound(
            "the element left the page meanwhile", hint="Look again: navigate without url."
        )
    return BackendUnavailable(f"the browser could not do it: {first}", code="browser_failed")


def _obstacle(message: str) -> TimedOut:
    lines = [clean(line.strip(" -"), 200) for line in message.splitlines()]
    for said, way_out in _OBSTACLES:
        told = [line for line in lines if said in line]
        if told:
            return TimedOut(f"the element cannot be acted on: {told[-1]}", hint=way_out)
    return TimedOut("the page did not do it in time", hint="Take a screenshot to see its state.")
