# A file that comes in is written piece by piece, and is there wholly or not at all.
"""What ``POST /v1/filesystem/upload`` does, for each kind of body."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from python_multipart.multipart import parse_options_header

from ghost_hub.rest.form import Form
from ghost_hub.rest.row import JSON, MULTIPART, RAW, Ask, answer
from ghost_mcp.errors import InvalidArgument

if TYPE_CHECKING:
    from starlette.responses import Response

    from ghost_mcp.cave import Writing

__all__ = ["upload"]

JSON_BYTES = 16 << 20


async def upload(ask: Ask) -> Response:
    """Write a file: the body itself, in a form or as base64 in JSON. Raises InvalidArgument, and what writing raises."""
    kind = parse_options_header(ask.request.headers.get("content-type", RAW))[0].decode("latin-1")
    if kind == JSON:
        return await _from_json(ask)
    if kind == MULTIPART:
        return await _from_form(ask)
    given = _Given(ask)
    async with _writing(ask, given.path, given.cave, given.version) as file:
        async for piece in ask.request.stream():
            if piece:
                await file.send(piece)
    return _told(file)


async def _from_json(ask: Ask) -> Response:
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
    async with _writing(ask, given.path, given.cave, given.version) as file:
        await file.send(data)
    return _told(file)


async def _from_form(ask: Ask) -> Response:
    """The fields ``path``, ``cave`` and ``version`` come before the file, or in the address."""
    given = _Given(ask)
    form = Form(ask.request)
    async with AsyncExitStack() as stack:
        file: Writing | None = None
        async for name, filename, pieces in form.parts():
            if filename is None:
                given.set(name, await pieces.text())
                continue
            if file is not None:
                raise InvalidArgument("one file at a time", hint="Send a request for each file.")
            target = _writing(ask, given.path_of(filename), given.cave, given.version)
            file = await stack.enter_async_context(target)
            await pieces.into(file.send)
    if file is None:
        raise InvalidArgument("the form has no file")
    return _told(file)


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


@asynccontextmanager
async def _writing(
    ask: Ask, path: str, cave: str | None, version: str | None
) -> AsyncIterator[Writing]:
    """A file in a cave: whole when the block ends well, else as it was."""
    place = await ask.caves.place(cave)
    async with place.cave.writing(path, parents=True, version=version) as file:
        yield file


def _told(file: Writing) -> Response:
    done = file.written
    shown = {key: done[key] for key in ("path", "created", "size", "version")}
    return answer(shown, 201 if done["created"] else 200)
