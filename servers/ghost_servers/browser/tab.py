# Only this file knows how what a caller names becomes an element of a page.
"""One tab: its page, what was last seen of it, and finding elements in it."""

from __future__ import annotations

import re
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from playwright.async_api import Error

from ghost_mcp.errors import InvalidArgument, NotFound
from ghost_servers.browser import world
from ghost_servers.browser.outline import Line, near, parse
from ghost_servers.browser.text import clean

if TYPE_CHECKING:
    from playwright.async_api import CDPSession, Frame, Locator, Page

__all__ = ["Tab"]

MAX_FRAMES = 8
MAX_KNOWN = 5_000
FRAME_S = 0.5
_CUT = Line(ref="", role="note", name="", text="[the page is too large to be listed whole]", at=1)
_REF = re.compile(r"e\d{1,9}")


class Tab:
    """A page and its outline. ``status`` is that of its last load by navigate."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.lines: list[Line] = []
        self.url = ""
        self.status: int | None = None
        self.crashed = False
        self.console_errors = 0
        self.console: deque[str] = deque(maxlen=3)
        self._frames: dict[str, Frame] = {}
        self._known: dict[str, Line] = {}  # every reference ever told, and what it stood for
        self._former: set[str] = set()  # those told of this page before it was restored
        self._session: CDPSession | None = None

    def knows(self, ref: str) -> bool:
        """Whether that reference was told of this tab."""
        return ref in self._known

    def inherit(self, old: Tab) -> None:
        """Be the tab that ``old`` was: this is its page, restored in another browser."""
        self._known = dict(old._known)
        self._former = set(old._known)
        self.status = old.status

    def forget_console(self) -> None:
        self.console_errors = 0
        self.console.clear()

    async def devtools(self) -> CDPSession:
        """A DevTools session of this page."""
        if self._session is None:
            self._session = await self.page.context.new_cdp_session(self.page)
        return self._session

    async def title(self) -> str:
        """Its title, or nothing while the page is being replaced."""
        try:
            return clean(await self.page.title(), 200)
        except Error:
            return ""

    async def look(self, following: int) -> int:
        """See the page anew: ``lines`` holds what is there. Returns the number of the next new reference."""
        lines: list[Line] = []
        frames: dict[str, Frame] = {}
        for frame in self.page.frames[:MAX_FRAMES]:
            main = frame == self.page.main_frame
            if not main and not frame.url:
                continue  # what was refused has no world to ask in
            try:
                told = await world.ask(
                    frame, "outline", following=following, timeout_s=10.0 if main else FRAME_S
                )
            except Error:
                if main:
                    raise
                continue  # it has gone, or does not answer: the page is there without it
            following = max(following, int(told["next"]))
            seen = parse(told.get("items"))
            frames |= {line.ref: frame for line in seen if line.ref}
            if seen and not main:
                lines.append(_boundary(frame, seen))
            lines += seen
            if told.get("cut") is True:
                lines.append(_CUT)
        self._remember(lines)
        self.lines, self._frames, self.url = lines, frames, self.page.url
        return following

    def _remember(self, lines: list[Line]) -> None:
        self._known |= {line.ref: line for line in lines if line.ref}
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    async def find(
        self, *, ref: str | None = None, selector: str | None = None, text: str | None = None
    ) -> Locator:
        """The one element that was named in one of three ways. Raises InvalidArgument, NotFound."""
        if ref is not None:
            return await self._by_ref(ref)
        if selector is not None:
            return await self._by_selector(selector)
        return await self._by_text(text or "")

    async def _by_ref(self, ref: str) -> Locator:
        if not _REF.fullmatch(ref):
            raise InvalidArgument(
                f"not a reference: {clean(ref, 40)!r}", hint="It looks like e12; see the outline."
            )
        frames = [
            frame for frame in [self._frames.get(ref), self.page.main_frame] if frame is not None
        ]
        for frame in frames:
            with suppress(Error):
                found = world.element(frame, ref)
                if await found.count():
                    return found
        if ref in self._former and (again := self._again(ref)):
            return await self._by_ref(again)
        raise self._stale(ref)

    def _again(self, ref: str) -> str:
        """The reference now of what a former one stood for: of the only element of its kind and name, or nothing."""
        was = self._known.get(ref)
        kind = (was.role, was.name) if was is not None else None
        alike = [line.ref for line in self.lines if line.ref and (line.role, line.name) == kind]
        return alike[0] if len(alike) == 1 and alike[0] not in self._former else ""

    def _stale(self, ref: str) -> NotFound:
        known = self._known.get(ref)
        was = known.text if known is not None else ""
        gone = f"{ref} ({was[len(ref) + 1 :]}) is no longer on the page"
        alike = "; ".join(map(str, near(was, self.lines)))
        there = "; ".join(str(line) for line in [line for line in self.lines if line.ref][:4])
        hint = f"Near: {alike}." if alike else f"On the page: {there}." if there else ""
        return NotFound(
            gone if was else f"no element {ref} was ever told",
            hint=hint or "Look at the page again: navigate without url.",
            code="stale_reference",
        )

    async def _by_selector(self, selector: str) -> Locator:
        found = self.page.locator(selector)
        count = await found.count()
        if count == 0:
            with suppress(Error):
                await found.first.wait_for(state="attached", timeout=2_000)
            count = await found.count()
        if count > 1:
            found = found.filter(visible=True)
            count = await found.count()
        if count != 1:
            raise _not_one(f"selector {clean(selector, 200)}", count)
        return found

    async def _by_text(self, text: str) -> Locator:
        """The element that can be acted on with that name, else what has that text."""
        goal = " ".join(text.split()).lower()
        if not goal:
            raise InvalidArgument("the text is empty")
        acting = [line for line in self.lines if line.ref]
        for matches in (
            [line for line in acting if line.name.lower() == goal],
            [line for line in acting if goal in line.name.lower()],
        ):
            if len(matches) == 1:
                return await self._by_ref(matches[0].ref)
            if matches:
                raise _not_one(f"text {clean(text, 100)!r}", len(matches), matches)
        found = self.page.get_by_text(text).filter(visible=True)
        count = await found.count()
        if count == 1:
            return found
        raise _not_one(f"text {clean(text, 100)!r}", count, near(text, self.lines))


def _not_one(what: str, count: int, lines: list[Line] | None = None) -> InvalidArgument | NotFound:
    shown = "; ".join(str(line) for line in (lines or [])[:6])
    if count:
        return InvalidArgument(
            f"{count} elements match {what}", hint=f"Use a ref: {shown}" if shown else "Use a ref."
        )
    return NotFound(f"nothing on the page matches {what}", hint=f"Near: {shown}." if shown else "")


def _boundary(frame: Frame, seen: list[Line]) -> Line:
    where = clean(frame.url, 100)
    return Line(ref="", role="iframe", name=where, text=f"in iframe {where}:", at=seen[0].at)
