# Only this file makes documents for tests, and another program makes them: LibreOffice.
"""Real documents, written as flat OpenDocument and exported by LibreOffice, once for each machine.

``folder()`` answers where they lie, in ``.cache/documents`` of the checkout:

* ``report.docx|pdf|html|epub|doc|odt``: three pages with headings, a table, a list, two pictures
* ``long.docx|pdf``: twenty pages of prose
* ``slides.pptx``: three slides, with a picture on the second and on the third
* ``book.xlsx|xls``: two sheets, with a picture on the second
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import itertools
import random
import re
import shutil
import struct
import subprocess
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

from PIL import Image, ImageDraw

__all__ = ["LONG_PAGES", "PICTURES", "folder", "message", "png", "prose"]

ROOT = Path(__file__).parents[1]
LONG_PAGES = 20
EXPORT_S = 240
# What is exported from which source: format -> sources. One start of LibreOffice for each line.
EXPORTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "docx": ("report.fodt", "long.fodt"),
        "pdf": ("report.fodt", "long.fodt"),
        "html": ("report.fodt",),
        "epub": ("report.fodt",),
        "doc": ("report.fodt",),
        "odt": ("report.fodt",),
        "pptx": ("slides.fodp",),
        "xlsx": ("book.fods",),
        "xls": ("book.fods",),
    }
)
# Where the format alone does not say it.
FILTERS: Mapping[str, str] = MappingProxyType({"html": "html:HTML (StarWriter):EmbedImages"})
_NAMES = """xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
 xmlns:style="urn:oasis:names:tc:opendocument:xmlns:style:1.0"
 xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"
 xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0"
 xmlns:draw="urn:oasis:names:tc:opendocument:xmlns:drawing:1.0"
 xmlns:presentation="urn:oasis:names:tc:opendocument:xmlns:presentation:1.0"
 xmlns:fo="urn:oasis:names:tc:opendocument:xmlns:xsl-fo-compatible:1.0"
 xmlns:svg="urn:oasis:names:tc:opendocument:xmlns:svg-compatible:1.0\""""
_WORDS = re.findall(
    r"\w+",
    "the cave keeps its files and its processes apart from every other cave while a warden listens on "
    "one socket and answers each call in turn so that nothing waits longer than it must and what was "
    "acknowledged is never lost even when power fails or a disk is full",
)


def png(width: int, height: int, color: str) -> bytes:
    """A picture that no other size or color equals, and that does not shrink to nothing."""
    image = Image.new("RGB", (width, height), color)
    draw = ImageDraw.Draw(image)
    chance = random.Random(f"{width}x{height}{color}")
    for _ in range(40):
        x, y = chance.randrange(width), chance.randrange(height)
        draw.line((x, y, chance.randrange(width), chance.randrange(height)), fill="white", width=2)
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


PICTURES: Mapping[str, tuple[int, int, str]] = MappingProxyType(
    {"red": (320, 200, "#b01020"), "blue": (240, 240, "#1030a0")}
)


def prose(words: int, seed: int) -> str:
    """Sentences that are the same for the same seed."""
    chance = random.Random(seed)
    picked = [chance.choice(_WORDS) for _ in range(words)]
    return " ".join(picked).capitalize() + "."


def _frame(name: str, extra: str = "") -> str:
    width, height, color = PICTURES[name]
    data = base64.b64encode(png(width, height, color)).decode()
    return (
        f'<draw:frame draw:name="{name}" svg:width="6cm" svg:height="4cm" {extra}><draw:image>'
        f"<office:binary-data>{data}</office:binary-data></draw:image></draw:frame>"
    )


def _table(rows: list[list[str]]) -> str:
    def cell(value: str) -> str:
        return (
            '<table:table-cell office:value-type="string">'
            f"<text:p>{value}</text:p></table:table-cell>"
        )

    body = "".join(f"<table:table-row>{''.join(map(cell, row))}</table:table-row>" for row in rows)
    columns = f'<table:table-column table:number-columns-repeated="{len(rows[0])}"/>'
    return columns + body


def _heading(text: str, level: int = 1, style: str = "") -> str:
    return f'<text:h text:outline-level="{level}"{style}>{text}</text:h>'


def _paragraph(text: str) -> str:
    return f"<text:p>{text}</text:p>"


_BREAK = (
    '<style:style style:name="Break" style:family="paragraph" style:parent-style-name="Heading">'
    '<style:paragraph-properties fo:break-before="page"/></style:style>'
)


def _document(kind: str, body: str, styles: str = "") -> str:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><office:document {_NAMES} office:version="1.3" '
        f'office:mimetype="application/vnd.oasis.opendocument.{kind}">'
        f"<office:automatic-styles>{styles}</office:automatic-styles>"
        f"<office:body>{body}</office:body></office:document>"
    )


def _report() -> str:
    anchor = 'text:anchor-type="as-char"'
    on_new_page = ' text:style-name="Break"'
    items = "".join(
        f"<text:list-item>{_paragraph(word)}</text:list-item>" for word in ("Lamp", "Rope")
    )
    body = [
        _heading("Expedition report"),
        _paragraph("Grüße aus der Höhle, из пещеры, από το σπήλαιο."),
        f'<table:table table:name="Depths">{_table([["Chamber", "Depth"], ["North", "412"]])}</table:table>',
        _heading("Pictures", style=on_new_page),
        _paragraph(_frame("red", anchor)),
        _paragraph(_frame("blue", anchor)),
        _heading("Equipment", style=on_new_page),
        f"<text:list>{items}</text:list>",
        _paragraph("The last line of the report."),
    ]
    return _document("text", f"<office:text>{''.join(body)}</office:text>", _BREAK)


