"""The markitdown server on real documents: made by LibreOffice here, and by other software in the fixtures."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import anyio
import pytest
import pytest_asyncio
from PIL import Image

from ghost_mcp import Cave, CaveSpec, Ghost, GhostError
from ghost_mcp.reply import EXCERPT_CHARS, MAX_TEXT_CHARS, Reply
from ghost_mcp.tool import Call, invoke
from ghost_servers.markitdown import TOOLSET
from tests import documents
from tests.conftest import held

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIXTURES = documents.ROOT.parent / "shared" / "fixtures" / "documents"
TOOLS = {tool.name: tool for tool in TOOLSET.tools}
# What each of LibreOffice's exports of one source must say.
CONTENTS = {
    "report.pdf": [
        "Expedition report",
        "Grüße aus der Höhle, из пещеры, από το σπήλαιο.",
        "412",
        "Rope",
    ],
    "report.docx": [
        "# Expedition report",
        "Grüße aus der Höhle, из пещеры, από το σπήλαιο.",
        "| North | 412 |",
    ],
    "report.html": ["# Expedition report", "| North | 412 |", "Lamp"],
    "report.epub": ["Expedition report", "| North | 412 |", "Lamp"],
    "slides.pptx": ["Slide number: 2", "First slide", "Blue slide"],
    "book.xlsx": ["## Squares", "| 12 | 144 |", "## Plan", "| Hall | brass |"],
    "book.xls": ["## Squares", "| 12 | 144 |", "## Plan", "| Hall | brass |"],
}
FOREIGN = [
    "REPAIR-2022-INV-001_multipage.pdf",
    "test.docx",
    "test.epub",
    "test.pdf",
    "test.pptx",
    "test.xlsx",
    "test_mskanji.csv",
    "test_notebook.ipynb",
    "test_outlook_msg.msg",
    "test_wikipedia.html",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(state_dir: Path) -> AsyncIterator[Ghost]:
    """One Ghost for the module: its converter stays warm."""
    async with held(Ghost(backend="local", state_dir=state_dir)) as ghost:
        yield ghost


@pytest_asyncio.fixture(loop_scope="module")
async def call(opened: Ghost) -> AsyncIterator[Call]:
    cave = await opened.create(CaveSpec(ephemeral=True))
    yield Call(cave=cave)
    await cave.destroy()


async def run(call: Call, tool: str, **arguments: object) -> Reply:
    return await invoke(TOOLS[tool], call, arguments)


async def refused(call: Call, tool: str, **arguments: object) -> GhostError:
    with pytest.raises(GhostError) as caught:
        await run(call, tool, **arguments)
    return caught.value


async def put(cave: Cave, name: str) -> str:
    """A document of LibreOffice's in the cave; its path."""
    await cave.write(name, (documents.folder() / name).read_bytes())
    return name


async def whole_of(paths: list[Path]) -> dict[str, str]:
    """What the library itself makes of each, in one process of its own."""
    program = (
        "import json, sys, markitdown; convert = markitdown.MarkItDown().convert; "
        "print(json.dumps({path: convert(path).markdown for path in sys.argv[1:]}))"
    )
    argv = [sys.executable, "-W", "ignore", "-c", program, *map(str, paths)]
    done = await anyio.run_process(argv)
    return {Path(path).name: text for path, text in json.loads(done.stdout).items()}


async def converted(call: Call, path: str) -> str:
    """The whole Markdown of a document, read where the answer says that it is."""
    reply = await run(call, "convert", path=path)
    if "output_path" not in reply.data:
        assert reply.data["size"] == len(reply.data["markdown"])
        return str(reply.data["markdown"])
    text = (await call.cave.read(reply.data["output_path"])).data.decode()
    assert text.startswith(reply.data["markdown"])
    assert reply.data["size"] == len(text) > EXCERPT_CHARS
    return text


@pytest.mark.parametrize("name", CONTENTS)
async def test_convert_libreoffice(call: Call, name: str) -> None:
    text = await converted(call, await put(call.cave, name))
    for wanted in CONTENTS[name]:
        assert wanted in text


