# Only this file decides what counts as a document's picture. It reads their headers, and decodes as little as it can.
"""The pictures in a document, each once, with where it stands."""

from __future__ import annotations

import base64
import binascii
import hashlib
import posixpath
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes

import pypdfium2
import pypdfium2.raw
from PIL import Image

from . import archives
from .refusal import Refused

if TYPE_CHECKING:
    from .formats import Document

    Found = tuple[bytes, str]  # the encoded picture, and where it stands

MAX_PIXELS = 64 << 20  # of a PDF's picture that must be decoded: four bytes each
MAX_PICTURE = 16 << 20
Image.MAX_IMAGE_PIXELS = (
    None  # only headers are read here: a huge picture has a size like any other
)
# Of Pillow's formats those that documents have; their parsers read a header here, never pixels.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "WMF", "JPEG2000", "AVIF")
_EXTENSIONS = frozenset(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".gif",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".ico",
        ".svg",
        ".emf",
        ".wmf",
        ".jp2",
    ]
)
_DATA_URI = re.compile(r"data:image/[\w.+-]+(?:;[\w=.+-]+)*,[^\s\"'<>)]+", re.IGNORECASE)
_FORM_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture: encoded bytes, format as a file name's ending, size in pixels (0: unknown), place."""

    data: bytes
    format: str
    width: int
    height: int
    source: str


def pictures(document: Document, limit: int, limit_bytes: int) -> tuple[list[Picture], int]:
    """The first ``limit`` pictures of at most ``limit_bytes`` together, and how many there are in all."""
    finder = _FINDERS.get(document.format)
    if finder is None:
        raise Refused(
            "unsupported_format",
            f"no images can be extracted from {document.format.upper()}",
            "They can from PDF, DOCX, PPTX, XLSX, HTML and EPUB.",
        )
    kept: list[Picture] = []
    seen: set[bytes] = set()
    left = limit_bytes
    for data, source in finder(document):
        digest = hashlib.sha256(data).digest()
        if digest in seen or not data:
            continue
        seen.add(digest)
        if len(kept) < limit and len(data) <= min(left, MAX_PICTURE):
            kept.append(_describe(data, source))
            left -= len(data)
    return kept, len(seen)


def _describe(data: bytes, source: str) -> Picture:
    with suppress(Exception), Image.open(BytesIO(data), formats=FORMATS) as image:
        kind = "jpg" if image.format == "JPEG" else str(image.format).lower()
        return Picture(data, kind, *image.size, source)
    kind = "svg" if b"<svg" in data[:2048] else "bin"
    return Picture(data, kind, 0, 0, source)


# --- PDF ------------------------------------------------------------------------------------------


def _pdf(document: Document) -> Iterator[Found]:
    """PDFium's picture objects: JPEG and JPEG 2000 as they stand in the file, others decoded into PNG."""
    pdf = pypdfium2.PdfDocument(document.data)
    kinds = (pypdfium2.raw.FPDF_PAGEOBJ_IMAGE,)
    for number in range(len(pdf)):
        page = pdf[number]
        for image in page.get_objects(filter=kinds, max_depth=_FORM_DEPTH):
            yield _pdf_picture(image), f"page {number + 1}"
        page.close()


def _pdf_picture(image: Any) -> bytes:
    """The picture's file, or nothing when it is broken or too large to decode."""
    out = BytesIO()
    with suppress(pypdfium2.PdfiumError):
        width, height = image.get_px_size()
        if width * height <= MAX_PIXELS:
            image.extract(out, fb_format="png")
    return out.getvalue()


# --- Office ---------------------------------------------------------------------------------------


def _office(document: Document) -> Iterator[Found]:
    """Every media part of the package; relationships say on which slide, sheet or part it is first used."""
    with zipfile.ZipFile(document.open()) as package:
        names = package.namelist()
        places = _places(package, document.format)
        media = [n for n in names if "/media/" in n and not n.endswith("/")]
        order = {name: index for index, name in enumerate(places)}
        for name in sorted(media, key=lambda n: (order.get(n, len(order)), n)):
            yield package.read(name), places.get(name, name)


def _places(package: zipfile.ZipFile, kind: str) -> dict[str, str]:
    """Part -> the section that reaches it first, in reading order."""
    places: dict[str, str] = {}
    for label, part in _office_sections(package, kind):
        waiting = [part]
        while waiting:
            current = waiting.pop(0)
            if current in places:
                continue
            places[current] = label
            waiting += _related(package, current).values()
    return places


def _office_sections(package: zipfile.ZipFile, kind: str) -> list[tuple[str, str]]:
    if kind == "docx":
        return [("document", "word/document.xml")]
    main, tag = (
        ("ppt/presentation.xml", "sldId") if kind == "pptx" else ("xl/workbook.xml", "sheet")
    )
    targets = _related(package, main)
    found = []
    for number, entry in enumerate(archives.elements(package, main, tag)):
        label = f"slide {number + 1}" if kind == "pptx" else f"sheet {entry.get('name')}"
        reference = next((v for k, v in entry.items() if k.endswith("}id")), "")
        found.append((label[:100], targets.get(reference, "")))
    return found


def _related(package: zipfile.ZipFile, part: str) -> dict[str, str]:
    """Relationship id -> part, of one part of the package."""
    folder, name = posixpath.split(part)
    found = {}
    for entry in archives.elements(package, f"{folder}/_rels/{name}.rels", "Relationship"):
        if entry.get("TargetMode") != "External":
            target = posixpath.normpath(posixpath.join("/", folder, entry.get("Target", "")))
            found[entry.get("Id", "")] = target.lstrip("/")
    return found


# --- Web pages and books ----------------------------------------------------------------------------


def _html(document: Document) -> Iterator[Found]:
    for number, match in enumerate(_DATA_URI.finditer(document.data.decode())):
        head, _, text = match[0].partition(",")
        with suppress(binascii.Error, ValueError):
            if head.lower().endswith(";base64"):
                packed = re.sub(r"\s", "", unquote(text))
                yield base64.b64decode(packed + "=" * (-len(packed) % 4)), f"data: URI {number + 1}"
            else:
                yield unquote_to_bytes(text), f"data: URI {number + 1}"


def _epub(document: Document) -> Iterator[Found]:
    with zipfile.ZipFile(document.open()) as book:
        for name in book.namelist():
            if posixpath.splitext(name.lower())[1] in _EXTENSIONS:
                yield book.read(name), name


_FINDERS: Mapping[str, Callable[[Document], Iterator[Found]]] = MappingProxyType(
    {
        "pdf": _pdf,
        "docx": _office,
        "pptx": _office,
        "xlsx": _office,
        "html": _html,
        "epub": _epub,
    }
)
