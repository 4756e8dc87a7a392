"""The file tools on a real cave, called as an adapter calls them."""

from __future__ import annotations

import base64
import json
import re
import struct
import time
import zlib
from importlib import import_module
from typing import Any

import anyio
import pytest

from ghost_mcp import Cave, CaveSpec, Ghost
from ghost_mcp.errors import (
    Conflict,
    GhostError,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    PermissionRefused,
    TimedOut,
)
from ghost_mcp.tool import Call, invoke
from ghost_servers.file import TOOLSET
from ghost_servers.file.pictures import sniff
from tests.servers.using import Use, peak_bytes, reset_peak, user

TOOLS = {tool.name: tool for tool in TOOLSET.tools}
MIB = 1 << 20


@pytest.fixture
def use(cave: Cave) -> Use:
    return user(TOOLSET, cave)


def png(width: int, height: int, noise: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = (b"\0" + b"\x10\x20\x30" * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"teXt", noise)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


# --- read ------------------------------------------------------------------------------------------


async def test_read_a_whole_file(use: Use, cave: Cave) -> None:
    await cave.write("a.txt", "héllo\nworld\n")
    reply = await use("read", path="a.txt")
    assert reply.data["content"] == "héllo\nworld\n"
    assert (reply.data["encoding"], reply.data["size"]) == ("utf-8", 13)
    assert "next_line" not in reply.data
    assert reply.text.startswith("héllo\nworld\n[13 B; version ")


async def test_read_lines_with_numbers(use: Use, cave: Cave) -> None:
    await cave.write("a.txt", "one\ntwo\nthree\nfour")
    reply = await use("read", path="a.txt", start_line=2, limit=2, numbers=True)
    assert reply.data["content"] == "     2\ttwo\n     3\tthree\n"
    assert reply.data["next_line"] == 4
    last = await use("read", path="a.txt", start_line=reply.data["next_line"])
    assert last.data["content"] == "four"
    assert "next_line" not in last.data
    with pytest.raises(InvalidArgument, match="has 4 lines"):
        await use("read", path="a.txt", start_line=5)


@pytest.mark.parametrize(("content", "lines"), [("", 0), ("a", 1), ("a\n", 1), ("a\n\n", 2)])
async def test_lines_are_counted_as_editors_do(
    use: Use, cave: Cave, content: str, lines: int
) -> None:
    await cave.write("a.txt", content)
    with pytest.raises(InvalidArgument, match=f"has {lines} line"):
        await use("read", path="a.txt", start_line=lines + 2)


async def test_pages_put_together_are_the_file(use: Use, cave: Cave) -> None:
    whole = "".join(f"{n} {'äöü' * (n % 40)}\n" for n in range(3000)) + "x" * 20_000 + "\nend"
    await cave.write("a.txt", whole)
    by_lines, line = "", 1
    while True:
        page = (await use("read", path="a.txt", start_line=line)).data
        by_lines += page["content"]
        if "next_line" not in page:
            break
        line = page["next_line"]
    by_bytes, offset = by_lines, page.get("next_offset")
    while offset is not None:  # from within the long line on
        page = (await use("read", path="a.txt", offset=offset)).data
        by_bytes += page["content"]
        offset = page.get("next_offset")
    assert by_lines != whole
    assert by_bytes == whole


async def test_read_by_bytes(use: Use, cave: Cave) -> None:
    await cave.write("a.txt", "aéb\ncd\n")
    reply = await use("read", path="a.txt", offset=2, limit=4)  # from within the é
    assert reply.data["content"] == "b\nc"
    assert reply.data["next_offset"] == 6
    half = await use("read", path="a.txt", offset=1, limit=1)  # a reader is never held in one place
    assert (half.data["encoding"], half.data["next_offset"]) == ("base64", 2)


async def test_bytes_come_as_base64(use: Use, cave: Cave) -> None:
    raw = bytes(range(256)) * 100
    await cave.write("a.bin", raw)
    found = b""
    offset: int | None = 0
    while offset is not None:
        page = (await use("read", path="a.bin", offset=offset)).data
        assert page["encoding"] == "base64"
        found += base64.b64decode(page["content"])
        offset = page.get("next_offset")
    assert found == raw
    asked = await use("read", path="a.bin", encoding="base64", limit=3)
    assert base64.b64decode(asked.data["content"]) == raw[:3]


async def test_latin_1_is_base64_unless_utf8_is_asked_for(use: Use, cave: Cave) -> None:
    await cave.write("a.txt", b"caf\xe9\n")
    assert (await use("read", path="a.txt")).data["encoding"] == "base64"
    assert (await use("read", path="a.txt", encoding="utf-8")).data["content"] == "caf\ufffd\n"


async def test_an_image_is_an_image(use: Use, cave: Cave) -> None:
    raw = png(40, 30)
    await cave.write("a.png", raw)
    reply = await use("read", path="a.png")
    (picture,) = reply.pictures
    assert (picture.data, picture.mime_type) == (raw, "image/png")
    assert reply.data["mime_type"] == "image/png"
    assert reply.text.startswith("[image/png, 40x30, ")
    large = png(8, 8, noise=bytes(MIB))
    await cave.write("b.png", large)
    assert (await use("read", path="b.png")).pictures[0].data == large


@pytest.mark.parametrize("raw", [png(9000, 1), png(4, 4, noise=bytes(3 * MIB)), png(4, 4)[:18]])
async def test_an_image_no_client_takes_is_refused(use: Use, cave: Cave, raw: bytes) -> None:
    await cave.write("a.png", raw)
    with pytest.raises(LimitExceeded, match="too large to show") as refused:
        await use("read", path="a.png")
    assert "base64" in refused.value.hint
    assert (await use("read", path="a.png", encoding="base64")).data["size"] == len(raw)


def test_image_heads() -> None:
    """The first bytes of small images as Pillow writes them."""
    from io import BytesIO

    from PIL import Image

    for kind, options in (
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "comment": b"x" * 1000}),
        ("GIF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0" + bytes(16)}),
    ):
        file = BytesIO()
        Image.new("RGB", (321, 123)).save(file, kind, **options)
        head = sniff(file.getvalue())
        assert head is not None
        assert (head.mime_type, head.width, head.height) == (f"image/{kind.lower()}", 321, 123)
        for cut in range(40):
            sniff(file.getvalue()[:cut])