async def test_convert_is_what_the_library_says(call: Call) -> None:
    paths = [documents.folder() / name for name in (*CONTENTS, "long.docx")]
    expected = await whole_of(paths)
    for path in paths:
        assert await converted(call, await put(call.cave, path.name)) == expected[path.name]


async def test_convert_foreign_documents_as_the_library_does(call: Call) -> None:
    if not FIXTURES.is_dir():
        pytest.skip(f"not run: no {FIXTURES}; other software's documents are not in the checkout")
    expected = await whole_of([FIXTURES / name for name in FOREIGN])
    for name in FOREIGN:
        await call.cave.write(name, (FIXTURES / name).read_bytes())
        assert await converted(call, name) == expected[name], name
    known = (FIXTURES / "REPAIR-2022-INV-001_multipage.md").read_text()
    assert await converted(call, "REPAIR-2022-INV-001_multipage.pdf") == known.rstrip("\n")


async def test_large_result_is_excerpted_and_kept_beside_the_document(call: Call) -> None:
    await call.cave.call("mkdir", {"path": "papers"})
    await call.cave.write("papers/long.docx", (documents.folder() / "long.docx").read_bytes())
    reply = await run(call, "convert", path="papers/long.docx")
    assert reply.data["output_path"] == "/workspace/papers/long.docx.md"
    assert reply.data["format"] == "docx"
    assert reply.text.startswith("# Chapter 1\n")
    assert reply.data["output_path"] in reply.text
    assert len(reply.text) <= MAX_TEXT_CHARS
    text = (await call.cave.read("papers/long.docx.md")).data.decode()
    assert f"# Chapter {documents.LONG_PAGES}\n" in text


async def test_what_is_saved_beside_a_document_never_replaces_another_file(call: Call) -> None:
    await put(call.cave, "long.docx")
    await call.cave.write("long.docx.md", "my own notes")
    reply = await run(call, "convert", path="long.docx")
    assert (await call.cave.read("long.docx.md")).data == b"my own notes"
    again = await run(call, "convert", path="long.docx")
    assert again.data["output_path"] == reply.data["output_path"] != "/workspace/long.docx.md"
    assert len((await call.cave.read(reply.data["output_path"])).data) > EXCERPT_CHARS


async def test_output_path_is_written_whatever_the_size(call: Call) -> None:
    path = await put(call.cave, "book.xlsx")
    await call.cave.write("out/book.md", "older", parents=True)
    reply = await run(call, "convert", path=path, output_path="out/book.md")
    assert reply.data["output_path"] == "/workspace/out/book.md"
    assert (await call.cave.read("out/book.md")).data.decode() == reply.data["markdown"]


async def test_a_document_in_a_folder_that_cannot_be_written(call: Call) -> None:
    await call.cave.exec("mkdir closed && cp /dev/stdin closed/a.txt", stdin=b"word " * 2000)
    await call.cave.exec("chmod 555 closed")
    reply = await run(call, "convert", path="closed/a.txt")
    assert reply.data["output_path"] == "/workspace/a.txt.md"


@pytest.mark.parametrize(
    ("name", "data", "wanted"),
    [
        ("sjis.csv", "名前,住所\n三木英子,大阪府大阪市北区梅田\n佐藤太郎,東京都千代田区丸の内\n".encode("cp932"), "佐藤太郎"),
        ("utf16.csv", "a,b\nÄ,ß\n".encode("utf-16"), "| Ä | ß |"),
        ("bom.csv", b"\xef\xbb\xbfcol,b\n1,2\n", "| col | b |"),
        ("latin.csv", "Straße;Größe;Käse\nüber;schön;früh\nÄpfel;Öfen;Übung\n".encode("cp1252"), "Größe"),
        ("koi8.html", '<meta charset="koi8-r"><p>Пещера и файлы</p>'.encode("koi8-r"), "Пещера"),
        ("plain.py", b"x = 1  # a_b * c", "x = 1  # a_b * c"),
        ("feed", b'<?xml version="1.0"?><rss version="2.0"><channel><title>News</title></channel></rss>', "# News"),
        ("book.ipynb", json.dumps({"cells": [{"cell_type": "code", "source": ["1+1"]}], "nbformat": 4}).encode(), "```python\n1+1\n```"),
    ],
)  # fmt: skip
async def test_text_formats_and_encodings(call: Call, name: str, data: bytes, wanted: str) -> None:
    await call.cave.write(name, data)
    assert wanted in await converted(call, name)


