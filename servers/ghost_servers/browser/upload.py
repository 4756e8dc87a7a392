# A page gets a file of the cave, never one of this host: the browser is told a path, and it looks in the cave.
"""Choosing files for a file input."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.errors import InvalidArgument
from ghost_servers.browser.text import clean

if TYPE_CHECKING:
    from playwright.async_api import Locator

    from ghost_mcp.cave import Cave
    from ghost_servers.browser.tab import Tab

__all__ = ["choose_files"]

WAIT_S, RELEASE_S = 5.0, 1.0
MAX_FILES = 20


async def choose_files(cave: Cave, tab: Tab, element: Locator, paths: str) -> str:
    """Choose the files at ``paths``, one a line, as a person would in the dialog that a click opens.

    Raises NotFound for a path that is none, InvalidArgument when no dialog opens.
    """
    names = [line.strip() for line in paths.splitlines() if line.strip()]
    if not 1 <= len(names) <= MAX_FILES:
        raise InvalidArgument(f"a file input takes 1 to {MAX_FILES} paths in the cave, one a line")
    files = []
    for name in names:
        answer, _ = await cave.call("stat", {"path": name})
        files.append(str(answer["path"]))
    session = await tab.devtools()
    opened: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    session.once("Page.fileChooserOpened", partial(_open, opened))
    await session.send("Page.enable")
    try:
        await session.send("Page.setInterceptFileChooserDialog", {"enabled": True})
        await element.click(timeout=WAIT_S * 1000)
        async with asyncio.timeout(WAIT_S):
            event = await opened
    except TimeoutError:
        raise InvalidArgument(
            "the click opened no file dialog", hint="Is it a file input?"
        ) from None
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(RELEASE_S):
            await session.send("Page.setInterceptFileChooserDialog", {"enabled": False})
    await session.send(
        "DOM.setFileInputFiles", {"files": files, "backendNodeId": event.get("backendNodeId")}
    )
    return f"chose {clean(', '.join(files), 200)}"


def _open(opened: asyncio.Future[dict[str, Any]], event: dict[str, Any]) -> None:
    if not opened.done():
        opened.set_result(event)
