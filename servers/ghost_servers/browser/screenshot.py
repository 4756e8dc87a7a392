"""screenshot: a picture of the window, the page or an element, scaled and encoded by the browser itself."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from ghost_mcp.errors import InvalidArgument, LimitExceeded, NotFound, ProtocolFailure
from ghost_mcp.reply import Picture, Reply, size_text
from ghost_mcp.tool import Call, tool
from ghost_servers.browser.click import PATIENCE_S
from ghost_servers.browser.report import URL_CHARS
from ghost_servers.browser.session import use_browser
from ghost_servers.browser.text import clean

if TYPE_CHECKING:
    from playwright.async_api import CDPSession, Locator

    from ghost_servers.browser.window import Window

Format = Literal["png", "jpeg", "webp"]
DEFAULT_SIDE = 1568
MAX_SIDE = 8_000
# Chromium draws no more in one piece.
MAX_PAGE = 16_384
# What clients take in one answer; a larger PNG is taken again as JPEG, a larger one only saved.
MAX_BYTES = 3 << 20
QUALITY = 80


class ScreenshotResult(TypedDict, total=False):
    url: str
    width: int
    height: int
    scale: float
    format: str
    size_bytes: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Area:
    """What to take, in CSS pixels of the document. ``whole`` is more than the window shows."""

    x: float
    y: float
    width: float
    height: float
    whole: bool
    note: str = ""


@tool(title="Take a screenshot", effect="write", result=ScreenshotResult)
async def screenshot(
    call: Call,
    *,
    full_page: bool = False,
    ref: Annotated[str | None, Field(description="Only this element.")] = None,
    selector: str | None = None,
    format: Format = "png",
    quality: int | None = None,
    max_side: Annotated[int, Field(description="Longest side in pixels.")] = DEFAULT_SIDE,
    save_path: Annotated[str | None, Field(description="Also save it in the cave.")] = None,
    timeout_s: float = 30,
) -> Reply:
    """See the window, the whole page or one element as an image."""
    if (ref is not None) + (selector is not None) + full_page > 1:
        raise InvalidArgument("screenshot: give one of full_page, ref, selector")
    if not 16 <= max_side <= MAX_SIDE:
        raise InvalidArgument(f"max_side must be 16 to {MAX_SIDE}")
    if quality is not None and (format == "png" or not 1 <= quality <= 100):
        raise InvalidArgument("quality is 1 to 100, for jpeg and webp")
    async with use_browser(call, timeout_s) as window:
        window.turn_to(ref)
        session = await window.current.devtools()
        area = await _area(window, session, full_page=full_page, ref=ref, selector=selector)
        scale = min(1.0, max_side / max(area.width, area.height))
        data, used = await _take(session, area, scale, format, quality)
        page = window.current.page
        told: dict[str, Any] = {
            "url": clean(page.url, URL_CHARS),
            "width": max(1, round(area.width * scale)),
            "height": max(1, round(area.height * scale)),
            "scale": round(scale, 4),
            "format": used,
            "size_bytes": len(data),
        }
    if save_path is None and len(data) > MAX_BYTES:
        raise LimitExceeded(
            f"the picture has {size_text(len(data))}, more than an answer carries",
            hint="Set save_path, a smaller max_side, or a lower quality.",
        )
    if save_path is not None:
        told["path"] = str((await call.cave.write(save_path, data, parents=True))["path"])
    reply = Reply(text=_text(told, area.note), data=told)
    if len(data) <= MAX_BYTES:
        reply.pictures.append(Picture(data=data, mime_type=f"image/{used}"))
    return reply


def _text(told: dict[str, Any], note: str) -> str:
    scaled = f", scaled to {told['scale']:.0%}" if told["scale"] < 1 else ""
    saved = f", saved as {told['path']}" if "path" in told else ""
    size = f"{told['width']} x {told['height']} {told['format']}, {size_text(told['size_bytes'])}"
    return "\n".join(filter(None, [f"{told['url']}: {size}{scaled}{saved}", note]))


async def _area(
    window: Window, session: CDPSession, *, full_page: bool, ref: str | None, selector: str | None
) -> _Area:
    if ref is not None or selector is not None:
        element = await window.current.find(ref=ref, selector=selector)
        return await _element_area(session, element, window.patience_s(PATIENCE_S) * 1000)
    metrics = await session.send("Page.getLayoutMetrics")
    if not full_page:
        x, y, width, height = _numbers(
            metrics, "cssVisualViewport", "pageX", "pageY", "clientWidth", "clientHeight"
        )
        return _Area(x=x, y=y, width=width, height=height, whole=False)
    size = _numbers(metrics, "cssContentSize", "width", "height")
    width, height = (min(max(1, side), MAX_PAGE) for side in size)
    cut = f"the page is larger: its first {width:g} x {height:g} pixels"
    return _Area(
        x=0, y=0, width=width, height=height, whole=True, note=cut if max(size) > MAX_PAGE else ""
    )


def _numbers(metrics: object, part: str, *names: str) -> list[float]:
    """Figures the browser told. Raises ProtocolFailure when they are none."""
    told = metrics.get(part) if isinstance(metrics, dict) else None
    found = [told.get(name) for name in names] if isinstance(told, dict) else [None]
    if not all(isinstance(n, int | float) and -1e9 < n < 1e9 for n in found):
        raise ProtocolFailure("the browser tells no sizes")
    return [float(n) for n in found if n is not None]


async def _element_area(session: CDPSession, element: Locator, patience: float) -> _Area:
    await element.scroll_into_view_if_needed(timeout=patience)
    box = await element.bounding_box(timeout=patience)
    if box is None or box["width"] < 1 or box["height"] < 1:
        raise NotFound("the element is not visible: there is nothing to take")
    metrics = await session.send("Page.getLayoutMetrics")
    left, top = _numbers(metrics, "cssVisualViewport", "pageX", "pageY")
    width, height = min(box["width"], MAX_PAGE), min(box["height"], MAX_PAGE)
    x, y = box["x"] + left, box["y"] + top
    return _Area(x=x, y=y, width=width, height=height, whole=True)


async def _take(
    session: CDPSession, area: _Area, scale: float, wanted: Format, quality: int | None
) -> tuple[bytes, Format]:
    """The encoded picture and its format, which is another one when a PNG would be too large to send."""
    asked: dict[str, Any] = {"format": wanted, "captureBeyondViewport": area.whole}
    if wanted != "png":
        asked["quality"] = QUALITY if quality is None else quality
    if area.whole or scale < 1:
        box = {"x": area.x, "y": area.y, "width": area.width, "height": area.height}
        asked["clip"] = {**box, "scale": scale}
    taken = await session.send("Page.captureScreenshot", asked)
    try:
        data = base64.b64decode(taken["data"])
    except (TypeError, KeyError, ValueError):
        raise ProtocolFailure("the browser took no picture") from None
    if wanted == "png" and len(data) > MAX_BYTES:
        return await _take(session, area, scale, "jpeg", QUALITY)
    return data, wanted