async def test_outlook_messages(call: Call) -> None:
    data = documents.message("ana@example.org", "ben@example.org", "Höhle", "Bring a rope.\nAna")
    await call.cave.write("mail.msg", data)
    reply = await run(call, "convert", path="mail.msg")
    assert (reply.data["format"], reply.data["title"]) == ("msg", "Höhle")
    assert reply.data["markdown"].startswith("# Email Message\n\n**From:** ana@example.org\n")
    text = await run(call, "extract_text", path="mail.msg")
    assert text.data["content"] == (
        "From: ana@example.org\nTo: ben@example.org\nSubject: Höhle\n\nBring a rope.\nAna"
    )


async def test_the_content_decides_not_the_name(call: Call) -> None:
    await call.cave.write("report.txt", (documents.folder() / "report.docx").read_bytes())
    assert (await run(call, "convert", path="report.txt")).data["format"] == "docx"


# --- data: URIs and other sources ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "wanted", "kind"),
    [
        ("data:,hello%20cave", "hello cave", "text"),
        ("data:text/html,<h1>Title</h1>", "# Title", "html"),
        ("DATA:text/plain;charset=iso-8859-1,%E9t%E9", "été", "text"),
        (
            "data:text/csv;base64," + base64.b64encode(b"a,b\n1,2\n").decode(),
            "| a | b |\n| --- | --- |\n| 1 | 2 |",
            "csv",
        ),
        ("data:text/plain;charset=utf-8;base64,4oKs", "€", "text"),
        (" data:text/plain;base64,aGk\n", "hi", "text"),
        ("data:text/plain;base64,8J-Yii0_Pj4", "😊-?>>", "text"),
    ],
)
async def test_data_uris(call: Call, uri: str, wanted: str, kind: str) -> None:
    reply = await run(call, "convert", path=uri)
    assert reply.data["markdown"] == wanted
    assert reply.data["format"] == kind


async def test_a_document_as_data_uri(call: Call) -> None:
    data = (documents.folder() / "report.pdf").read_bytes()
    media = "data:application/pdf"
    for uri in (f"{media};base64,{base64.b64encode(data).decode()}", f"{media},{quote(data)}"):
        assert "Expedition report" in (await run(call, "extract_text", path=uri)).data["content"]
    pictures = await run(call, "extract_images", path=uri)
    assert pictures.data["images"][0]["path"].startswith("/workspace/document_images/")


@pytest.mark.parametrize(
    ("path", "code", "wanted"),
    [
        ("http://127.0.0.1:8000/a.pdf", "invalid_argument", "curl"),
        ("HTTPS://example.com/a.pdf", "invalid_argument", "curl"),
        ("file:///etc/passwd", "invalid_argument", "path in the cave"),
        ("file:a.pdf", "invalid_argument", "path in the cave"),
        ("ftp://example.com/a", "invalid_argument", "path in the cave"),
        ("zip://a.zip!/etc/passwd", "invalid_argument", "path in the cave"),
        ("data:text/plain;base64,!!!", "invalid_argument", ""),
        ("data:text/plain", "invalid_argument", "comma"),
        ("data:text/plain,", "invalid_argument", "empty"),
        ("data:text/plain," + "a" * (8 << 20) + "b", "too_large", "8.0 MiB"),
        ("/proc/self/environ", "path_outside", ""),
        ("../etc/passwd", "path_outside", ""),
        ("missing.pdf", "file_not_found", ""),
        ("/workspace", "is_a_directory", ""),
    ],
)
async def test_sources_that_are_refused(call: Call, path: str, code: str, wanted: str) -> None:
    error = await refused(call, "convert", path=path)
    assert error.code == code
    assert wanted in error.render()


