# The one way into a page: world.js, in an isolated world of the page's renderer. Its answers are hostile data.
"""Ask world.js something about a page or an element."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghost_mcp.errors import ProtocolFailure

if TYPE_CHECKING:
    from playwright.async_api import Frame, Locator, Playwright

__all__ = ["ask", "element", "prepare"]

_ENGINE = "ghost"
_SCRIPT = Path(__file__).with_name("world.js").read_text("utf-8").rstrip()
MAX_ANSWER_CHARS = 1 << 20


async def prepare(playwright: Playwright) -> None:
    """Make world.js part of every page this driver opens from now on."""
    await playwright.selectors.register(_ENGINE, script=_SCRIPT, content_script=True)


def element(frame: Frame, ref: str) -> Locator:
    """The element with that reference, or nothing when it has left the page."""
    return frame.locator(f"{_ENGINE}={ref}")


async def ask(
    where: Frame | Locator, do: str, *, following: int = 1, timeout_s: float = 10.0, **more: Any
) -> dict[str, Any]:
    """One command of world.js on a frame or an element. New references are numbered from ``following``.

    The answer's ``next`` is the number after the last one given. Raises Playwright's errors, ProtocolFailure.
    """
    asked = json.dumps({"do": do, "next": following, **more}).encode()
    carrier = where.locator(f"{_ENGINE}={base64.b64encode(asked).decode()}")
    told = await carrier.text_content(timeout=timeout_s * 1000) or ""
    try:
        answer = json.loads(told) if len(told) <= MAX_ANSWER_CHARS else None
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("next"), int):
        raise ProtocolFailure("the page answered what is no answer")
    return answer