@pytest.mark.slow
async def test_files_of_any_size(use: Use, cave: Cave, monkeypatch: pytest.MonkeyPatch) -> None:
    made = "truncate -s 1T sparse; seq 1000000 >lines; head -c 1G /dev/zero | tr '\\0' x >long"
    assert (await cave.exec(made)).exit_code == 0
    await use("read", path="lines", limit=1)
    before, began = reset_peak(), time.monotonic()
    first = await use("read", path="sparse")
    assert (first.data["size"], first.data["encoding"]) == (1 << 40, "base64")
    middle = await use("read", path="sparse", offset=1 << 39)
    assert middle.data["next_offset"] > 1 << 39
    lines = await use("read", path="lines", start_line=999_000, limit=2)
    assert lines.data["content"] == "999000\n999001\n"
    line = await use("read", path="long")
    assert set(line.data["content"]) == {"x"}
    assert (await use("read", path="long", offset=1 << 29)).data["content"] == line.data["content"]
    assert time.monotonic() - began < 60  # whole files would take longer than any test may
    with pytest.raises(InvalidArgument, match="has 1 line"):
        await use("read", path="long", start_line=2)
    monkeypatch.setattr(import_module("ghost_servers.file.read"), "COUNTING_S", 1.0)
    with pytest.raises(TimedOut, match="too far into a file of 1024.0 GiB"):
        await use("read", path="sparse", start_line=2)
    assert peak_bytes() - before < 32 * MIB