async def test_a_file_that_is_too_large_or_empty(call: Call) -> None:
    await call.cave.exec("truncate -s 65M big.pdf && touch empty.pdf")
    assert (await refused(call, "convert", path="big.pdf")).code == "too_large"
    assert (await refused(call, "convert", path="empty.pdf")).code == "invalid_argument"


# --- plain text ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sections"), [("report.pdf", 3), ("report.docx", 1), ("report.html", 1)]
)
async def test_text_is_plain(call: Call, name: str, sections: int) -> None:
    reply = await run(call, "extract_text", path=await put(call.cave, name))
    text = reply.data["content"]
    assert text.startswith("Expedition report")
    assert "Grüße aus der Höhle, из пещеры, από το σπήλαιο." in text
    assert "The last line of the report." in text
    assert not any(mark in text for mark in ("#", "|", "**", "]("))
    assert reply.data["pages"] == sections


async def test_text_by_pages(call: Call) -> None:
    path = await put(call.cave, "long.pdf")
    for pages, first, last in (("3", 3, 3), ("2-5", 2, 5), ("19-", 19, 20), ("20-99", 20, 20)):
        reply = await run(call, "extract_text", path=path, pages=pages, limit=20)
        assert reply.data["content"].startswith(f"Chapter {first}\n")
        assert reply.data["pages"] == documents.LONG_PAGES
        alone = await run(call, "extract_text", path=path, pages=str(last), limit=20)
        assert alone.data["content"].startswith(f"Chapter {last}\n")
        assert (reply.data["size"] > alone.data["size"]) is (first < last)
    error = await refused(call, "extract_text", path=path, pages="21")
    assert "1 to 20" in error.message
    for pages in ("0", "5-2", "-3", "a", "1,2"):
        error = await refused(call, "extract_text", path=path, pages=pages)
        assert error.code == "invalid_argument"


async def test_slides_sheets_and_chapters_are_pages_too(call: Call) -> None:
    for name, pages, wanted in (
        ("slides.pptx", "2", "Red slide"),
        ("book.xlsx", "2", "Plan\nRoom\tKey\nHall\tbrass"),
        ("book.xls", "1", "Squares\nNumber\tSquare\n7\t49\n12\t144"),
        ("report.epub", "3", "Equipment\n\nLamp\n\nRope\n\nThe last line of the report."),
    ):
        reply = await run(call, "extract_text", path=await put(call.cave, name), pages=pages)
        assert reply.data["content"] == wanted


async def test_text_in_pieces_is_the_whole_text(call: Call) -> None:
    path = await put(call.cave, "long.docx")
    pieces, at, size = [], 0, 1
    while at < size:
        reply = await run(call, "extract_text", path=path, start=at, limit=2999)
        assert len(reply.text) <= MAX_TEXT_CHARS
        size = reply.data["size"]
        pieces.append(reply.data["content"])
        at += len(pieces[-1])
        assert (f"start={at}" in reply.text) is (at < size)
    text = "".join(pieces)
    assert len(text) == size
    assert text.count("Chapter ") == documents.LONG_PAGES
    error = await refused(call, "extract_text", path=path, start=size)
    assert str(size) in error.message


async def test_html_text_has_what_a_reader_sees(call: Call) -> None:
    page = (
        "<html><head><title>no</title></head><body><script>no()</script><p>one <b>two</b>\n three</p>"
        "<pre>a\n  b</pre><table><tr><td>x</td><td>y</td></tr></table>un*marked*</body></html>"
    )
    reply = await run(call, "extract_text", path="data:text/html," + quote(page))
    assert reply.data["content"] == "one two three\n\na\n  b\n\nx\ty\n\nun*marked*"


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("report.pdf", ["page 2", "page 2"]),
        ("report.docx", ["document", "document"]),
        ("slides.pptx", ["slide 2", "slide 3"]),
        ("book.xlsx", ["sheet Plan"]),
        ("report.html", ["data: URI 1", "data: URI 2"]),
        ("report.epub", ["OEBPS/images/image0001.png", "OEBPS/images/image0002.png"]),
    ],
)
async def test_images_are_found_and_saved(call: Call, name: str, places: list[str]) -> None:
    reply = await run(call, "extract_images", path=await put(call.cave, name))
    images = reply.data["images"]
    assert [image["source"] for image in images] == places
    assert reply.data["found"] == len(places)
    folder = f"/workspace/{name.partition('.')[0]}_images"
    wanted = {documents.PICTURES["red"][:2], documents.PICTURES["blue"][:2]}
    for image in images:
        data = (await call.cave.read(image["path"])).data
        assert image["path"].startswith(f"{folder}/image-0")
        assert image["size"] == len(data)
        with Image.open(BytesIO(data)) as picture:
            picture.load()
            assert picture.size == (image["width"], image["height"])
            assert picture.size in wanted
            assert picture.format is not None
            assert picture.format.lower() == image["format"]
    assert not reply.pictures
    assert folder in reply.text


