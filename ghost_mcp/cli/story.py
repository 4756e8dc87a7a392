# The workflow that shows Ghost working: `ghost demo` tells it, the end-to-end test asserts on each of its answers.
"""An agent's afternoon, played through a real MCP client: a web page, a browser, files, documents."""

from __future__ import annotations

import base64
import io
import posixpath
import zipfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mcp.types import CallToolResult

__all__ = ["PORT", "Answer", "Caller", "Document", "play", "report"]

PORT = 5000
GUEST = "Ada Lovelace"
PAGE = f'''\
"""A guest book: each name that is sent goes to a file, and into the page."""
import html
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

BOOK = Path("guests.txt")
FORM = """<!doctype html><title>Results</title>
<style>body {{ font: 18px sans-serif; margin: 3em }} input, button {{ font: inherit; padding: .3em }}</style>
<h1>Results</h1>
<form method="post"><label>Name <input name="name" autofocus></label> <button>Add</button></form>
<ol>%s</ol>"""


class Guests(BaseHTTPRequestHandler):
    def do_GET(self):
        names = BOOK.read_text().splitlines() if BOOK.exists() else []
        page = FORM % "".join(f"<li>{{html.escape(name)}}</li>" for name in names)
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(page.encode())

    def do_POST(self):
        given = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        with BOOK.open("a") as book:
            book.write(given["name"][0] + "\\n")
        self.send_response(303)
        self.send_header("Location", self.path)
        self.end_headers()


ThreadingHTTPServer(("localhost", {PORT}), Guests).serve_forever()
'''
# The server needs a moment; a shell that waits for it is what an agent would write, too.
WAIT = f"until (exec 3<>/dev/tcp/localhost/{PORT}) 2>/dev/null; do sleep 0.1; done; echo it answers"


class Caller(Protocol):
    """The part of an MCP client that is needed."""

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> CallToolResult: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A document to bring into the cave."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One call and what came back. ``purpose`` is what the agent is after."""

    purpose: str
    tool: str
    arguments: Mapping[str, Any]
    result: CallToolResult

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.result.content if part.type == "text")

    @property
    def data(self) -> dict[str, Any]:
        return self.result.structured_content or {}

    @property
    def pictures(self) -> list[bytes]:
        return [base64.b64decode(p.data) for p in self.result.content if p.type == "image"]


async def play(client: Caller, documents: Sequence[Document] = ()) -> AsyncIterator[Answer]:
    """Every answer as it comes. Without documents a report with the screenshot in it is made and read."""

    async def ask(purpose: str, tool: str, **arguments: Any) -> Answer:
        result = await client.call_tool(tool, arguments)
        return Answer(purpose=purpose, tool=tool, arguments=arguments, result=result)

    yield await ask("write a web page's program", "file_write", path="app.py", content=PAGE)
    yield await ask("start it", "shell_exec", command="python3 app.py", background=True)
    yield await ask("wait until it answers", "shell_exec", command=WAIT, hard_timeout_s=20)
    url = f"http://localhost:{PORT}/results"
    yield await ask("open the page", "browser_navigate", url=url)
    yield await ask("type into it", "browser_type", selector="input[name=name]", text=GUEST)
    yield await ask("press its button", "browser_click", text="Add")
    shot = await ask("look at it", "browser_screenshot")
    yield shot
    yield await ask("read what the page wrote", "file_read", path="guests.txt")
    for document in documents or [report(shot.pictures)]:
        name = document.name
        encoded = base64.b64encode(document.data).decode("ascii")
        yield await ask(
            f"bring in {name}", "file_write", path=name, content=encoded, encoding="base64"
        )
        yield await ask("read it as Markdown", "markitdown_convert", path=name)
        folder = f"{posixpath.splitext(name)[0]}-images-{name.rpartition('.')[2]}"
        yield await ask(
            "take its pictures out", "markitdown_extract_images", path=name, output_dir=folder
        )


# --- a document to read -------------------------------------------------------------------------

_TYPES = """<?xml version="1.0" encoding="UTF-8"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Default Extension="png" ContentType="image/png"/>
<Override PartName="/word/document.xml"
 ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/>
</Types>"""
_KIND = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_RELATIONS = f"""<?xml version="1.0" encoding="UTF-8"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
<Relationship Id="r1" Type="{_KIND}/%s" Target="%s"/></Relationships>"""
_BODY = f"""<?xml version="1.0" encoding="UTF-8"?>
<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" xmlns:r="{_KIND}"
 xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing"
 xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"
 xmlns:pic="http://schemas.openxmlformats.org/drawingml/2006/picture"><w:body>
<w:p><w:r><w:t>Guest book: the report</w:t></w:r></w:p>
<w:p><w:r><w:t>{GUEST} signed it; the page looked like this.</w:t></w:r></w:p>
<w:p><w:r><w:drawing><wp:inline><wp:extent cx="5486400" cy="3086100"/><wp:docPr id="1" name="shot"/>
<a:graphic><a:graphicData uri="http://schemas.openxmlformats.org/drawingml/2006/picture"><pic:pic>
<pic:nvPicPr><pic:cNvPr id="1" name="shot"/><pic:cNvPicPr/></pic:nvPicPr>
<pic:blipFill><a:blip r:embed="r1"/><a:stretch><a:fillRect/></a:stretch></pic:blipFill><pic:spPr/>
</pic:pic></a:graphicData></a:graphic></wp:inline></w:drawing></w:r></w:p>
</w:body></w:document>"""


def report(pictures: Sequence[bytes]) -> Document:
    """A small DOCX that holds the first picture."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", _TYPES)
        archive.writestr("_rels/.rels", _RELATIONS % ("officeDocument", "word/document.xml"))
        archive.writestr("word/_rels/document.xml.rels", _RELATIONS % ("image", "media/shot.png"))
        archive.writestr("word/document.xml", _BODY)
        for picture in pictures[:1]:
            archive.writestr("word/media/shot.png", picture)
    return Document(name="report.docx", data=out.getvalue())
