"""Documents that attack the converter (D2, D3, D4): each is refused or bounded, and the next one is converted."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
import pytest_asyncio

from ghost_mcp import Cave, CaveSpec, Ghost, GhostError
from ghost_mcp.tool import Call, invoke
from ghost_servers.markitdown import TOOLSET
from tests import bombs, documents
from tests.conftest import held

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOOLS = {tool.name: tool for tool in TOOLSET.tools}
MIB = 1 << 20
STOLEN = "/etc/passwd"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(state_dir: Path) -> AsyncIterator[Ghost]:
    async with held(Ghost(backend="local", state_dir=state_dir)) as ghost:
        yield ghost


@pytest_asyncio.fixture(loop_scope="module")
async def call(opened: Ghost) -> AsyncIterator[Call]:
    cave = await opened.create(CaveSpec(ephemeral=True))
    made = Call(cave=cave)
    await works(made)  # warm: what follows is timed
    yield made
    await works(made)
    await cave.destroy()


async def works(call: Call) -> None:
    """The converter answers."""
    reply = await invoke(TOOLS["convert"], call, {"path": "data:,alive"})
    assert reply.data["markdown"] == "alive"


async def attempt(call: Call, tool: str, name: str) -> tuple[str, GhostError | None, float]:
    """What a tool answered or refused, and after how many seconds."""
    started = time.monotonic()
    try:
        reply = await invoke(TOOLS[tool], call, {"path": name})
    except GhostError as exc:
        return exc.render(), exc, time.monotonic() - started
    return reply.text, None, time.monotonic() - started


async def refuse_all(call: Call, name: str, data: bytes, codes: set[str], within_s: float) -> None:
    """Every tool refuses the document with one of the codes, in time."""
    await call.cave.write(name, data)
    for tool in TOOLS:
        text, error, took_s = await attempt(call, tool, name)
        assert error is not None, text
        assert error.code in codes, text
        assert took_s <= within_s, tool


async def converter_of(call: Call) -> Cave:
    """The live converter cave of the call's owner."""
    owner = call.cave.info.spec.owner
    [found] = [
        info
        for info in await call.cave.ghost.list()
        if info.spec.labels.get("ghost/role") == "converter" and info.spec.owner == owner
    ]
    return await call.cave.ghost.get(found.id)


async def processes(converter: Cave) -> list[tuple[int, int]]:
    """(pid, parent's pid) of the converter and its conversions: all that run its program."""
    # The brackets keep the shell that runs this from finding itself.
    script = "grep -slz converter[.]zygote /proc/[0-9]*/cmdline | cut -d/ -f3 | while read p; do "
    script += "echo $p $(cut -d' ' -f4 /proc/$p/stat); done 2>/dev/null; true"
    lines = (await converter.exec(script)).stdout.splitlines()
    return [(int(a), int(b)) for a, b in (line.split() for line in lines if line.count(" ") == 1)]


async def conversions(converter: Cave) -> list[int]:
    """The pids of the conversions that run now."""
    found = await processes(converter)
    pids = {pid for pid, _ in found}
    return [pid for pid, parent in found if parent in pids]


async def running(converter: Cave, count: int) -> list[int]:
    """Wait until so many conversions run."""
    with anyio.fail_after(60):
        while len(found := await conversions(converter)) != count:
            await anyio.sleep(0.02)
    return found


# --- D2: zip bombs --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["docx", "pptx", "xlsx", "epub"])
async def test_d2_zip_bombs_are_refused(call: Call, kind: str) -> None:
    converter = await converter_of(call)
    for size, declared in ((4096 * MIB, None), (300 * MIB, None), (4096 * MIB, 1000)):
        data = bombs.zip_bomb(kind, size, declared=declared)
        codes = {"too_large"} if declared is None else {"invalid_argument"}
        await refuse_all(call, f"bomb.{kind}", data, codes, within_s=20)
    assert ((await converter.usage()).memory_peak_bytes or 0) <= 256 * MIB


