# Only this file knows the ghost:// addresses that clients read. What is behind them is reached as tools reach it.
"""Resources: the caves, a cave's status, its files, what its commands wrote. All in bounded pieces."""

from __future__ import annotations

import base64
import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from mcp.types import (
    BlobResourceContents,
    ListResourcesResult,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)

from ghost_mcp.errors import GhostError, InvalidArgument, NotFound
from ghost_mcp.outputs import Output, clean, looks_binary, read_output, search_output

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave
    from ghost_mcp.places import Caves
    from ghost_mcp.spec import CaveInfo

__all__ = ["CaveResources"]

ROOT = "ghost://caves"
JSON = "application/json"
TEXT = "text/plain"
# One answer stays far below the 1 MiB that some clients take as one message.
RANGE_BYTES, MAX_RANGE_BYTES = 32_768, 180_000
WHOLE_BYTES = 700_000  # a picture, say, is of no use in pieces
ENTRIES, MAX_ENTRIES = 200, 500
DEEPEST_ENTRY = 20_000  # a page is found by listing all that stand before it
MATCHES, MAX_MATCHES = 100, 500
PAGE = 100

_URI = re.compile(
    r"ghost://caves(?:/(?P<cave>[^/?#]+)(?:/(?P<kind>files|outputs)/(?P<rest>[^?#]*))?)?"
    r"(?:\?(?P<query>[^#]*))?"
)
# Never text, also where a range of it happens to look so.
_PICTURE = re.compile(r"(image|audio|video|font)/(?!svg)")
_Contents = list[TextResourceContents | BlobResourceContents]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Query:
    """What follows the ``?``. ``limit`` is None when it was not given."""

    base: str
    offset: int = 0
    limit: int | None = None
    search: str | None = None

    def most(self, default: int, highest: int) -> int:
        return min(default if self.limit is None else self.limit, highest)

    def range(self) -> int:
        """How many bytes to read: enough for one character at least, so that each piece leads on."""
        return max(4, self.most(RANGE_BYTES, MAX_RANGE_BYTES))

    def next(self, offset: int) -> str:
        """The URI of what follows."""
        limit = {} if self.limit is None else {"limit": self.limit}
        return f"{self.base}?{urlencode({'offset': offset, **limit})}"


class CaveResources:
    """See :class:`ghost_servers.serving.server.Resources`."""

    templates = (
        ResourceTemplate(
            name="cave",
            title="A cave",
            uri_template=ROOT + "/{name}",
            description="Its state, what is enforced around it, and what it uses.",
            mime_type=JSON,
        ),
        ResourceTemplate(
            name="file",
            title="A file or folder in a cave",
            uri_template=ROOT + "/{name}/files/{+path}{?offset,limit}",
            description="The path is in /workspace, or absolute. Offset and limit count bytes, or a folder's entries.",
        ),
        ResourceTemplate(
            name="output",
            title="What a command wrote",
            uri_template=ROOT + "/{name}/outputs/{command}/{stream}{?offset,limit,search}",
            description="stdout or stderr by byte range, or the lines that match a regular expression.",
            mime_type=TEXT,
        ),
    )

    async def list(self, caves: Caves, cursor: str | None) -> ListResourcesResult:
        """The list of caves, and each cave."""
        start = _number("cursor", cursor or "0")
        found = await caves.list()
        shown = found[start : start + PAGE]
        resources = [_resource(info) for info in shown]
        if start == 0:
            resources.insert(0, Resource(name="caves", title="Caves", uri=ROOT, mime_type=JSON))
        more = start + len(shown) < len(found)
        return ListResourcesResult(
            resources=resources, next_cursor=str(start + PAGE) if more else None
        )

    async def read(self, caves: Caves, uri: str) -> ReadResourceResult:
        """One resource, or the piece of it that the query names. Raises NotFound, InvalidArgument."""
        found = _URI.fullmatch(uri)
        if found is None:
            raise NotFound(
                f"no such resource: {uri[:200]}",
                hint=f"There are {ROOT}, {ROOT}/NAME, {ROOT}/NAME/files/PATH "
                f"and {ROOT}/NAME/outputs/COMMAND/stdout.",
                code="resource_not_found",
            )
        query = _query(uri.partition("?")[0], found["query"])
        if found["cave"] is None:
            contents = _caves(await caves.list(), query)
        elif found["kind"] is None:
            contents = await _status(await caves.find(found["cave"]), query)
        else:
            cave = (await caves.place(found["cave"])).cave
            kind = _file if found["kind"] == "files" else _output
            contents = await kind(cave, unquote(found["rest"], errors="surrogateescape"), query)
        return ReadResourceResult(contents=contents)


