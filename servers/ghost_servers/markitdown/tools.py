# Handlers only: where documents come from is in source.py, where they are opened in converters.py.
"""The three tools: convert, extract_text, extract_images."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from ghost_mcp.errors import InvalidArgument
from ghost_mcp.reply import EXCERPT_CHARS, Picture, Reply, size_text
from ghost_mcp.tool import Call, tool
from ghost_servers.markitdown.converters import converter_for
from ghost_servers.markitdown.results import (
    beginning,
    field_number,
    field_text,
    pictures_of,
    save_images,
    save_text,
)
from ghost_servers.markitdown.source import Source, locate

if TYPE_CHECKING:
    from ghost_servers.markitdown.results import Image

MAX_IMAGES, MAX_LISTED = 500, 30
SHOWN, SHOWN_BYTES, SHOWN_TOTAL, SHOWN_SIDE = 5, 256 << 10, 1 << 20, 1568
MIME_TYPES = {"png": "image/png", "jpg": "image/jpeg", "gif": "image/gif", "webp": "image/webp"}
# Of a range: the time that _RANGE takes grows with the square of what is no range.
MAX_PAGES_CHARS = 40
_RANGE = re.compile(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})?)?\s*\Z")


class Converted(TypedDict, total=False):
    markdown: str
    title: str
    format: str
    size: int
    output_path: str


class Text(TypedDict, total=False):
    content: str
    start: int
    size: int
    pages: int


class Images(TypedDict, total=False):
    images: list[Any]
    found: int


Document = Annotated[str, Field(description="File or data: URI")]


@tool(title="Convert to Markdown", effect="write", result=Converted, idempotent=True)
async def convert(call: Call, *, path: Document, output_path: str | None = None) -> Reply:
    """PDF, DOCX, PPTX, XLSX, XLS, MSG, EPUB, HTML, CSV, IPYNB to Markdown. A long result is saved in the cave."""
    source, answer, payload = await _ask(call, path, {"op": "convert"})
    data: dict[str, Any] = {
        "markdown": beginning(payload, EXCERPT_CHARS),
        "format": field_text(answer, "format"),
        "size": field_number(answer, "length"),
    }
    if title := field_text(answer, "title"):
        data["title"] = title
    if output_path is not None or data["size"] > len(data["markdown"]):
        data["output_path"] = await save_text(call.cave, source, payload, output_path)
    return Reply(text=_converted_text(data), data=data)


def _converted_text(data: dict[str, Any]) -> str:
    left = data["size"] - len(data["markdown"])
    lines = [data["markdown"] or "(the document has no text)"]
    if left > 0:
        lines.append(f"[{left} more characters; the whole: {data['output_path']}]")
    elif "output_path" in data:
        lines.append(f"[saved: {data['output_path']}]")
    return "\n".join(lines)


@tool(title="Extract text", effect="read", result=Text)
async def extract_text(
    call: Call,
    *,
    path: Document,
    pages: Annotated[str | None, Field(description="Like 3 or 2-5; also slides, sheets")] = None,
    start: Annotated[int, Field(ge=0)] = 0,
    limit: Annotated[int, Field(ge=1)] = EXCERPT_CHARS,
) -> Reply:
    """Plain text of a document from character start on."""
    first, last = _page_range(pages)
    limit = min(limit, EXCERPT_CHARS)
    request = {"op": "text", "first": first, "last": last, "start": start, "limit": limit}
    _, answer, payload = await _ask(call, path, request)
    content = beginning(payload, limit)
    size = field_number(answer, "length")
    if start and start >= size:
        raise InvalidArgument(f"the text has only {size} characters")
    data = {
        "content": content,
        "start": start,
        "size": size,
        "pages": field_number(answer, "pages"),
    }
    left = size - start - len(content)
    more = f"\n[{left} more characters: start={start + len(content)}]" if left > 0 else ""
    return Reply(text=(content or "(no text)") + more, data=data)


def _page_range(pages: str | None) -> tuple[int, int]:
    """First and last page from 1; 0 is open. Raises InvalidArgument."""
    if pages is None:
        return 0, 0
    match = _RANGE.match(pages) if len(pages) <= MAX_PAGES_CHARS else None
    if match is None or match[1] == "0":
        raise InvalidArgument(f"not a page range: {pages[:40]!r}", hint="Write 3, 2-5 or 9-.")
    first = int(match[1])
    last = first if "-" not in pages else int(match[2] or 0)
    if last and last < first:
        raise InvalidArgument(f"not a page range: {pages[:40]!r}", hint="The smaller page first.")
    return first, last


@tool(title="Extract images", effect="write", result=Images, idempotent=True)
async def extract_images(
    call: Call,
    *,
    path: Document,
    output_dir: str | None = None,
    limit: Annotated[int, Field(ge=1)] = 50,
    show: Annotated[bool, Field(description="Also answer small ones")] = False,
) -> Reply:
    """Save the images in PDF, DOCX, PPTX, XLSX, HTML, EPUB to the cave and list them."""
    source, answer, payload = await _ask(
        call, path, {"op": "pictures", "limit": min(limit, MAX_IMAGES)}
    )
    images = pictures_of(answer, payload)
    folder = output_dir or f"{posixpath.splitext(source.path)[0]}_images"
    listed = await save_images(call.cave, folder, images)
    found = max(field_number(answer, "found"), len(images))
    return Reply(
        text=_images_text(listed, found, folder),
        data={"images": listed[:MAX_LISTED], "found": found},
        pictures=_shown(images) if show else [],
    )


def _images_text(listed: list[dict[str, Any]], found: int, folder: str) -> str:
    if not found:
        return "no images found"
    lines = [f"{len(listed)} of {found} images saved in {folder}"]
    lines += [
        f"{posixpath.basename(i['path'])} {i['width']}x{i['height']} {size_text(i['size'])} {i['source']}"
        for i in listed[:MAX_LISTED]
    ]
    if len(listed) > MAX_LISTED:
        lines.append(f"... and {len(listed) - MAX_LISTED} more in that folder")
    return "\n".join(lines)


def _shown(images: list[Image]) -> list[Picture]:
    """The first few that are small in bytes and pixels and of a kind that every client shows."""
    shown: list[Picture] = []
    left = SHOWN_TOTAL
    for image in images:
        fits = (
            len(image.data) <= min(left, SHOWN_BYTES)
            and max(image.width, image.height) <= SHOWN_SIDE
        )
        if fits and image.format in MIME_TYPES and len(shown) < SHOWN:
            shown.append(Picture(data=image.data, mime_type=MIME_TYPES[image.format]))
            left -= len(image.data)
    return shown


async def _ask(
    call: Call, path: str, request: dict[str, Any]
) -> tuple[Source, dict[str, Any], bytes]:
    source = await locate(call.cave, path)
    answer, payload = await converter_for(call.cave).ask(source, request, call.progress)
    return source, answer, payload
