# Only this file decides where a document may come from: a file in the cave, or a data: URI. Nothing is fetched.
"""A document before its conversion: what it is called, how large it is, and its bytes in pieces."""

from __future__ import annotations

import base64
import binascii
import posixpath
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from ghost_mcp.errors import Conflict, InvalidArgument, LimitExceeded
from ghost_mcp.reply import size_text
from ghost_servers.markitdown.incave.wire import MAX_DOCUMENT

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave

__all__ = ["Source", "locate"]

MAX_URI_DATA = 8 << 20
PIECE = 4 << 20
WORKSPACE = "/workspace"
_URL = re.compile(
    r"\s*([a-zA-Z][a-zA-Z0-9+.-]*)://|\s*(file|data|blob|about|javascript):", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """``path`` is the document's absolute path in the cave; that of a data: URI is where it would lie."""

    path: str
    size_bytes: int
    media_type: str
    charset: str
    pieces: Callable[[], AsyncIterator[bytes]]

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)


async def locate(cave: Cave, path: str) -> Source:
    """The document at a path or in a data: URI.

    Raises InvalidArgument for any other URL and for an empty document, LimitExceeded for one that is too
    large, and what reading the file in the cave raises.
    """
    url = _URL.match(path)
    if url is None:
        return await _in_cave(cave, path)
    scheme = (url[1] or url[2]).lower()
    if scheme == "data":
        return _in_uri(path.strip())
    if scheme in ("http", "https"):
        raise InvalidArgument(
            "this tool opens no network connection",
            hint="Download it first in the cave (shell: curl -LO URL), then give the file's path.",
        )
    raise InvalidArgument(
        f"{scheme[:20]}: URLs are not opened", hint="Give a path in the cave, or a data: URI."
    )


async def _in_cave(cave: Cave, path: str) -> Source:
    first = await cave.read(path, count=PIECE)
    _check_size(first.size, MAX_DOCUMENT, first.path)

    async def pieces() -> AsyncIterator[bytes]:
        yield first.data
        at = len(first.data)
        while at < first.size:
            more = await cave.read(path, offset=at, count=PIECE)
            if more.version != first.version or not more.data:
                raise Conflict(f"{first.path} changed while it was read", code="file_changed")
            yield more.data[: first.size - at]
            at += len(more.data)

    return Source(path=first.path, size_bytes=first.size, media_type="", charset="", pieces=pieces)


def _in_uri(uri: str) -> Source:
    """``data:[media type][;charset=...][;base64],data`` (RFC 2397), percent-encoded or not."""
    head, comma, text = uri.partition(",")
    if not comma:
        raise InvalidArgument("a data: URI needs a comma before its data")
    if len(text) > 4 * MAX_URI_DATA:
        _check_size(len(text), MAX_URI_DATA, "the data: URI")
    media_type, *parameters = head[len("data:") :].split(";")
    data = unquote_to_bytes(text)
    if "base64" in (p.strip().lower() for p in parameters):
        data = _decode_base64(data)
    _check_size(len(data), MAX_URI_DATA, "the data: URI")
    charset = next((p.split("=", 1)[1] for p in parameters if p.lower().startswith("charset=")), "")

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    return Source(
        path=f"{WORKSPACE}/document",
        size_bytes=len(data),
        media_type=media_type.strip()[:100],
        charset=charset.strip("\"' ")[:40],
        pieces=pieces,
    )


def _decode_base64(data: bytes) -> bytes:
    """Base64 with either alphabet, with or without padding and white space."""
    packed = b"".join(data.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error:
        raise InvalidArgument("the data: URI is not valid base64") from None


def _check_size(size: int, limit: int, what: str) -> None:
    if size > limit:
        raise LimitExceeded(
            f"{what} has {size_text(size)}; at most {size_text(limit)} can be converted",
            code="too_large",
        )
    if size == 0:
        raise InvalidArgument(f"{what} is empty")
