# A form is read as it comes: a part before the next one begins, and none of it is kept.
"""multipart/form-data of any size. What is wrong with it is an InvalidArgument."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from python_multipart.multipart import MultipartParser, parse_options_header

from ghost_mcp.errors import InvalidArgument

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["Form", "Part"]

FIELD_BYTES = 8192
#: A form of ours has three fields and a file; a flood of parts would keep the hub from everybody else's work.
MOST_PARTS = 16
Take = Callable[[bytes], Awaitable[None]]


class Form:
    """multipart/form-data as it comes: a part is read before the next one begins."""

    def __init__(self, request: Request) -> None:
        self._request = request
        options = parse_options_header(request.headers.get("content-type", ""))[1]
        boundary = options.get(b"boundary")
        if not boundary:
            raise InvalidArgument("the form has no boundary in its Content-Type")
        self._events: deque[tuple[str, bytes]] = deque()
        self._parts = 0
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
        return self._events.popleft()

    async def parts(self) -> AsyncIterator[tuple[str, str | None, Part]]:
        """Each part: its name, its file's name if it is a file, its content, which must be read. Raises InvalidArgument."""
        while (event := await self.next()) is not None:
            if event[0] != "begin":
                continue
            self._parts += 1
            if self._parts > MOST_PARTS:
                raise InvalidArgument("the form has too many parts")
            headers = await self._headers()
            options = parse_options_header(headers.get(b"content-disposition", b""))[1]
            name = options.get(b"name", b"").decode("utf-8", "replace")
            filename = options.get(b"filename")
            yield (
                name,
                None if filename is None else filename.decode("utf-8", "replace"),
                Part(self),
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


class Part:
    """One part, which is read once: into what takes its pieces, or as a short text."""

    def __init__(self, form: Form) -> None:
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
