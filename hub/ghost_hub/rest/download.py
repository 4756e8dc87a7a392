# A file that goes out is sent piece by piece, and breaks off rather than being two versions in one.
"""What ``GET``, ``HEAD`` and ``POST /v1/filesystem/download`` do: conditions, ranges, the bytes."""

from __future__ import annotations

import logging
import mimetypes
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from ghost_hub.rest.row import RAW
from ghost_mcp.errors import Conflict, GhostError, InvalidArgument

if TYPE_CHECKING:
    from ghost_hub.rest.row import Ask
    from ghost_mcp.cave import Cave, FileContent

__all__ = ["STATUSES", "download"]

#: How a download may be answered when nothing is wrong.
STATUSES = (200, 206, 304, 416)
_log = logging.getLogger(__name__)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")


async def download(ask: Ask) -> Response:
    """A file, or the range of it that was asked for. Raises InvalidArgument, Conflict, and what reading raises."""
    given = dict(ask.request.query_params) if ask.request.method != "POST" else await ask.json()
    path, cave_name = given.get("path"), given.get("cave")
    if not isinstance(path, str) or not path:
        raise InvalidArgument("path: required", hint="Which file: ?path=data.bin")
    if cave_name is not None and not isinstance(cave_name, str):
        raise InvalidArgument("cave: must be the name of a cave")
    cave = (await ask.caves.place(cave_name)).cave
    headers = ask.request.headers
    async with cave.reading(path, count=0) as (about, _):
        pass
    tag = f'"{about.version}"'
    if headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    if headers.get("if-match", tag) not in (tag, "*"):
        raise Conflict(
            f"{about.path} is another version by now",
            code="file_changed",
            data={"version": about.version},
        )
    wanted = headers.get("range") if headers.get("if-range", tag) == tag else None
    span = _span(wanted, about.size)
    if span is None:
        return Response(
            status_code=416, headers={"Content-Range": f"bytes */{about.size}", "ETag": tag}
        )
    return await _sent(
        ask, cave, about, span, partial=wanted is not None and span != (0, about.size)
    )


def _span(wanted: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; the whole for what is not understood; None beyond the file."""
    found = _RANGE.match(wanted or "")
    if found is None or found.group(0) == "bytes=-":
        return 0, size
    first, last = found[1], found[2]
    if not first:
        return (max(0, size - int(last)), size) if int(last) else None
    begin, end = int(first), min(int(last) + 1, size) if last else size
    if begin >= size:
        return None
    return (begin, end) if begin < end else (0, size)


async def _sent(
    ask: Ask, cave: Cave, about: FileContent, span: tuple[int, int], *, partial: bool
) -> Response:
    begin, end = span
    name = about.path.rpartition("/")[2].encode("utf-8", "surrogateescape")
    headers = {
        "ETag": f'"{about.version}"',
        "Accept-Ranges": "bytes",
        "Content-Length": str(end - begin),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}",
        # A page of the hub's origin must never be made of what a cave holds.
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
    }
    if partial:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{about.size}"
    kind = mimetypes.guess_type(about.path)[0] or RAW
    status = 206 if partial else 200
    if ask.request.method == "HEAD" or begin == end:
        return Response(status_code=status, headers=headers, media_type=kind)
    return _Streamed(cave, about, span, status, headers, kind)


class _Streamed(StreamingResponse):
    """The file's bytes as the cave sends them. One that changes is told before the first byte, if it can be."""

    def __init__(
        self,
        cave: Cave,
        about: FileContent,
        span: tuple[int, int],
        status: int,
        headers: dict[str, str],
        kind: str,
    ) -> None:
        self._cave, self._about, self._span = cave, about, span
        super().__init__(self._pieces(), status, headers, kind)

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        begin, end = self._span
        async with self._cave.reading(self._about.path, offset=begin, count=end - begin) as (
            now,
            pieces,
        ):
            if now.version != self._about.version:
                raise Conflict(
                    f"{now.path} changed just now", hint="Ask again.", code="file_changed"
                )
            async for piece in pieces:
                yield piece

    async def stream_response(self, send: Any) -> None:
        async with aclosing(self._pieces()) as pieces:
            await self._send(pieces, send)

    async def _send(self, pieces: AsyncIterator[bytes], send: Any) -> None:
        held = await anext(pieces)  # an error until here is an answer of its own
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await send(start)
        try:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": held, "more_body": True})
                held = piece
        except GhostError as exc:
            # Too late for a status. The last piece was held back until the cave had said that the file is whole:
            # without it the client sees an answer that breaks off.
            _log.warning("a download broke off: %s", exc.message)
            return
        await send({"type": "http.response.body", "body": held, "more_body": False})