async def test_an_output_is_read_and_searched_by_its_uri(use: Use, cave: Cave) -> None:
    head, _ = await cave.call("exec", {"line": "seq 5000000; echo end", "keep": True})
    uri = f"ghost://caves/{cave.name}/outputs/{head['id']}/stdout"
    assert (await use("read", path=uri, start_line=1000, limit=1)).data["content"] == "1000\n"
    within = await use("read", path=uri, offset=20_000_000, limit=16)
    assert "were not kept" in within.text
    assert re.fullmatch(r"[\d\n]{16}", within.data["content"])
    found = await use("search", pattern="^4999999$", path=uri, context=1)
    (match,) = found.data["matches"]
    assert (match["path"], match["before"], match["after"]) == (uri, ["4999998"], ["5000000"])
    assert "not kept" in found.text
    line = await use("read", path=uri, start_line=match["line"])
    assert line.data["content"] == "4999999\n5000000\nend\n"
    with pytest.raises(InvalidArgument, match="cannot be written"):
        await use("write", path=uri, content="x")
    with pytest.raises(InvalidArgument, match="of the cave other"):
        await use("read", path=uri.replace(cave.name, "other"))


# --- write -----------------------------------------------------------------------------------------


async def test_write_makes_folders_and_keeps_the_mode(use: Use, cave: Cave) -> None:
    made = await use("write", path="a/b/c.sh", content="#!/bin/sh\n", permissions="755")
    assert made.data["created"] is True
    assert made.data["path"] == "/workspace/a/b/c.sh"
    again = await use("write", path="a/b/c.sh", content="#!/bin/sh\necho hi\n")
    assert again.data["created"] is False
    assert (await cave.exec("a/b/c.sh")).stdout == "hi\n"


async def test_append_and_create(use: Use, cave: Cave) -> None:
    await use("write", path="a", content="one\n", mode="create")
    await use(
        "write",
        path="a",
        content=base64.b64encode(b"\xff\0").decode(),
        encoding="base64",
        mode="append",
    )
    assert (await cave.read("a")).data == b"one\n\xff\0"
    with pytest.raises(Conflict, match="exists"):
        await use("write", path="a", content="", mode="create")


async def test_a_lost_update_is_refused(use: Use, cave: Cave) -> None:
    await use("write", path="a", content="one")
    version = (await use("read", path="a")).data["version"]
    written = await use("write", path="a", content="two", version=version)
    with pytest.raises(Conflict, match="not the version"):
        await use("write", path="a", content="three", version=version)
    await use("write", path="a", content="three", version=written.data["version"])
    assert (await cave.read("a")).data == b"three"


async def test_of_many_writers_with_one_version_one_wins(use: Use, cave: Cave) -> None:
    version = (await use("write", path="a", content="start")).data["version"]
    won: list[int] = []

    async def write(number: int) -> None:
        try:
            await use("write", path="a", content=f"{number}" * 100_000, version=version)
        except Conflict:
            return
        won.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(write, number)
    assert len(won) == 1
    assert (await cave.read("a")).data == f"{won[0]}".encode() * 100_000
    assert (await cave.exec("ls -A")).stdout == "a\n"


# --- list ------------------------------------------------------------------------------------------


async def test_list(use: Use, cave: Cave) -> None:
    line = "mkdir -p src/deep .git; touch .hidden; echo 12345 >src/a.py; echo >src/deep/b.py; ln -s a.py src/l"
    await cave.exec(line)
    top = await use("list")
    assert [(e["path"], e["type"]) for e in top.data["entries"]] == [("src", "directory")]
    both = await use("list", hidden=True)
    assert [e["path"] for e in both.data["entries"]] == [".git", ".hidden", "src"]
    deep = await use("list", pattern="**/*.py")
    assert [(e["path"], e["size"]) for e in deep.data["entries"]] == [
        ("src/a.py", 6),
        ("src/deep/b.py", 1),
    ]
    linked = await use("list", path="src", sort="size")
    assert [e["path"] for e in linked.data["entries"] if e["type"] == "file"] == ["a.py"]
    assert "l -> a.py" in linked.text
    assert (await use("list", depth=3)).data["total"] == 5


