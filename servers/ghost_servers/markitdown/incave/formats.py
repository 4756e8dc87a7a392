# Only this file decides what a document is. Its content decides; its name only where the content can be several.
"""Recognize a document: deterministic, without a model, and without believing the file's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from types import MappingProxyType

from . import archives
from .refusal import Refused, damaged, unsupported

PACKAGES: Mapping[str, str] = MappingProxyType({"word/": "docx", "ppt/": "pptx", "xl/": "xlsx"})
_OLE = bytes.fromhex("d0cf11e0a1b11ae1")
_LIBREOFFICE = "Where the cave has LibreOffice: soffice --headless --convert-to docx FILE"
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# What begins with these is known, and is no document.
_OTHERS = (
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"BM", "an image"),
    (b"II*\0", "an image"),
    (b"MM\0*", "an image"),
    (b"\x1f\x8b", "a compressed file"),
    (b"BZh", "a compressed file"),
    (b"\xfd7zXZ", "a compressed file"),
    (b"7z\xbc\xaf", "an archive"),
    (b"Rar!", "an archive"),
    (b"\x7fELF", "a program"),
    (b"ID3", "audio"),
    (b"OggS", "audio"),
    (b"fLaC", "audio"),
    (b"RIFF", "an image, audio or video"),
)
_HINTS = MappingProxyType(
    {
        "an image": "Read it with the file server: it answers the picture.",
        "an archive": "Unpack it in the cave, then convert the files in it.",
        "a compressed file": "Unpack it in the cave, then convert the file in it.",
    }
)
_HTML = re.compile(rb"<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_FEED = re.compile(rb"<(rss|feed|rdf:RDF)\b")
_META_CHARSET = re.compile(
    rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE
)
# Bytes that text never has are what is left when all others are deleted.
_TEXT_BYTES = bytes(b for b in range(256) if b >= 32 or b in b"\b\t\n\v\f\r\x1a\x1b")
_HEAD, _SAMPLE = 2 << 10, 1 << 16


@dataclass(frozen=True, slots=True)
class Document:
    """A recognized document. The data of what is text is UTF-8, whatever it was before."""

    format: str
    data: bytes

    def open(self) -> BytesIO:
        return BytesIO(self.data)


def recognize(data: bytes, name: str, media_type: str, charset: str) -> Document:
    """What this is. Raises Refused for what is not a document, or one of a kind that nothing here reads."""
    if b"%PDF-" in data[:1024]:
        return Document("pdf", data)
    if data[:4] == b"PK\x03\x04":
        return Document(_package(data), data)
    if data[:8] == _OLE:
        return Document(_compound(data), data)
    for magic, what in _OTHERS:
        if data.startswith(magic) and not _is_text(data):
            raise unsupported(what, _HINTS.get(what, ""))
    return _text(data, name.lower(), media_type.lower(), charset)


def _package(data: bytes) -> str:
    names = archives.names(data)
    if "[Content_Types].xml" in names:
        for folder, found in PACKAGES.items():
            if any(name.startswith(folder) for name in names):
                if found == "xlsx" and "xl/workbook.bin" in names:
                    raise unsupported("a binary workbook (XLSB)", "Save it as XLSX.")
                return found
    if "META-INF/container.xml" in names:
        return "epub"
    if "content.xml" in names and "mimetype" in names:
        raise unsupported("an OpenDocument file", _LIBREOFFICE)
    raise unsupported("an archive", _HINTS["an archive"])


def _compound(data: bytes) -> str:
    """Formats of the old Office, which share one container."""
    import olefile

    try:
        with olefile.OleFileIO(BytesIO(data)) as container:
            streams = {entry[0] for entry in container.listdir()}
    except Exception as exc:
        raise damaged("Office", str(exc)) from exc
    if streams & {"Workbook", "Book"}:
        return "xls"
    if "__properties_version1.0" in streams:
        return "msg"
    if "EncryptedPackage" in streams:
        raise unsupported("a document with a password", "Save it without the password.")
    if "WordDocument" in streams:
        raise unsupported("an old Word file (DOC)", _LIBREOFFICE)
    if "PowerPoint Document" in streams:
        raise unsupported("an old PowerPoint file (PPT)", _LIBREOFFICE.replace("docx", "pptx"))
    raise unsupported("this kind of Office file")


def _is_text(data: bytes) -> bool:
    """Whether the beginning has no bytes that text never has."""
    sample = data[:_SAMPLE]
    marked = any(data.startswith(mark) for mark, _ in _BOMS)
    return marked or not sample.translate(None, _TEXT_BYTES)


def _text(data: bytes, name: str, media_type: str, charset: str) -> Document:
    if _begins_with(_FEED, data):
        return Document("rss", data)
    clean = _decode(data, charset).encode("utf-8", "replace")
    extension = name.rpartition(".")[2] if "." in name else ""
    if _begins_with(_HTML, clean) or extension in ("html", "htm", "xhtml"):
        return Document("html", clean)
    if extension == "csv" or "csv" in media_type:
        return Document("csv", clean)
    if extension == "ipynb" or (clean[:1] == b"{" and b'"nbformat"' in clean):
        return Document("ipynb", clean)
    return Document("html" if media_type.startswith("text/html") else "text", clean)


def _begins_with(tag: re.Pattern[bytes], data: bytes) -> bool:
    """Whether this is markup with that tag near its beginning."""
    head = data[:_HEAD].removeprefix(_BOMS[0][0]).lstrip()
    return head.startswith(b"<") and tag.search(head) is not None


def _decode(data: bytes, charset: str) -> str:
    if not _is_text(data):
        raise Refused(
            "unsupported_format",
            "this is binary data of no kind that can be converted",
            "PDF, DOCX, PPTX, XLSX, XLS, MSG, EPUB, HTML, CSV, IPYNB and text can.",
        )
    for encoding in _encodings(data, charset):
        try:
            return data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    return data.decode(_guess(data), "replace")


def _encodings(data: bytes, charset: str) -> list[str]:
    """Encodings worth a try, the surest first."""
    marked = [encoding for mark, encoding in _BOMS if data.startswith(mark)]
    meta = _META_CHARSET.search(data[:4096])
    declared = [charset] if charset else []
    return [*marked, "utf-8", *declared, *([meta[1].decode("ascii")] if meta else [])]


def _guess(data: bytes) -> str:
    import charset_normalizer

    best = charset_normalizer.from_bytes(data[:_SAMPLE]).best()
    return best.encoding if best is not None else "cp1252"
