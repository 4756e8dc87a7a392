# Files of any size, in and out, piece by piece: nothing here holds a whole one.
"""``/v1/filesystem/upload`` and ``/v1/filesystem/download``."""

from __future__ import annotations

import base64
import logging
import mimetypes
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.responses import Response, StreamingResponse

from ghost_hub.rest.row import Ask, Row, answer
from ghost_mcp.errors import Conflict, GhostError, InvalidArgument

if TYPE_CHECKING:
    from types import TracebackType

    from starlette.requests import Request

    from ghost_mcp.cave import Cave, FileContent

__all__ = ["rows"]

JSON, MULTIPART, RAW = "application/json", "multipart/form-data", "application/octet-stream"
ANY = "*/*"
DOWNLOADED = (200, 206, 304, 416)
JSON_BYTES = 16 << 20
FIELD_BYTES = 8192
_log = logging.getLogger(__name__)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")
Take = Callable[[bytes], Awaitable[None]]


def rows() -> list[Row]:
    path = {"type": "string", "description": "In /workspace, or absolute."}
    version = {
        "type": "string",
        "description": "The version that was read: 409 when the file is another by now.",
    }
    cave = {"type": "string", "description": "Which of your caves; your default one when left out."}
    written = {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "created": {"type": "boolean"},
            "size": {"type": "integer"},
            "version": {"type": "string"},
        },
    }
    shape = {
        "type": "object",
        "properties": {
            "path": path,
            "content_base64": {"type": "string", "contentEncoding": "base64"},
            "version": version,
            "cave": cave,
        },
        "required": ["path", "content_base64"],
        "additionalProperties": False,
    }
    query = {"path": path, "cave": cave}
    tag = "filesystem"
    download = "A file as it is, or a range of it; 409 when it changes meanwhile."
    return [
        Row(method="POST", statuses=(200, 201), path="/v1/filesystem/upload", summary="Write a file of any size, wholly or not at all.", tag=tag, scope="use", handler=_upload, operation=True, body=shape, body_media=(JSON, MULTIPART, RAW), result=written, query={**query, "version": version}, example={"path": "data.bin", "content_base64": "AAEC"}),
        Row(method="GET", path="/v1/filesystem/download", summary=download, tag=tag, scope="read", handler=_download, operation=True, media=ANY, statuses=DOWNLOADED, query=query),
        Row(method="HEAD", path="/v1/filesystem/download", summary="What a file is, without its content.", tag=tag, scope="read", handler=_download, media=ANY, statuses=DOWNLOADED, query=query),
        Row(method="POST", path="/v1/filesystem/download", summary=download, tag=tag, scope="read", handler=_download, operation=True, media=ANY, statuses=DOWNLOADED, body={"type": "object", "properties": query, "required": ["path"], "additionalProperties": False}, example={"path": "data.bin"}),
    ]  # fmt: skip


# --- in ----------------------------------------------------------------------------------------------


async def _upload(ask: Ask) -> Response:
    kind = parse_options_header(ask.request.headers.get("content-type", RAW))[0].decode("latin-1")
    if kind == JSON:
        return await _upload_json(ask)
    if kind == MULTIPART:
        return await _upload_form(ask)
    given = _Given(ask)
    async with _Target(ask, given.path, given.cave, given.version) as target:
        async for piece in ask.request.stream():
            if piece:
                await target.take(piece)
    return target.answer()


async def _upload_json(ask: Ask) -> Response:
    size = ask.request.headers.get("content-length", "")
    if not size.isdigit() or int(size) > JSON_BYTES:
        raise InvalidArgument(
            f"as JSON a file can have {JSON_BYTES} bytes in all",
            hint="Send the file itself as the body, with ?path=, or as multipart/form-data.",
            code="too_large",
        )
    body = await ask.json()
    if unknown := sorted(set(body) - {"path", "content_base64", "version", "cave"}):
        raise InvalidArgument(
            f"unknown: {unknown[0][:64]!r}", hint="Known: path, content_base64, version, cave."
        )
    try:
        data = base64.b64decode(body["content_base64"], validate=True)
    except KeyError:
        raise InvalidArgument("content_base64: required") from None
    except (TypeError, ValueError) as exc:
        raise InvalidArgument(f"content_base64: not base64: {exc}") from None
    given = _Given(ask, body)
    async with _Target(ask, given.path, given.cave, given.version) as target:
        await target.take(data)
    return target.answer()


async def _upload_form(ask: Ask) -> Response:
    """The fields ``path``, ``cave`` and ``version`` come before the file, or in the address."""
    given = _Given(ask)
    form = _Form(ask.request)
    async with AsyncExitStack() as stack:
        target: _Target | None = None
        async for name, filename, pieces in form.parts():
            if filename is None:
                given.set(name, await pieces.text())
                continue
            if target is not None:
                raise InvalidArgument("one file at a time", hint="Send a request for each file.")
            target = _Target(ask, given.path_of(filename), given.cave, given.version)
            await stack.enter_async_context(target)
            await pieces.into(target.take)
    if target is None:
        raise InvalidArgument("the form has no file")
    return target.answer()