async def test_d2_a_million_entries_are_refused(call: Call) -> None:
    converter = await converter_of(call)
    await refuse_all(call, "many.docx", bombs.many_entries(1_000_000), {"too_large"}, within_s=20)
    # Read, and no more: one conversion's copy may be going yet when the next one's comes.
    assert ((await converter.usage()).memory_peak_bytes or 0) <= 512 * MIB


async def test_d2_archives_are_not_opened(call: Call) -> None:
    await refuse_all(call, "nested.zip", bombs.nested_zip(5), {"unsupported_format"}, within_s=20)


async def test_d2_unusual_compression_is_refused(call: Call) -> None:
    data = bombs.unusual_compression(8 * MIB)
    await refuse_all(call, "odd.docx", data, {"invalid_argument"}, within_s=20)


# --- D3: XML, PDF, pictures ---------------------------------------------------------------------------


def _office_bombs(bomb: tuple[str, str]) -> dict[str, bytes]:
    """LibreOffice's documents, with the entity where their text was."""
    folder = documents.folder()
    wanted = {
        "report.docx": ("word/document.xml", b"Expedition report"),
        "slides.pptx": ("ppt/slides/slide1.xml", b"First slide"),
        "book.xlsx": ("xl/sharedStrings.xml", b"Number"),
        "report.epub": ("OEBPS/content.opf", b"Unknown Title"),
    }
    return {
        name: bombs.rewritten(
            (folder / name).read_bytes(),
            part,
            lambda xml, w=where: bombs.with_doctype(xml, w, bomb),
        )
        for name, (part, where) in wanted.items()
    }


async def test_d3_billion_laughs(call: Call) -> None:
    converter = await converter_of(call)
    feed = "<rss version='2.0'><channel><title>{}</title></channel></rss>"
    page = '<?xml version="1.0"?>{}<html><body>{}</body></html>'
    doctype, entity = bombs.laughs()
    attacks = _office_bombs((doctype, entity)) | {
        "feed.xml": f'<?xml version="1.0"?>{doctype}{feed.format(entity)}'.encode(),
        "page.xhtml": page.format(doctype, entity).encode(),
    }
    for name, data in attacks.items():
        await call.cave.write(name, data)
        for tool in ("convert", "extract_text"):
            text, error, took_s = await attempt(call, tool, name)
            assert took_s <= 5, (name, tool)
            assert error is None or error.code in ("invalid_argument", "too_large"), text
            assert "hohohoho" not in text
    assert ((await converter.usage()).memory_peak_bytes or 0) <= 512 * MIB


async def test_d3_external_entities_bring_nothing(call: Call) -> None:
    converter = await converter_of(call)
    seen = (await converter.exec(["cat", STOLEN])).stdout.splitlines()[0]  # it could be read there
    assert seen
    doctype, entity = bombs.xxe(STOLEN)
    attacks = _office_bombs((doctype, entity)) | {
        "page.html": f"{doctype}<html><body>{entity}</body></html>".encode(),
        "feed.xml": f"{doctype}<rss><channel><title>{entity}</title></channel></rss>".encode(),
    }
    for name, data in attacks.items():
        await call.cave.write(name, data)
        for tool in ("convert", "extract_text"):
            text, _, _ = await attempt(call, tool, name)
            assert seen not in text, (name, tool)


async def test_d3_flate_bomb(call: Call) -> None:
    data = bombs.flate_pdf(4096 * MIB)
    await refuse_all(call, "flate.pdf", data, {"too_large", "limit_exceeded"}, within_s=60)


async def test_d3_a_hundred_thousand_pages(call: Call) -> None:
    await call.cave.write("pages.pdf", bombs.pages_pdf(100_000))
    text, error, took_s = await attempt(call, "convert", "pages.pdf")
    assert error is not None
    assert error.code == "too_large"
    assert "extract_text" in text
    assert took_s <= 5
    reply = await invoke(TOOLS["extract_text"], call, {"path": "pages.pdf", "pages": "99999-"})
    assert reply.data["pages"] == 100_000