async def test_a_long_listing_is_cut_and_says_so(use: Use, cave: Cave) -> None:
    await cave.exec("touch {1000..2999}")
    reply = await use("list", limit=1000)
    assert reply.data["truncated"] is True
    assert reply.data["total"] == 2000
    assert f"[/workspace: {len(reply.data['entries'])} of 2000 entries]" in reply.text


async def test_names_that_are_no_text(use: Use, cave: Cave) -> None:
    await cave.exec("touch $'a\\xffb' $'new\\nline' $'\\e[31mred'")
    reply = await use("list")
    assert [e["path"] for e in reply.data["entries"]] == ["\x1b[31mred", "a\ufffdb", "new\nline"]


# --- search ----------------------------------------------------------------------------------------

TREE = """
mkdir -p src/deep node_modules
printf 'import os\\n\\ndef f(x):\\n    return x\\n' >src/a.py
printf 'nothing\\nDEF f(y):\\n' >src/deep/b.txt
echo 'def f(' >node_modules/c.py
echo 'def f(' >.hidden.py
echo node_modules/ >.gitignore
printf 'def f(\\0' >binary
"""


@pytest.fixture(params=["ripgrep", "warden"])
async def tree(cave: Cave, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree above, searched in both ways there are."""
    assert (await cave.exec(TREE)).exit_code == 0
    if request.param == "warden":
        program = "ghost_servers.file.ripgrep.PROGRAM"
        monkeypatch.setattr(program, "no-such-program")
    elif (await cave.exec("command -v rg")).exit_code:
        pytest.skip("not run: this cave has no ripgrep")


async def places(use: Use, **arguments: Any) -> list[tuple[str, int, int]]:
    reply = await use("search", **arguments)
    return [(m["path"], m["line"], m["column"]) for m in reply.data["matches"]]


@pytest.mark.usefixtures("tree")
async def test_search(use: Use) -> None:
    assert await places(use, pattern=r"ret\w+ x") == [("src/a.py", 4, 5)]
    assert await places(use, pattern="def f(", fixed=True) == [("src/a.py", 3, 1)]
    both = [("src/a.py", 3, 1), ("src/deep/b.txt", 2, 1)]
    assert await places(use, pattern=r"def f\(", ignore_case=True) == both
    assert await places(use, pattern=r"def f\(", ignore_case=True, include=["*.txt"]) == both[1:]
    assert await places(use, pattern=r"def f\(", ignore_case=True, include=["src/*.py"]) == both[:1]
    assert await places(use, pattern=r"def f\(", ignore_case=True, exclude=["deep"]) == both[:1]
    braces = ["*.{md,txt}"]
    assert await places(use, pattern=r"def f\(", ignore_case=True, include=braces) == both[1:]
    assert await places(use, pattern="def f", path="src/a.py") == both[:1]
    assert await places(use, pattern="nowhere") == []


@pytest.mark.usefixtures("tree")
async def test_search_leaves_out_what_git_does(use: Use) -> None:
    everywhere = [".hidden.py", "node_modules/c.py", "src/a.py"]
    found = await places(use, pattern="def f", hidden=True, gitignore=False, include=["*.py"])
    assert [path for path, _, _ in found] == everywhere
    for wanted in (None, ["*.py"]):
        assert [p for p, _, _ in await places(use, pattern="def f", include=wanted)] == ["src/a.py"]


@pytest.mark.usefixtures("tree")
async def test_search_with_context(use: Use) -> None:
    reply = await use("search", pattern="def", context=1, path="src/a.py")
    (match,) = reply.data["matches"]
    assert (match["before"], match["after"]) == ([""], ["    return x"])
    assert reply.text == "src/a.py\n2- \n3: def f(x):\n4-     return x\n[1 match in 1 file]"


@pytest.mark.usefixtures("tree")
async def test_search_is_bounded(use: Use, cave: Cave) -> None:
    await cave.exec(
        "seq 100000 >many; head -c 20M /dev/zero | tr '\\0' x >long; echo x{1..2000} >wide"
    )
    some = await use("search", pattern="9", path="many", limit=5)
    assert [match["line"] for match in some.data["matches"]] == [9, 19, 29, 39, 49]
    assert some.data["truncated"] is True
    assert "narrow the pattern" in some.text
    full = await use("search", pattern="9", path="many", limit=1000)
    assert full.data["truncated"] is True
    await use("search", pattern="x")
    (match,) = (await use("search", pattern="x1999", path="wide")).data["matches"]
    assert "x1999" in match["text"]
    assert match["column"] > 5000


@pytest.mark.usefixtures("tree")
async def test_a_bad_search_is_refused_in_words(use: Use) -> None:
    for pattern in ("f(", "[", "a{2,1}"):
        with pytest.raises(InvalidArgument, match="bad pattern") as refused:
            await use("search", pattern=pattern)
        assert refused.value.code == "bad_pattern"
    with pytest.raises(NotFound, match="no such file: /workspace/srcs") as refused_path:
        await use("search", pattern="x", path="srcs")
    assert "src" in refused_path.value.hint


# --- replace ---------------------------------------------------------------------------------------

SOURCE = "import os\n\n\ndef f(x):\n    return x\n\n\nprint(f(1))\n"


async def test_replace_answers_with_a_diff(use: Use, cave: Cave) -> None:
    await cave.write("a.py", SOURCE)
    reply = await use("replace", path="a.py", old="return x", new="return x + 1")
    assert reply.data["diff"] == (
        "--- /workspace/a.py\n+++ /workspace/a.py\n@@ -2,7 +2,7 @@\n \n \n def f(x):\n"
        "-    return x\n+    return x + 1\n \n \n print(f(1))\n"
    )
    assert reply.data["replaced"] == 1
    assert (await cave.read("a.py")).data.decode() == SOURCE.replace("return x", "return x + 1")
    again = await use("write", path="a.py", content=SOURCE, version=reply.data["version"])
    assert again.data["created"] is False


async def test_several_edits_are_all_or_none(use: Use, cave: Cave) -> None:
    await cave.write("a.py", SOURCE)
    edits = [{"old": "f(x)", "new": "g(x)"}, {"old": "print(f(2))", "new": ""}]
    with pytest.raises(NotFound, match="edit 2: old is not in the file") as refused:
        await use("replace", path="a.py", edits=edits)
    assert "line 8: 'print(f(1))'" in refused.value.hint
    assert (await cave.read("a.py")).data.decode() == SOURCE
    edits[1] = {
        "old": "g(x):\n    return x",
        "new": "g(x):\n    return 2",
    }  # in what the first made
    reply = await use("replace", path="a.py", edits=edits)
    assert reply.data["replaced"] == 2
    assert "g(x):\n    return 2" in (await cave.read("a.py")).data.decode()


async def test_a_text_that_is_there_more_than_once(use: Use, cave: Cave) -> None:
    await cave.write("a.py", SOURCE)
    with pytest.raises(Conflict, match=r"3 matches, at line 4, 4, 8") as refused:
        await use("replace", path="a.py", old="f", new="g")
    assert "all or count" in refused.value.hint
    with pytest.raises(Conflict, match="3 matches"):
        await use("replace", path="a.py", old="f", new="g", count=4)
    reply = await use("replace", path="a.py", old="f", new="g", count=2, dry_run=True)
    assert "+deg g(x):" in reply.data["diff"]
    assert (await cave.read("a.py")).data.decode() == SOURCE
    await use("replace", path="a.py", old="f", new="g", all=True)
    assert (await cave.read("a.py")).data.decode() == SOURCE.replace("f", "g")


async def test_a_text_that_is_not_there(use: Use, cave: Cave) -> None:
    await cave.write("a.py", SOURCE)
    with pytest.raises(NotFound) as refused:
        await use("replace", path="a.py", old="def f(x):\n  return x", new="")
    assert refused.value.hint == "Line 5 is '    return x' where old has '  return x'."
    with pytest.raises(NotFound) as refused:
        await use("replace", path="a.py", old="pritn(f(1))", new="")
    assert refused.value.hint == "Most alike is line 8: 'print(f(1))'."


async def test_replace_by_regex(use: Use, cave: Cave) -> None:
    await cave.write("a.py", SOURCE)
    await use("replace", path="a.py", old=r"f\((\w)\)", new=r"g(\1, \g<1>)", regex=True, all=True)
    assert "def g(x, x):" in (await cave.read("a.py")).data.decode()
    for old, new in (("(", ""), ("x", r"\2"), ("x" * 5 + "{9999999999999}", "")):
        with pytest.raises(InvalidArgument, match="bad pattern"):
            await use("replace", path="a.py", old=old, new=new, regex=True, all=True)


async def test_a_regex_that_never_ends_is_ended(
    use: Use, cave: Cave, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("ghost_servers.file.replace")  # the package's name for it is the tool
    monkeypatch.setattr(module, "EDITING_S", 1.0)
    await cave.write("a", ("a" * 60 + "!\n") * 10)
    with pytest.raises(TimedOut, match="did not finish"):
        await use("replace", path="a", old="(a+)+$", new="", regex=True)
    with anyio.fail_after(60):  # its worker, which looks like the warden, is ended with it
        while (await cave.exec(["ps", "-eo", "args="])).stdout.count("warden.program") > 1:
            await anyio.sleep(0.02)
    assert (await use("read", path="a", limit=1)).data["content"] == "a" * 60 + "!\n"


async def test_line_ends_and_odd_bytes_are_kept(use: Use, cave: Cave) -> None:
    await cave.write("a", b"\xff one\r\ntwo\r\nthree")
    await use("replace", path="a", old="one\ntwo\n", new="1\n2\n3\n")
    assert (await cave.read("a")).data == b"\xff 1\r\n2\r\n3\r\nthree"
    reply = await use("replace", path="a", old="three", new="end")
    assert reply.data["diff"].endswith(
        "-three\n\\ No newline at end of file\n+end\n\\ No newline at end of file\n"
    )


async def test_a_file_that_changes_meanwhile_is_not_overwritten(
    use: Use, cave: Cave, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cave.write("a", "one")
    collect = Cave.collect

    async def late(self: Cave, *args: Any, **kwargs: Any) -> Any:
        answer = await collect(self, *args, **kwargs)
        await self.write("a", "somebody else's one")
        return answer

    monkeypatch.setattr(Cave, "collect", late)
    with pytest.raises(Conflict, match="not the version"):
        await use("replace", path="a", old="one", new="two")
    assert (await cave.read("a")).data == b"somebody else's one"


async def test_many_changes_in_a_large_file(use: Use, cave: Cave) -> None:
    await cave.exec("seq 1000000 >a")
    began = time.monotonic()
    with pytest.raises(LimitExceeded, match="more than 100000 matches"):
        await use("replace", path="a", old="9", new="nine", all=True)
    reply = await use("replace", path="a", old="99", new="x", all=True)
    assert time.monotonic() - began < 60
    assert "the diff goes on" in reply.text
    assert reply.data["replaced"] > 10_000
    expected = "".join(f"{n}\n" for n in range(1, 1_000_001)).replace("99", "x")
    assert (await cave.read("a")).data.decode() == expected


# --- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "arguments", "kind", "says"),
    [
        ("read", {"path": "nope"}, NotFound, "no such file: /workspace/nope"),
        ("read", {"path": "."}, InvalidArgument, "is a folder"),
        ("read", {"path": ""}, InvalidArgument, "not a path"),
        ("read", {"path": "a\0b"}, InvalidArgument, "not a path"),
        ("read", {"path": "a/../../etc/passwd"}, PermissionRefused, "leaves the workspace"),
        (
            "read",
            {"path": "/proc/self/root/etc/passwd"},
            PermissionRefused,
            "not a file of the cave",
        ),
        ("read", {"path": "fifo"}, InvalidArgument, "not a regular file"),
        ("read", {"path": "/dev/zero"}, PermissionRefused, "not a file of the cave"),
        ("read", {"path": "proc"}, PermissionRefused, "not a file of the cave"),
        ("read", {"path": "ghost://x"}, InvalidArgument, "not the URI of an output"),
        ("read", {"path": "x", "start_line": 0}, InvalidArgument, "must be at least 1"),
        ("read", {"path": "x", "offset": 1, "numbers": True}, InvalidArgument, "offset goes"),
        ("read", {"path": "x", "encoding": "klingon"}, InvalidArgument, "'utf-8' or 'base64'"),
        ("write", {"path": "../evil", "content": ""}, PermissionRefused, "leaves the workspace"),
        ("write", {"path": "/usr/x", "content": ""}, PermissionRefused, "Read-only"),
        ("write", {"path": "proc", "content": ""}, PermissionRefused, "not a file of the cave"),
        (
            "write",
            {"path": "x", "content": "?", "encoding": "base64"},
            InvalidArgument,
            "not base64",
        ),
        ("write", {"path": "x", "content": "\ud800"}, InvalidArgument, "half of a character"),
        ("write", {"path": "x", "content": "", "permissions": "9"}, InvalidArgument, "octal"),
        ("write", {"path": "x" * 300, "content": ""}, InvalidArgument, "too long"),
        ("list", {"path": "nope"}, NotFound, "no such folder"),
        ("list", {"path": "fifo"}, InvalidArgument, "Not a directory"),
        ("list", {"path": "/proc"}, PermissionRefused, "not a file of the cave"),
        ("list", {"pattern": "["}, InvalidArgument, "bad glob"),
        ("list", {"sort": "colour"}, InvalidArgument, "'name', 'size' or 'mtime'"),
        ("search", {"pattern": ""}, InvalidArgument, "1 to 10000 characters"),
        ("search", {"pattern": "x", "path": "/proc"}, PermissionRefused, "not a file of the cave"),
        ("search", {"pattern": "x", "path": "proc"}, PermissionRefused, "not a file of the cave"),
        ("search", {"pattern": "x", "context": 21}, InvalidArgument, "must be 0 to 20"),
        ("replace", {"path": "x"}, InvalidArgument, "give old and new, or edits"),
        ("replace", {"path": "x", "old": "", "new": "a"}, InvalidArgument, "old is empty"),
        ("replace", {"path": "nope", "old": "a", "new": "b"}, NotFound, "no such file"),
        ("replace", {"path": "binary", "old": "a", "new": "b"}, InvalidArgument, "not a text"),
        ("replace", {"path": "x", "edits": [{"old": "a"}]}, InvalidArgument, "required"),
    ],
)
async def test_bad_input_is_refused_in_words(
    use: Use, cave: Cave, tool: str, arguments: dict[str, Any], kind: type[GhostError], says: str
) -> None:
    await cave.exec("mkfifo fifo; ln -s /proc/version proc; printf 'a\\0' >binary; echo x >x")
    with pytest.raises(kind, match=re.escape(says)):
        await use(tool, **arguments)


async def test_a_full_disk_changes_nothing(ghost: Ghost, use: Use, cave: Cave) -> None:
    await cave.exec("head -c 400M /dev/zero >/tmp/fill; echo old >/tmp/a; cat /dev/zero >/tmp/rest")
    with pytest.raises(LimitExceeded) as refused:
        await use("write", path="/tmp/a", content="new" * 100_000)
    assert refused.value.code == "no_space"
    assert (await cave.read("/tmp/a")).data == b"old\n"


async def test_a_dead_cave_is_told_of(ghost: Ghost) -> None:
    cave = await ghost.create(CaveSpec(ephemeral=True))
    await cave.destroy()
    with pytest.raises(GhostError) as refused:
        await invoke(TOOLS["read"], Call(cave=cave), {"path": "a"})
    assert refused.value.code in ("cave_gone", "cave_not_found")


def test_the_published_size() -> None:
    published = [
        {"name": t.name, "description": t.description, "in": t.input_schema, "out": t.output_schema}
        for t in TOOLSET.tools
    ]
    assert [tool.name for tool in TOOLSET.tools] == ["read", "write", "list", "search", "replace"]
    assert len(json.dumps(published, separators=(",", ":"))) < 4600