# --- what is asked for -------------------------------------------------------------------------------


def _query(base: str, text: str | None) -> _Query:
    given = dict(parse_qsl(text or "", keep_blank_values=True))
    if unknown := sorted(set(given) - {"offset", "limit", "search"}):
        raise InvalidArgument(
            f"unknown in a resource's address: {unknown[0][:64]}",
            hint="Known: offset, limit, search.",
        )
    return _Query(
        base=base,
        offset=_number("offset", given.get("offset", "0")),
        limit=_number("limit", given["limit"], 1) if "limit" in given else None,
        search=given.get("search"),
    )


def _number(name: str, text: str, least: int = 0) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) < least:
        raise InvalidArgument(f"{name}: not a whole number from {least} on: {text[:40]!r}")
    return int(text)


def _resource(info: CaveInfo) -> Resource:
    return Resource(
        name=info.name,
        title=f"Cave {info.name}",
        uri=f"{ROOT}/{info.name}",
        description=f"{info.state.value}, {info.backend}",
        mime_type=JSON,
    )


# --- caves -------------------------------------------------------------------------------------------


def _caves(found: list[CaveInfo], query: _Query) -> _Contents:
    shown = found[query.offset :][: query.most(ENTRIES, MAX_ENTRIES)]
    rows = [
        {
            "name": info.name,
            "id": info.id,
            "backend": info.backend,
            "state": info.state.value,
            "created_at": info.created_at,
            "deadline_at": info.deadline_at,
            "uri": f"{ROOT}/{info.name}",
        }
        for info in shown
    ]
    return _rows(query, "caves", rows, len(found))


async def _status(cave: Cave, query: _Query) -> _Contents:
    try:
        usage = asdict(await cave.usage())
    except GhostError:  # a stopped cave uses nothing that an engine could tell
        usage = None
    text = _json({**cave.info.as_dict(), "usage": usage})
    return [TextResourceContents(uri=query.base, mime_type=JSON, text=text)]


# --- files -------------------------------------------------------------------------------------------


async def _file(cave: Cave, path: str, query: _Query) -> _Contents:
    if not path:
        return await _folder(cave, ".", query)
    limit, mime_type = query.range(), _mime(path)
    try:
        content = await cave.read(path, offset=query.offset, count=limit)
    except InvalidArgument as exc:
        if exc.code == "is_a_directory":
            return await _folder(cave, path, query)
        raise
    end = query.offset + len(content.data)
    text = None
    if not _PICTURE.match(mime_type or ""):
        ends = end >= content.size
        text = _text(content.data, begins=query.offset == 0, ends=ends, errors="strict")
    if text is None and query.limit is None and not query.offset and end < content.size:
        content = await cave.read(path, count=WHOLE_BYTES)
    return _piece(query, content.data, text, content.size, mime_type)


async def _folder(cave: Cave, path: str, query: _Query) -> _Contents:
    most = query.most(ENTRIES, MAX_ENTRIES)
    if query.offset > DEEPEST_ENTRY:
        raise InvalidArgument(
            f"offset: of a folder the first {DEEPEST_ENTRY} entries can be paged through",
            hint="Search it, or list it in the cave: find.",
        )
    head = {"path": path, "hidden": True, "limit": query.offset + most}
    records, answer = await cave.records("list", head)
    base = query.base.rstrip("/")
    rows = []
    for record in records[query.offset :][:most]:
        row = {"name": clean(record["path"]), "type": record["type"], "size_bytes": record["size"]}
        name = str(record["path"]).encode("utf-8", "surrogateescape")
        rows.append({**row, "uri": f"{base}/{quote(name)}"})
    return _rows(query, "entries", rows, int(answer["total"]), path=clean(answer["path"]))


def _mime(path: str) -> str | None:
    import mimetypes  # reads the system's tables: only when a file is read

    return mimetypes.guess_type(path)[0]