async def test_pictures_are_the_ones_that_were_put_in(call: Call) -> None:
    """Not only of the right size: the same pixels, after LibreOffice and after PDF."""
    width, height, color = documents.PICTURES["red"]
    with Image.open(BytesIO(documents.png(width, height, color))) as original:
        pixels = original.convert("RGB").tobytes()
    for name in ("report.pdf", "slides.pptx"):
        reply = await run(call, "extract_images", path=await put(call.cave, name), show=True)
        with Image.open(BytesIO(reply.pictures[0].data)) as found:
            assert found.convert("RGB").tobytes() == pixels


async def test_images_limit_folder_and_pictures(call: Call) -> None:
    path = await put(call.cave, "report.pdf")
    reply = await run(call, "extract_images", path=path, limit=1, output_dir="pics/a", show=True)
    assert reply.data["found"] == 2
    [image] = reply.data["images"]
    [picture] = reply.pictures
    assert image["path"].startswith("/workspace/pics/a/")
    assert picture.mime_type == "image/png"
    assert picture.data == (await call.cave.read(image["path"])).data
    assert reply.text.startswith("1 of 2 images saved in pics/a")
    again = await run(call, "extract_images", path=path, limit=1, output_dir="pics/a")
    assert again.data["images"] == [image]


async def test_large_pictures_are_saved_but_not_shown(call: Call) -> None:
    wide, noisy = documents.png(2000, 20, "#112233"), BytesIO()
    Image.frombytes("RGB", (400, 400), bytes(range(256)) * 1875).save(noisy, "BMP")
    tags = "".join(
        f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
        for kind, data in (("png", wide), ("bmp", noisy.getvalue()))
    )
    await call.cave.write("page.html", tags)
    reply = await run(call, "extract_images", path="page.html", show=True)
    assert [i["format"] for i in reply.data["images"]] == ["png", "bmp"]
    assert not reply.pictures


async def test_a_document_without_images_and_one_that_cannot_have_any(call: Call) -> None:
    reply = await run(call, "extract_images", path=await put(call.cave, "long.docx"))
    assert reply.data == {"images": [], "found": 0}
    error = await refused(call, "extract_images", path="data:,text")
    assert error.code == "unsupported_format"
    assert "PDF" in error.hint


# --- the seams ----------------------------------------------------------------------------------


async def test_importing_the_server_opens_no_library_of_documents() -> None:
    heavy = "{'markitdown', 'pandas', 'PIL', 'pypdfium2', 'bs4', 'lxml', 'numpy'}"
    program = f"import sys, ghost_servers.markitdown; print(sorted({heavy} & set(sys.modules)))"
    done = await anyio.run_process([sys.executable, "-c", program])
    assert done.stdout.strip() == b"[]"


async def test_unknown_arguments_are_refused_by_name(call: Call) -> None:
    for name in TOOLS:
        error = await refused(call, name, path="data:,x", colour="red")
        assert "colour" in error.message


async def test_data_fits_the_declared_schema(call: Call) -> None:
    path = await put(call.cave, "report.docx")
    for name, tool in TOOLS.items():
        reply = await run(call, name, path=path)
        assert set(reply.data) <= set(tool.output_schema["properties"])
