# Only this file decides what a document's plain text is. It never goes through Markdown.
"""Documents to plain text, in sections: pages, slides, sheets or chapters; a document without them is one."""

from __future__ import annotations

import json
import posixpath
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import mammoth
import pandas
import pptx
import pypdfium2
from bs4 import BeautifulSoup
from defusedxml import ElementTree
from markitdown import StreamInfo, converters

from . import archives

if TYPE_CHECKING:
    from .formats import Document

    # How many sections there are, and a function that makes the text of one of them.
    Sections = tuple[int, Callable[[int], str]]

_BLOCKS = [
    "address",
    "article",
    "aside",
    "blockquote",
    "br",
    "caption",
    "dd",
    "details",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "li",
    "main",
    "nav",
    "ol",
    "option",
    "p",
    "pre",
    "section",
    "summary",
    "table",
    "tr",
    "ul",
]
_CELLS = ["td", "th"]
_UNSEEN = ["head", "noscript", "script", "style", "template"]
# Stand in for white space that counts while the other is folded.
_LINE, _TAB, _SPACE = "\ue000", "\ue001", "\ue002"


def sections(document: Document) -> Sections:
    """The sections of a document: each is made only when it is asked for, where the format allows."""
    return _READERS[document.format](document)


def html_text(html: str | bytes) -> str:
    """What a reader of the page sees: a line for each block, a tab between cells."""
    soup = BeautifulSoup(html, "lxml")
    for tag in soup(_UNSEEN):
        tag.decompose()
    for text in soup.select("pre"):
        for string in list(text.find_all(string=True)):
            string.replace_with(str(string).replace("\n", _LINE).replace(" ", _SPACE))
    for tag in soup(_BLOCKS):
        tag.insert_before(_LINE)
        tag.append(_LINE)
    for tag in soup(_CELLS):
        tag.append(_TAB)
    folded = re.sub(r"\s+", " ", soup.get_text()).replace(_TAB, "\t")
    lines = "\n".join(line.strip() for line in folded.split(_LINE)).replace(_SPACE, " ")
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def _pdf(document: Document) -> Sections:
    pdf = pypdfium2.PdfDocument(document.data)

    def page(number: int) -> str:
        text: str = pdf[number].get_textpage().get_text_bounded()
        return text.replace("\r\n", "\n").strip()

    return len(pdf), page


def _pptx(document: Document) -> Sections:
    slides = list(pptx.Presentation(document.open()).slides)

    def slide(number: int) -> str:
        found = slides[number]
        lines = [line for shape in found.shapes for line in _shape_lines(shape)]
        if found.has_notes_slide and (notes := found.notes_slide.notes_text_frame) is not None:
            lines.append(notes.text)
        return "\n".join(line for line in lines if line.strip())

    return len(slides), slide


def _shape_lines(shape: Any) -> Iterator[str]:
    if shape.has_text_frame:
        yield shape.text_frame.text.replace("\v", "\n")
    elif shape.has_table:
        for row in shape.table.rows:
            yield "\t".join(cell.text for cell in row.cells)
    for inner in getattr(shape, "shapes", ()):
        yield from _shape_lines(inner)


def _sheets(document: Document) -> Sections:
    engine = "openpyxl" if document.format == "xlsx" else "xlrd"
    book = pandas.ExcelFile(document.open(), engine=engine)

    def sheet(number: int) -> str:
        frame = book.parse(number, header=None, dtype=object)
        text: str = frame.to_csv(sep="\t", header=False, index=False, lineterminator="\n")
        return f"{book.sheet_names[number]}\n{text}".strip()

    return len(book.sheet_names), sheet


def _epub(document: Document) -> Sections:
    """Chapters in the order of the book's spine."""
    book = zipfile.ZipFile(document.open())
    package = archives.elements(book, "META-INF/container.xml", "rootfile")[0].get("full-path", "")
    files = {e.get("id"): e.get("href", "") for e in archives.elements(book, package, "item")}
    base, there = posixpath.dirname(package), set(book.namelist())
    hrefs = [files.get(e.get("idref"), "") for e in archives.elements(book, package, "itemref")]
    paths = [posixpath.normpath(posixpath.join(base, unquote(href))) for href in hrefs]
    chapters = [path for path in paths if path in there]
    return len(chapters), lambda number: html_text(book.read(chapters[number]))


def _notebook(document: Document) -> Sections:
    cells = json.loads(document.data)["cells"]
    return _whole("\n\n".join("".join(cell.get("source", ())) for cell in cells))


def _message(document: Document) -> Sections:
    """markitdown's own few lines around the message, without their marks."""
    info = StreamInfo(extension=".msg")
    text = converters.OutlookMsgConverter().convert(document.open(), info).markdown
    head, _, body = text.removeprefix("# Email Message").partition("\n## Content")
    head = re.sub(r"^\*\*(\w+):\*\*", r"\1:", head, flags=re.MULTILINE)
    return _whole(f"{head.strip()}\n\n{body.strip()}".strip())


def _feed(document: Document) -> Sections:
    wanted = ("title", "description", "summary", "content", "encoded")
    root = ElementTree.fromstring(document.data)
    found = (e.text or "" for e in root.iter() if e.tag.rpartition("}")[2] in wanted)
    return _whole("\n".join(text for text in map(html_text, found) if text))


def _plain(document: Document) -> Sections:
    return _whole("\n".join(document.data.decode().removeprefix("\ufeff").splitlines()))


def _whole(text: str) -> Sections:
    return 1, lambda number: text


_READERS: Mapping[str, Callable[[Document], Sections]] = MappingProxyType(
    {
        "pdf": _pdf,
        "pptx": _pptx,
        "xlsx": _sheets,
        "xls": _sheets,
        "epub": _epub,
        "docx": lambda document: _whole(mammoth.extract_raw_text(document.open()).value.strip()),
        "html": lambda document: _whole(html_text(document.data.decode())),
        "msg": _message,
        "rss": _feed,
        "ipynb": _notebook,
        "csv": _plain,
        "text": _plain,
    }
)
