# What a page sends as a file stays in the cave. Only this file decides under which name, and how much of it.
"""Downloads: saved by Chromium itself in the cave's ~/Downloads, named safely, bounded, reported."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from playwright.async_api import Error

from ghost_mcp.errors import BackendUnavailable, Conflict, GhostError
from ghost_mcp.reply import size_text
from ghost_servers.browser.text import clean

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, CDPSession

    from ghost_mcp.cave import Cave

__all__ = ["Downloads", "safe_name"]

FOLDER = "~/Downloads"
MAX_BYTES = 512 << 20
MAX_RUNNING = 8
MAX_REMEMBERED = 200
MAX_NAME = 100
# An answer waits so long for a download that has begun.
WAIT_S = 3.0
_GUID = re.compile(r"[0-9a-fA-F-]{16,64}")
_PARTS = re.compile(r"(.+?)((?:\.tar)?\.\w{1,10})?")
_UNSAFE = re.compile(r"[^\w.()+@ -]+")


@dataclass(slots=True, kw_only=True)
class _Download:
    name: str
    url: str
    received: int = 0
    how: str = ""  # how it ended; empty while it runs


class Downloads:
    """The downloads of one browser, from :meth:`watch` on.

    They stay denied for Playwright, which would look for the files on this host, at names the browser tells.
    """

    def __init__(self, cave: Cave, context: BrowserContext) -> None:
        self._cave = cave
        self._context = context
        self._session: CDPSession | None = None
        self._known: dict[str, _Download] = {}
        self._untold: dict[str, _Download] = {}
        self._folder = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def watch(self) -> None:
        """From now on files go to the cave's download folder."""
        if self._context.browser is None:
            raise BackendUnavailable("the browser has no DevTools of its own")
        self._session = await self._context.browser.new_browser_cdp_session()
        answer, _ = await self._cave.call("mkdir", {"path": FOLDER})
        self._folder = str(answer["path"])
        self._session.on("Browser.downloadWillBegin", self._began)
        self._session.on("Browser.downloadProgress", self._progressed)
        await self._session.send(
            "Browser.setDownloadBehavior",
            {
                "behavior": "allowAndName",
                "downloadPath": self._folder,
                "eventsEnabled": True,
            },
        )

    def _began(self, event: object) -> None:
        if not isinstance(event, dict):
            return
        guid = str(event.get("guid"))
        if not _GUID.fullmatch(guid) or guid in self._known:
            return
        found = _Download(
            name=safe_name(event.get("suggestedFilename")), url=clean(event.get("url"), 200)
        )
        running = sum(not other.how for other in self._known.values())
        if running >= MAX_RUNNING:
            found.how = f"refused: {MAX_RUNNING} others are running"
            self._do(self._cancel(guid))
        if len(self._known) >= MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[guid] = found
        if len(self._untold) < MAX_RUNNING * 2:
            self._untold[guid] = found
        self._changed.set()

    def _progressed(self, event: object) -> None:
        if not isinstance(event, dict):
            return
        found = self._known.get(str(event.get("guid")))
        received, state = event.get("receivedBytes"), event.get("state")
        if found is None or found.how:
            return
        found.received = received if isinstance(received, int) else found.received
        if state == "completed":
            self._do(self._keep(str(event["guid"]), found))
        elif state == "canceled":
            found.how = "cancelled"
            self._untold[str(event["guid"])] = found
        elif found.received > MAX_BYTES:
            found.how = f"cancelled: larger than {size_text(MAX_BYTES)}"
            self._untold[str(event["guid"])] = found
            self._do(self._cancel(str(event["guid"])))
        self._changed.set()

    async def _keep(self, guid: str, found: _Download) -> None:
        """Give the file its name, beside others of the same name."""
        stem, ending = _parts(found.name)
        for number in range(100):
            name = f"{stem} ({number}){ending}" if number else found.name
            try:
                await self._cave.call(
                    "move", {"path": f"{self._folder}/{guid}", "to": f"{self._folder}/{name}"}
                )
            except Conflict:
                continue
            except GhostError as exc:
                found.how = f"lost: {exc.message}"
                break
            found.how = f"saved as {self._folder}/{name}, {size_text(found.received)}"
            break
        else:
            found.how = f"kept as {self._folder}/{guid}: too many files of that name"
        self._untold[guid] = found
        self._changed.set()

    async def _cancel(self, guid: str) -> None:
        if self._session is None:
            return
        with suppress(Error, GhostError):
            await self._session.send("Browser.cancelDownload", {"guid": guid})
            await self._cave.call("remove", {"path": f"{self._folder}/{guid}"})

    def _do(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def told(self) -> list[str]:
        """What is new since the last time, a line each; waits a little for what has only begun."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                while any(not found.how for found in self._untold.values()):
                    self._changed.clear()
                    await self._changed.wait()
        told = [_line(found) for found in self._untold.values()]
        self._untold.clear()
        return told

    async def cancel(self, why: str) -> None:
        """End those that run; each is told with ``why``."""
        for guid, found in list(self._known.items()):
            if not found.how:
                found.how = f"cancelled: {why}"
                self._untold[guid] = found
                await self._cancel(guid)

    async def aclose(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


def _line(found: _Download) -> str:
    how = found.how or f"is being downloaded, {size_text(found.received)} so far"
    return f"{found.name}: {how} (from {found.url})"


def safe_name(suggested: object) -> str:
    """A file name that is only a file name."""
    name = clean(suggested or "", 2_000).rpartition("/")[2].rpartition("\\")[2]
    name = _UNSAFE.sub("_", name).strip(". ")
    if len(name) > MAX_NAME:
        stem, ending = _parts(name)
        name = stem[: MAX_NAME - len(ending)] + ending
    return name or "download"


def _parts(name: str) -> tuple[str, str]:
    """A name's stem and ending: ``a.tar.gz`` is ``a`` and ``.tar.gz``."""
    found = _PARTS.fullmatch(name)
    return (found[1], found[2] or "") if found else (name, "")