async def test_d3_recursive_objects(call: Call) -> None:
    await call.cave.write("loop.pdf", bombs.recursive_pdf())
    for tool in TOOLS:
        text, error, took_s = await attempt(call, tool, "loop.pdf")
        assert took_s <= 5
        assert error is None or error.code == "invalid_argument", text


async def test_d3_huge_pictures_are_not_decoded(call: Call) -> None:
    converter = await converter_of(call)
    before = (await converter.usage()).memory_peak_bytes or 0
    await call.cave.write("picture.pdf", bombs.picture_pdf(50_000, 50_000))
    png = bombs.huge_png(50_000, 50_000)
    docx = (documents.folder() / "report.docx").read_bytes()
    await call.cave.write(
        "picture.docx", bombs.rewritten(docx, "word/media/image1.png", lambda _: png)
    )
    for name in ("picture.pdf", "picture.docx"):
        for tool in TOOLS:
            text, error, took_s = await attempt(call, tool, name)
            assert error is None, text
            assert took_s <= 5
    listed = await invoke(TOOLS["extract_images"], call, {"path": "picture.docx", "show": True})
    sizes = [(image["width"], image["height"]) for image in listed.data["images"]]
    assert (50_000, 50_000) in sizes
    assert len(listed.pictures) == len(sizes) - 1  # that one would hurt whoever decodes it
    assert ((await converter.usage()).memory_peak_bytes or 0) <= max(before, 256 * MIB)


async def test_d3_deep_nesting(call: Call) -> None:
    await call.cave.write("deep.html", b"<div>" * 20_000 + b"bottom")
    text, error, took_s = await attempt(call, "convert", "deep.html")
    assert error is None
    assert "bottom" in text
    assert took_s <= 10


