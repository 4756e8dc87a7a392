"""read: a page of a file, an image, or a command's output."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
from pydantic import Field
from typing_extensions import TypedDict

from ghost_mcp.errors import InvalidArgument, LimitExceeded, TimedOut
from ghost_mcp.outputs import clean, decode, is_output, looks_binary, whole_characters
from ghost_mcp.reply import Picture, Reply, size_text
from ghost_mcp.tool import Call, tool
from ghost_servers.file import pictures
from ghost_servers.file.blocks import blocks
from ghost_servers.file.bounds import within

if TYPE_CHECKING:
    from ghost_servers.file.blocks import Block, Blocks

PAGE_CHARS = 7000
# A page of the widest characters; in base64 a page of bytes is shorter.
PAGE_BYTES = 4 * PAGE_CHARS
PAGE_BINARY = PAGE_CHARS * 3 // 4
# Lines are counted in blocks of this size, and for no longer than this.
COUNTED_BYTES = 4 << 20
COUNTING_S = 15.0


class ReadResult(TypedDict, total=False):
    content: str
    encoding: str
    size: int
    version: str
    next_line: int
    next_offset: int
    mime_type: str


@tool(title="Read a file", effect="read", result=ReadResult)
async def read(
    call: Call,
    *,
    path: Annotated[str, Field(description="Or an output's URI.")],
    start_line: Annotated[int, within(1)] = 1,
    limit: Annotated[int | None, Field(description="Lines; with offset bytes."), within(1)] = None,
    numbers: Annotated[bool, Field(description="Number the lines.")] = False,
    offset: Annotated[int | None, Field(description="Start at this byte."), within(0)] = None,
    encoding: Literal["utf-8", "base64"] | None = None,
) -> Reply:
    """Read a page of text, an image, or bytes as base64. Go on at next_line or next_offset."""
    if offset is not None and (start_line != 1 or numbers):
        raise InvalidArgument("read: offset goes without start_line and numbers")
    source = blocks(call.cave, path)
    first = await source.at(offset or 0, max(PAGE_BYTES, pictures.HEAD_BYTES))
    if encoding is None and not offset and start_line == 1:
        image = pictures.sniff(first.data)
        if image is not None:
            return await _image(source, first, image)
    page = first
    if start_line > 1:
        at = await _line_start(source, first, start_line)
        page = await source.at(at, PAGE_BYTES)
    if offset is not None and limit is not None:
        page = replace(page, data=page.data[:limit])
    text = None if encoding == "base64" else _text(page, begins=not offset, strict=encoding is None)
    if text is None:
        return _binary(page, limit)
    if offset is not None:
        return _reply(text, _cut(text, whole_lines=False), None, page.offset - offset)
    cut = _cut(text, limit=limit, number=start_line if numbers else None)
    return _reply(text, cut, start_line, 0)


def _text(page: Block, *, begins: bool, strict: bool) -> Block | None:
    """The page from one whole character to another; None when it is no text."""
    data = page.data[:PAGE_BYTES]
    ends = page.offset + len(data) >= page.size
    cut = whole_characters(data, begins=begins, ends=True)
    text = whole_characters(cut, begins=True, ends=ends) or cut
    if strict and not _is_text(text, is_output(page.path)):
        return None
    return replace(page, data=text, offset=page.offset + len(data) - len(cut))


def _is_text(data: bytes, written_by_a_command: bool) -> bool:
    """An output may hold some bytes that no text has; a file that is to be edited may not."""
    if written_by_a_command:
        return not looks_binary(decode(data))
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


# --- lines -----------------------------------------------------------------------------------------


async def _line_start(source: Blocks, first: Block, line: int) -> int:
    """Where a line begins. Raises InvalidArgument behind the last one, TimedOut for one too far away."""
    before = 1
    with anyio.move_on_after(COUNTING_S):
        block = first
        while True:
            ends = block.data.count(b"\n")
            if before + ends >= line:
                rest = block.data.split(b"\n", line - before)[-1]
                at = block.end - len(rest)
                if at < block.size:
                    return at
            before += ends
            if block.end >= block.size or not block.data:
                lines = before - (not block.size or block.data.endswith(b"\n"))
                raise InvalidArgument(f"{clean(block.path)} has {lines} line{'s' * (lines != 1)}")
            block = await source.at(block.end, COUNTED_BYTES)
    raise TimedOut(
        f"line {line} is too far into a file of {size_text(first.size)} to be counted to",
        hint="Use offset, in bytes.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What of a page is shown: its text, how many whole lines, and how many bytes of the page it took."""

    text: str
    lines: int
    taken: int
    inside_line: bool


