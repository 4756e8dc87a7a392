# The page comes from the cave, on the desktop's own origin: it can harm that desktop only. Who may type, and who hears
# what is copied, is decided here.
"""What answers at ``vnc--CAVE`` and, for those who may only look, at ``vnc-view--CAVE``."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio
from starlette.responses import RedirectResponse, Response

from ghost_hub.desktop.rfb import ViewOnly
from ghost_hub.desktop.shown import Shown
from ghost_hub.preview.sockets import refuse_socket
from ghost_mcp.errors import GhostError, NotFound, Unsupported

if TYPE_CHECKING:
    from anyio.abc import ByteStream
    from starlette.types import Receive, Scope, Send

    from ghost_hub.preview.hosts import Door
    from ghost_mcp.places import Place

__all__ = ["VIEW", "doors"]

#: The name, beside the service's, under which a desktop is shown to those who may only look.
VIEW = "vnc-view"
FOLDER = "/usr/share/novnc"
SOCKET = "/websockify"
_MISSING = "This desktop's page is noVNC's: use the image ghost-desktop or ghost-full, or install novnc in the cave."
_PAGE = "/vnc.html?autoconnect=true&reconnect=true&path=websockify"
_PATH = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+")
_KINDS = {
    "html": "text/html",
    "js": "text/javascript",
    "css": "text/css",
    "svg": "image/svg+xml",
    "png": "image/png",
    "ico": "image/x-icon",
    "json": "application/json",
    "oga": "audio/ogg",
    "mp3": "audio/mpeg",
    "woff": "font/woff",
    "ttf": "font/ttf",
}
MAX_FILE = 4 << 20
PIECE = 1 << 16


def doors() -> dict[str, Door]:
    """By target."""
    return {"vnc": partial(_serve, looks=False), VIEW: partial(_serve, looks=True)}


async def _serve(scope: Scope, receive: Receive, send: Send, place: Place, *, looks: bool) -> None:
    """Raises GhostError before the answer has begun; a WebSocket's refusal is sent here."""
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        try:
            await _bridge(scope, receive, send, place, looks=looks)
        except GhostError as error:
            await refuse_socket(scope, receive, send, error)
        return
    if scope["method"] not in ("GET", "HEAD"):
        raise Unsupported("a desktop's page is only read", code="wrong_method")
    fits = looks or b"Mobi" in dict(scope["headers"]).get(b"user-agent", b"")
    await (await _page(scope["path"], place, looks=looks, fits=fits))(scope, receive, send)


async def _page(path: str, place: Place, *, looks: bool, fits: bool) -> Response:
    """A file of noVNC's. Raises NotFound, which says how a cave comes by it.

    ``fits``: the desktop is made small enough to be seen whole; else it takes the size that it is seen in, of which on a
    telephone hardly anything of the agent's browser would be left.
    """
    if path == "/":
        how = f"resize={'scale' if fits else 'remote'}{'&view_only=true' if looks else ''}"
        return RedirectResponse(f"{_PAGE}&{how}", 303)
    kind = _KINDS.get(path.rpartition(".")[2])
    if kind is None or _PATH.fullmatch(path) is None:
        raise NotFound("there is no such file of the desktop's page")
    try:
        content = await place.cave.read(f"{FOLDER}{path}", count=MAX_FILE)
    except GhostError as error:
        raise NotFound(f"there is no {path[:100]} in the cave", hint=_MISSING) from error
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "max-age=300"}
    return Response(content.data, media_type=kind, headers=headers)


async def _bridge(scope: Scope, receive: Receive, send: Send, place: Place, *, looks: bool) -> None:
    """RFB both ways. Raises NotFound, and what dialling the service does, before it is accepted."""
    if scope["path"] != SOCKET:
        raise NotFound("the desktop is at /websockify")
    shown = Shown() if looks else None
    async with place.cave.service("vnc").dial() as stream, anyio.create_task_group() as tasks:
        spoken = "binary" if "binary" in scope["subprotocols"] else None
        await send({"type": "websocket.accept", "subprotocol": spoken})
        tasks.start_soon(_typed, receive, stream, ViewOnly() if looks else None, tasks.cancel_scope)
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError, GhostError):
            while True:
                data = await stream.receive(PIECE)
                data = data if shown is None else shown.feed(data)
                if data:
                    await send({"type": "websocket.send", "bytes": data})
        tasks.cancel_scope.cancel()
    with suppress(Exception):  # the browser has gone
        await send({"type": "websocket.close", "code": 1000})


async def _typed(
    receive: Receive, stream: ByteStream, looks: ViewOnly | None, whole: anyio.CancelScope
) -> None:
    """What the browser says, until it has gone, or says what it may not."""
    with suppress(anyio.BrokenResourceError, GhostError):
        while (message := await receive())["type"] == "websocket.receive":
            data = message.get("bytes") or b""
            data = data if looks is None else looks.feed(data)
            if data:
                await stream.send(data)
    whole.cancel()