@pytest.mark.parametrize("name", ["report.pdf", "report.docx", "slides.pptx", "book.xls"])
async def test_d3_damaged_documents(call: Call, name: str) -> None:
    """Cut off, and with a byte changed every hundred: an answer or a clear refusal, never a crash."""
    whole = (documents.folder() / name).read_bytes()
    spoiled = bytearray(whole)
    spoiled[64::100] = bytes(b ^ 0x55 for b in spoiled[64::100])
    for data in (whole[: len(whole) // 2], bytes(spoiled)):
        await call.cave.write(name, data)
        for tool in TOOLS:
            text, error, _ = await attempt(call, tool, name)
            codes = ("invalid_argument", "unsupported_format", "too_large")
            assert error is None or error.code in codes, text


async def test_random_bytes_are_no_document(call: Call) -> None:
    for magic in (b"", b"%PDF-", b"PK\x03\x04", bytes.fromhex("d0cf11e0a1b11ae1"), b"\x89PNG\r\n"):
        data = magic + os.urandom(4096)
        await refuse_all(
            call, "random.bin", data, {"unsupported_format", "invalid_argument"}, within_s=5
        )


# --- D4: the converter itself -------------------------------------------------------------------------


async def test_d4_an_endless_conversion_is_ended(call: Call) -> None:
    await call.cave.write("endless.pdf", bombs.endless_pdf())
    text, error, took_s = await attempt(call, "convert", "endless.pdf")
    assert error is not None
    assert error.code == "timed_out", text
    assert took_s <= 20


async def test_d4_a_crash_is_one_call_s_failure(call: Call) -> None:
    converter = await converter_of(call)
    await call.cave.write("endless.pdf", bombs.endless_pdf())
    for signal, wanted in (("SEGV", "crashed on this document (SIGSEGV)"), ("KILL", "memory")):
        results: list[str] = []

        async def convert(results: list[str] = results) -> None:
            text, error, _ = await attempt(call, "convert", "endless.pdf")
            assert error is not None
            assert error.code == "limit_exceeded"
            results.append(text)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(convert)
            [pid] = await running(converter, 1)
            await converter.exec(f"kill -{signal} {pid}")
        assert wanted in results[0]
        await works(call)
        assert (await converter_of(call)).id == converter.id


async def test_d4_a_dead_converter_is_replaced(call: Call) -> None:
    converter = await converter_of(call)
    await call.cave.write("endless.pdf", bombs.endless_pdf())
    async with anyio.create_task_group() as tasks:

        async def convert() -> None:
            text, error, _ = await attempt(call, "convert", "endless.pdf")
            assert error is not None
            assert error.code == "limit_exceeded", text

        tasks.start_soon(convert)
        await running(converter, 1)
        await converter.destroy()
    await works(call)
    second = await converter_of(call)
    assert second.id != converter.id
    [zygote] = [pid for pid, _ in await processes(second)]
    await second.exec(f"kill -KILL {zygote}; while test -d /proc/{zygote}; do sleep 0.01; done")
    await works(call)
    assert (await converter_of(call)).id != second.id


async def test_d4_a_cancelled_conversion_is_dead(call: Call) -> None:
    converter = await converter_of(call)
    await call.cave.write("endless.pdf", bombs.endless_pdf())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(attempt, call, "convert", "endless.pdf")
        await running(converter, 1)
        tasks.cancel_scope.cancel()
    await running(converter, 0)


async def test_d4_two_conversions_at_once_and_others_wait(call: Call) -> None:
    converter = await converter_of(call)
    await call.cave.write("endless.pdf", bombs.endless_pdf())
    done: list[str] = []

    async def quick() -> None:
        await works(call)
        done.append("quick")

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(attempt, call, "convert", "endless.pdf")
        pids = await running(converter, 2)
        tasks.start_soon(quick)
        await anyio.sleep(0.2)  # time enough for a conversion that does not wait
        assert not done
        await converter.exec(f"kill -SEGV {pids[0]}")
        with anyio.fail_after(60):
            while not done:
                await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()
    await running(converter, 0)


async def test_d4_the_converter_has_no_network_and_starts_no_programs(call: Call) -> None:
    converter = await converter_of(call)
    spec = converter.info.spec
    assert spec.network.mode == "none"
    assert spec.ephemeral
    assert spec.idle_timeout_s is not None
    assert (await converter.exec("cat /proc/net/dev")).stdout.count(":") == 1  # lo
    await call.cave.write("endless.pdf", bombs.endless_pdf())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(attempt, call, "convert", "endless.pdf")
        [pid] = await running(converter, 1)
        limits = (await converter.exec(f"cat /proc/{pid}/limits")).stdout
        tasks.cancel_scope.cancel()
    found = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert found["Max processes"] == ["0", "0"]
    assert found["Max file size"] == ["0", "0"]
    assert found["Max address space"] == [str(1024 * MIB)] * 2
    assert found["Max core file size"] == ["0", "0"]
    assert int(found["Max cpu time"][1]) <= 62


async def test_owners_do_not_share_a_converter(opened: Ghost, call: Call) -> None:
    first = await converter_of(call)
    async with (
        await opened.create(CaveSpec(ephemeral=True, owner="")) as same,
        await opened.create(CaveSpec(ephemeral=True, owner="other")) as other,
    ):
        await works(Call(cave=same))
        await works(Call(cave=other))
        assert (await converter_of(Call(cave=same))).id == first.id
        assert (await converter_of(Call(cave=other))).id != first.id


async def test_converters_end_with_ghost(state_dir: Path) -> None:
    async with Ghost(backend="local", state_dir=state_dir) as ghost:
        cave = await ghost.create(CaveSpec(ephemeral=True, owner="brief"))
        await works(Call(cave=cave))
        converter = await converter_of(Call(cave=cave))
    async with Ghost(backend="local", state_dir=state_dir) as ghost:
        assert converter.id not in [info.id for info in await ghost.list()]