# --- outputs -----------------------------------------------------------------------------------------


async def _output(cave: Cave, rest: str, query: _Query) -> _Contents:
    output = Output.parse(query.base).of(cave)
    if query.search is not None:
        return await _matches(cave, output, query)
    piece = await read_output(cave, output, offset=query.offset, count=query.range())
    ends = piece.offset + len(piece.data) >= piece.size and not piece.running
    text = _text(piece.data, begins=piece.offset == 0, ends=ends, errors="replace")
    if text is not None and looks_binary(text[0]):
        text = None
    about: dict[str, Any] = {"running": piece.running}
    if piece.gap is not None:
        about["not_kept"] = list(piece.gap)
    return _piece(query, piece.data, text, piece.size, TEXT, offset=piece.offset, about=about)


async def _matches(cave: Cave, output: Output, query: _Query) -> _Contents:
    if query.offset:
        raise InvalidArgument("offset does not go with search", hint="Narrow the pattern instead.")
    head = {"pattern": query.search, "limit": query.most(MATCHES, MAX_MATCHES)}
    records, answer = await search_output(cave, output, head)
    lines, room = [], MAX_RANGE_BYTES
    for record in records:
        line = f"{record['line']}:{clean(record['text'])}"
        room -= len(line) + 1
        if room < 0:
            break
        lines.append(line)
    total = int(answer["matches"])
    if total > len(lines) or answer["truncated"]:
        lines.append(f"[{len(lines)} matching lines are shown; there are more]")
    meta = {"matches": total, "truncated": bool(answer["truncated"])}
    text = "\n".join(lines) or "no line matches"
    return [TextResourceContents(uri=query.base, mime_type=TEXT, text=text, _meta=meta)]


# --- what is answered --------------------------------------------------------------------------------


def _text(data: bytes, *, begins: bool, ends: bool, errors: str) -> tuple[str, int] | None:
    """A range as text, and how many of its bytes that is; a character cut at the end is left for the next.

    None when it is not text: not UTF-8 (with ``errors`` strict), or with NUL.
    """
    skip = 0
    while not begins and skip < min(3, len(data)) and data[skip] & 0xC0 == 0x80:
        skip += 1
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    try:
        text = decoder.decode(data[skip:], final=ends)
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    return text, len(data) - len(decoder.getstate()[0])


def _piece(
    query: _Query,
    data: bytes,
    text: tuple[str, int] | None,
    size: int,
    mime_type: str | None,
    *,
    offset: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> _Contents:
    """A range of bytes, and a line that leads on when it is not all."""
    start = query.offset if offset is None else offset
    end = start + (len(data) if text is None else text[1])
    meta: dict[str, Any] = {"offset": start, "size_bytes": size, **(about or {})}
    more = end < size
    if more:
        meta["next_offset"] = end
    contents: _Contents = []
    if text is not None:
        contents.append(
            TextResourceContents(
                uri=query.base, mime_type=mime_type or TEXT, text=text[0], _meta=meta
            )
        )
    else:
        blob = base64.b64encode(data).decode("ascii")
        kind = mime_type if mime_type and mime_type != TEXT else "application/octet-stream"
        contents.append(BlobResourceContents(uri=query.base, mime_type=kind, blob=blob, _meta=meta))
    if more:
        contents.append(_onward(query.next(end), f"bytes {start} to {end - 1} of {size}"))
    return contents


def _rows(
    query: _Query, name: str, rows: list[dict[str, Any]], total: int, **about: Any
) -> _Contents:
    """A list as JSON, and a line that leads on when it is not all."""
    end = query.offset + len(rows)
    more = end < total and bool(rows)
    meta = {"offset": query.offset, "total": total} | ({"next_offset": end} if more else {})
    text = _json({**about, name: rows, "total": total})
    contents: _Contents = [
        TextResourceContents(uri=query.base, mime_type=JSON, text=text, _meta=meta)
    ]
    if more:
        contents.append(_onward(query.next(end), f"{len(rows)} of {total}"))
    return contents


def _onward(uri: str, shown: str) -> TextResourceContents:
    return TextResourceContents(uri=uri, mime_type=TEXT, text=f"[{shown}; the rest: {uri}]")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