class _Given:
    """What an upload says about where it goes: the address's query first, then the body."""

    def __init__(self, ask: Ask, body: dict[str, Any] | None = None) -> None:
        self._values: dict[str, Any] = dict(body or {}) | dict(ask.request.query_params)

    def set(self, name: str, value: str) -> None:
        if name not in ("path", "cave", "version"):
            raise InvalidArgument(
                f"unknown field: {name[:64]!r}", hint="Known: path, cave, version, file."
            )
        self._values.setdefault(name, value)

    def _text(self, name: str) -> str | None:
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise InvalidArgument(f"{name}: must be a text")
        return value

    @property
    def path(self) -> str:
        path = self._text("path")
        if not path:
            raise InvalidArgument("path: required", hint="Where the file goes: ?path=data.bin")
        return path

    def path_of(self, filename: str) -> str:
        """Where the file goes; one without a path, or with a folder's, keeps its own name."""
        path = self._text("path") or ""
        if path and not path.endswith("/"):
            return path
        name = filename.replace("\\", "/").rpartition("/")[2]
        if name in ("", ".", ".."):
            raise InvalidArgument("path: required", hint="The file has no name of its own.")
        return path + name

    @property
    def cave(self) -> str | None:
        return self._text("cave")

    @property
    def version(self) -> str | None:
        return self._text("version")


class _Target:
    """A file in a cave that is being written: whole when the block ends well, else as it was."""

    def __init__(self, ask: Ask, path: str, cave: str | None, version: str | None) -> None:
        self._ask, self._path, self._cave, self._version = ask, path, cave, version
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        place = await self._ask.caves.place(self._cave)
        writing = place.cave.writing(self._path, parents=True, version=self._version)
        self._writing = await self._stack.enter_async_context(writing)
        self.take: Take = self._writing.send
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, exc, trace)

    def answer(self) -> Response:
        done = self._writing.written
        shown = {key: done[key] for key in ("path", "created", "size", "version")}
        return answer(shown, 201 if done["created"] else 200)


class _Form:
    """multipart/form-data as it comes: a part is read before the next one begins."""

    def __init__(self, request: Request) -> None:
        self._request = request
        options = parse_options_header(request.headers.get("content-type", ""))[1]
        boundary = options.get(b"boundary")
        if not boundary:
            raise InvalidArgument("the form has no boundary in its Content-Type")
        self._events: list[tuple[str, bytes]] = []
        self._parser = MultipartParser(boundary, {
            "on_part_begin": lambda: self._events.append(("begin", b"")),
            "on_part_data": lambda data, start, end: self._events.append(("data", bytes(data[start:end]))),
            "on_part_end": lambda: self._events.append(("end", b"")),
            "on_header_field": lambda data, start, end: self._events.append(("field", bytes(data[start:end]))),
            "on_header_value": lambda data, start, end: self._events.append(("value", bytes(data[start:end]))),
            "on_header_end": lambda: self._events.append(("header", b"")),
            "on_headers_finished": lambda: self._events.append(("headers", b"")),
        })  # fmt: skip
        self._body = request.stream()

    async def next(self) -> tuple[str, bytes] | None:
        """The next event, None at the end. Raises InvalidArgument."""
        while not self._events:
            try:
                piece = await anext(self._body)
                if piece:
                    self._parser.write(piece)
            except StopAsyncIteration:
                return None
            except ValueError as exc:
                raise InvalidArgument(f"not multipart/form-data: {str(exc)[:100]}") from None
        return self._events.pop(0)

    async def parts(self) -> AsyncIterator[tuple[str, str | None, _Part]]:
        """Each part: its name, its file's name if it is a file, its content, which must be read."""
        while (event := await self.next()) is not None:
            if event[0] != "begin":
                continue
            headers = await self._headers()
            options = parse_options_header(headers.get(b"content-disposition", b""))[1]
            name = options.get(b"name", b"").decode("utf-8", "replace")
            filename = options.get(b"filename")
            yield (
                name,
                None if filename is None else filename.decode("utf-8", "replace"),
                _Part(self),
            )

    async def _headers(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        field = value = b""
        while (event := await self.next()) is not None:
            kind, data = event
            if kind == "field":
                field += data
            elif kind == "value":
                value += data
            elif kind == "header":
                found[field.lower()] = value
                field = value = b""
            elif kind == "headers":
                break
            if len(field) + len(value) > FIELD_BYTES or len(found) > 16:
                raise InvalidArgument("a part of the form has too large a head")
        return found


class _Part:
    def __init__(self, form: _Form) -> None:
        self._form = form

    async def into(self, take: Take) -> None:
        while True:
            event = await self._form.next()
            if event is None:
                raise InvalidArgument("the form ends in the middle of a part")
            if event[0] == "end":
                return
            await take(event[1])

    async def text(self) -> str:
        kept = bytearray()

        async def take(data: bytes) -> None:
            kept.extend(data)
            if len(kept) > FIELD_BYTES:
                raise InvalidArgument("a field of the form is too long")

        await self.into(take)
        return kept.decode("utf-8", "replace")


# --- out ---------------------------------------------------------------------------------------------


async def _download(ask: Ask) -> Response:
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

    async def _pieces(self) -> AsyncIterator[bytes]:
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
        pieces = self._pieces()
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