def _long() -> str:
    pages = []
    for number in range(1, LONG_PAGES + 1):
        style = ' text:style-name="Break"' if number > 1 else ""
        pages.append(_heading(f"Chapter {number}", style=style))
        pages += [_paragraph(prose(60, number * 100 + part)) for part in range(6)]
    return _document("text", f"<office:text>{''.join(pages)}</office:text>", _BREAK)


def _slides() -> str:
    def slide(title: str, content: str) -> str:
        box = (
            '<draw:frame svg:x="2cm" svg:y="1cm" svg:width="20cm" svg:height="2cm">'
            f"<draw:text-box>{_paragraph(title)}</draw:text-box></draw:frame>"
        )
        return f'<draw:page draw:name="{title}" draw:master-page-name="">{box}{content}</draw:page>'

    place = 'svg:x="3cm" svg:y="6cm"'
    body = (
        slide("First slide", "")
        + slide("Red slide", _frame("red", place))
        + slide("Blue slide", _frame("blue", place))
    )
    return _document("presentation", f"<office:presentation>{body}</office:presentation>")


def _book() -> str:
    def number(value: int) -> str:
        return (
            f'<table:table-cell office:value-type="float" office:value="{value}">'
            f"<text:p>{value}</text:p></table:table-cell>"
        )

    rows = "".join(
        f"<table:table-row>{number(n)}{number(n * n)}</table:table-row>" for n in (7, 12)
    )
    place = 'svg:x="1cm" svg:y="3cm"'
    picture = f"<table:shapes>{_frame('blue', place)}</table:shapes>"
    body = (
        f'<table:table table:name="Squares">{_table([["Number", "Square"]])}{rows}</table:table>'
        f'<table:table table:name="Plan">{picture}{_table([["Room", "Key"], ["Hall", "brass"]])}</table:table>'
    )
    return _document("spreadsheet", f"<office:spreadsheet>{body}</office:spreadsheet>")


@cache
def folder() -> Path:
    """The folder with all documents. Raises RuntimeError without LibreOffice, or when it fails."""
    sources = {
        "report.fodt": _report(),
        "long.fodt": _long(),
        "slides.fodp": _slides(),
        "book.fods": _book(),
    }
    key = hashlib.sha256(repr((sources, dict(EXPORTS), dict(FILTERS))).encode()).hexdigest()[:16]
    target = ROOT / ".cache" / "documents" / key
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want them at once
        if not target.exists():
            part = target.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            _export(part, sources)
            part.rename(target)
    return target


def _export(target: Path, sources: Mapping[str, str]) -> None:
    if shutil.which("soffice") is None:
        raise RuntimeError("LibreOffice is not here; scripts/setup --test installs it")
    for name, text in sources.items():
        (target / name).write_text(text)
    profile = target / "profile"
    for kind, names in EXPORTS.items():
        command = ["soffice", f"-env:UserInstallation={profile.as_uri()}", "--headless"]
        command += ["--convert-to", FILTERS.get(kind, kind), "--outdir", str(target)]
        command += [str(target / name) for name in names]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=EXPORT_S
        )
        for name in names:
            if not (target / name).with_suffix(f".{kind}").exists():
                raise RuntimeError(f"LibreOffice made no {kind} of {name}: {done.stderr[-500:]}")
    shutil.rmtree(profile)


_SECTOR, _END, _FREE, _FAT = 512, 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFD


def message(sender: str, to: str, subject: str, body: str) -> bytes:
    """An Outlook message: the properties a reader needs, in a compound file ([MS-CFB], [MS-OXMSG])."""
    streams = {"__properties_version1.0": bytes(4096)}
    for number, value in (("0C1F", sender), ("0E04", to), ("0037", subject), ("1000", body)):
        # Below 4096 bytes a stream would have to stand in the mini stream: white space makes it longer.
        streams[f"__substg1.0_{number}001F"] = value.ljust(2048).encode("utf-16-le")
    chains, entries, at = [], [_entry("Root Entry", 5, child=1)], 0
    for number, (name, data) in enumerate(streams.items(), 1):
        following = number + 1 if number < len(streams) else _FREE
        entries.append(_entry(name, 2, right=following, start=at, size=len(data)))
        chains.append(-(-len(data) // _SECTOR))
        at += chains[-1]
    directory = b"".join(entries)
    directory += b"".join([_entry("", 0)] * (-len(entries) % 4))
    chains.append(len(directory) // _SECTOR)
    table: list[int] = []
    for length in chains:
        table += [*range(len(table) + 1, len(table) + length), _END]
    table.append(_FAT)
    table += [_FREE] * (128 - len(table))
    content = b"".join(data + bytes(-len(data) % _SECTOR) for data in streams.values())
    header = (
        bytes.fromhex("d0cf11e0a1b11ae1") + bytes(16) + struct.pack("<5H6x", 62, 3, 0xFFFE, 9, 6)
    )
    header += struct.pack("<9I", 0, 1, at, 0, 4096, _END, 0, _END, 0)
    header += struct.pack("<109I", sum(chains), *itertools.repeat(_FREE, 108))
    return header + content + directory + struct.pack("<128I", *table)


def _entry(
    name: str, kind: int, *, right: int = _FREE, child: int = _FREE, start: int = 0, size: int = 0
) -> bytes:
    text = name.encode("utf-16-le")
    return (
        text.ljust(64, b"\0")
        + struct.pack("<HBB3I", len(text) + 2 if name else 0, kind, 1, _FREE, right, child)
        + bytes(36)
        + struct.pack("<IQ", _END if kind == 5 else start, size)
    )