def _cut(
    page: Block,
    *,
    limit: int | None = None,
    number: int | None = None,
    whole_lines: bool = True,
) -> Cut:
    """As many lines as may be shown; of a line that alone is too long, its beginning."""
    parts: list[str] = []
    room, taken, lines = PAGE_CHARS, 0, 0
    pieces = page.data.split(b"\n")
    at_end = page.end >= page.size or not whole_lines
    for index, raw in enumerate(pieces):
        ended = index < len(pieces) - 1
        if not raw and not ended:
            break
        mark = "" if number is None else f"{number + lines:6}\t"
        text = mark + decode(raw) + "\n" * ended
        whole = (ended or at_end) and len(text) <= room
        if not whole and parts:
            break
        if not whole:
            raw = whole_characters(raw[: PAGE_CHARS - len(mark)], begins=True, ends=False)
            return Cut(text=mark + decode(raw), lines=0, taken=len(raw), inside_line=True)
        parts.append(text)
        room, taken, lines = room - len(text), taken + len(raw) + ended, lines + 1
        if lines == limit:
            break
    return Cut(text="".join(parts), lines=lines, taken=taken, inside_line=False)


# --- answers ---------------------------------------------------------------------------------------


def _known(page: Block) -> dict[str, Any]:
    return {"size": page.size, **({"version": clean(page.version, 100)} if page.version else {})}


def _reply(page: Block, cut: Cut, start_line: int | None, gap: int) -> Reply:
    data: dict[str, Any] = {"content": cut.text, "encoding": "utf-8", **_known(page)}
    stop = page.offset + cut.taken
    notes = []
    if gap > 0:
        notes.append(f"{gap} bytes before this were not kept")
    if stop < page.size:
        data["next_offset"] = stop
        if start_line is not None and not cut.inside_line:
            data["next_line"] = start_line + cut.lines
        onward = f"start_line {data['next_line']}" if "next_line" in data else f"offset {stop}"
        notes.append(f"more: {onward}")
    elif page.running:
        data["next_offset"] = stop
        notes.append(f"the command still runs; what follows: offset {stop}")
    return _noted(page, data, notes)


def _noted(page: Block, data: dict[str, Any], notes: list[str]) -> Reply:
    facts = [size_text(page.size), *notes]
    if "version" in data:
        facts.append(f"version {data['version']}")
    content = data["content"]
    break_ = "" if not content or content.endswith("\n") else "\n"
    return Reply(text=f"{content}{break_}[{'; '.join(facts)}]", data=data)


def _binary(page: Block, limit: int | None) -> Reply:
    raw = page.data[: min(limit or PAGE_BINARY, PAGE_BINARY)]
    data = {"content": base64.b64encode(raw).decode(), "encoding": "base64", **_known(page)}
    notes = ["base64"]
    if page.offset + len(raw) < page.size:
        data["next_offset"] = page.offset + len(raw)
        notes.append(f"more: offset {data['next_offset']}")
    return _noted(page, data, notes)


async def _image(source: Blocks, first: Block, image: pictures.ImageHead) -> Reply:
    """The image for the model, undecoded. Raises LimitExceeded for one that no client takes."""
    what = f"{image.mime_type}, {image.width}x{image.height}, {size_text(first.size)}"
    if first.size > pictures.MAX_BYTES or not image.fits:
        raise LimitExceeded(
            f"this image is too large to show: {what}",
            hint="Make a smaller copy in the cave (Pillow, ImageMagick), or open it in the browser and "
            "take a screenshot. Its bytes: encoding base64.",
            code="too_large",
        )
    data = first.data
    while len(data) < first.size:
        block = await source.at(len(data), pictures.MAX_BYTES)
        if not block.data or (block.offset, block.version) != (len(data), first.version):
            raise InvalidArgument("the image changed while it was read; read it again")
        data += block.data
    told = {"mime_type": image.mime_type, **_known(first)}
    version = f", version {told['version']}" if "version" in told else ""
    return Reply(
        text=f"[{what}{version}]",
        data=told,
        pictures=[Picture(data=data, mime_type=image.mime_type)],
    )
