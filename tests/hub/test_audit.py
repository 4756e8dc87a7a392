"""The audit trail: what each call leaves behind, and what it never does."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from ghost_hub.catalog import published
from ghost_hub.hub import Hub
from ghost_hub.principal import Principal
from ghost_mcp import CaveSpec, Ghost
from ghost_mcp.audit import Audit, Files, Sink, Stream, layers, read
from ghost_mcp.backends.fake import FakeBackend
from ghost_mcp.calls import Calls
from ghost_mcp.errors import GhostError, NotFound
from ghost_mcp.places import Places, SessionCaves
from tests.hub import toolbox

SECRET = "hunter2-in-plain-sight"  # noqa: S105 - looked for, and not found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "audit"


@asynccontextmanager
async def calling(sink: Sink) -> AsyncIterator[Any]:
    """``await call(tool, **arguments)`` in a cave named `work`, audited."""
    async with Ghost(backend=FakeBackend()) as ghost, Places(ghost) as places:
        await ghost.create(CaveSpec(name="work"))
        async with SessionCaves(places, pinned="work") as caves:
            calls = Calls(published([toolbox.TOOLSET]), [Audit(sink)])

            async def call(tool: str, **arguments: Any) -> Any:
                return (await calls.run(caves, f"test_{tool}", arguments)).outcome

            yield call


async def test_each_call_leaves_a_line_and_nothing_of_what_was_said(folder: Path) -> None:
    async with calling(Files(str(folder))) as call:
        await call("say", content=SECRET, times=2)
        await call("say", times=2, content=SECRET)
        await call("say", content="other")
        await call("picture", padding=1000)
        await call("refuse")
        await call("say", nonsense=1)
        await call("say", content=f"{SECRET}\n\udcff", cave="gone")
        await call("say", cave=SECRET.upper())
        with anyio.move_on_after(0.2):
            await call("hang")
    found = list(read(str(folder)))
    said, again, other, picture, refused, wrong, *_, hung = found
    assert [entry["outcome"] for entry in found] == [
        *("ok", "ok", "ok", "ok", "not_found", "invalid_argument"),
        *("cave_not_found", "invalid_argument", "cancelled"),
    ]
    assert [entry["cave"] for entry in found] == [*["work"] * 6, "gone", None, "work"]
    assert {entry["owner"] for entry in found} == {""}
    assert said["tool"] == "test_say"
    assert said["arguments_digest"] == again["arguments_digest"] != other["arguments_digest"]
    assert said["arguments_bytes"] == len(json.dumps({"content": SECRET, "times": 2})) - 3
    assert said["answer_bytes"] == 2 * len(SECRET)
    assert picture["answer_bytes"] == len("a pixel") + len(toolbox.PNG) + 1000
    assert len({entry["call"] for entry in found}) == len(found)
    assert 100 <= hung["duration_ms"] < 60_000
    assert "answer_bytes" not in refused | wrong
    for path in folder.iterdir():
        assert SECRET.encode() not in path.read_bytes().lower()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_what_an_owner_asks_in_vain_of_another_s_cave_is_not_in_that_cave_s_trail(
    folder: Path,
) -> None:
    caller = Hub().caller(Principal(owner="mallory", scope="manage"))
    calls = Calls(published([toolbox.TOOLSET]), [Audit(Files(str(folder)))])
    for name in ("alice/work", "work"):
        asked = {"content": SECRET, "cave": name}
        with suppress(GhostError):
            await calls.operate(caller, "made", asked, cave=name, effect="read", kind="operation", work=_refused)  # fmt: skip
    assert [entry["cave"] for entry in read(str(folder))] == [None, "mallory/work"]


async def _refused() -> None:
    raise NotFound("no such cave")


async def test_a_digest_says_nothing_without_the_folder_s_key(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two", "one"):
        folder = str(tmp_path / name / "audit")
        async with calling(Files(folder)) as call:
            await call("say", content="yes")
        digests.add([entry["arguments_digest"] for entry in read(folder)][-1])
    assert len(digests) == 2


async def test_to_a_stream() -> None:
    reader, writer = os.pipe()
    async with calling(Stream(writer)) as call:
        await call("whose")
    os.close(writer)
    with open(reader, "rb") as file:
        [line] = file.read().splitlines()
    assert json.loads(line)["tool"] == "test_whose"


async def test_a_trail_that_cannot_be_written_is_said_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.mkdir()
    folder.write_text("in the way")
    with caplog.at_level(logging.ERROR):
        async with calling(Files(str(folder))) as call:
            assert (await call("say", content="a")).text == "a"
            assert (await call("say", content="b")).text == "b"
            assert len(caplog.records) == 1
            assert "cannot be written" in caplog.text
            folder.unlink()
            await call("say", content="c")
    assert len(list(read(str(folder)))) == 1


def test_where_it_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOST_AUDIT", "off")
    assert layers() == []
    assert layers("off") == []
    assert len(layers(str(folder))) == 1
    assert len(layers("-")) == 1
    monkeypatch.delenv("GHOST_AUDIT")
    assert len(layers()) == 1


WRITER = """
import sys
from ghost_mcp.audit import Files
folder, name, count, size, files = sys.argv[1:]
sink = Files(folder, max_file_bytes=int(size), files=int(files))
sink.key
for number in range(int(count)):
    sink.write(b'{"time":"t","from":"%s","number":%d}\\n' % (name.encode(), number))
"""


def write_together(folder: Path, *, count: int, size: int, files: int) -> bytes:
    words = (str(count), str(size), str(files))
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder), name, *words])
        for name in "abcd"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    return (folder / "key").read_bytes()


def test_many_processes_lose_no_line(folder: Path) -> None:
    key = write_together(folder, count=1500, size=20_000, files=100)
    assert len(key) == 32
    found = [(entry["from"], entry["number"]) for entry in read(str(folder))]
    assert len(found) == 6000
    assert set(found) == {(name, number) for name in "abcd" for number in range(1500)}
    assert len(list(folder.iterdir())) > 10


def test_the_files_are_bounded(folder: Path) -> None:
    write_together(folder, count=1500, size=5_000, files=3)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(sizes) == {"key", "lock", "calls.jsonl", "calls.jsonl.1", "calls.jsonl.2"}
    assert (
        max(sizes.values()) < 20_000
    )  # of 130,000; a process that sets a file aside may be held up


def test_following_goes_on_over_a_file_that_is_set_aside(folder: Path) -> None:
    sink = Files(str(folder), max_file_bytes=100, files=3)
    assert sink.key
    sink.write(b'{"time":"1"}\n')
    lines = read(str(folder), follow=True)
    assert next(lines)["time"] == "1"
    sink.write(b'{"time":"2"}\nno entry\n[]\n{"time":3}\n')
    sink.write(b'{"time":"3","more":"%s"}\n' % (b"x" * 80))
    assert [next(lines)["time"] for _ in range(2)] == ["2", "3"]
    with (folder / "calls.jsonl").open("ab") as file:
        file.write(b'{"time"')
        file.flush()
        file.write(b':"4"}\n')
    assert next(lines)["time"] == "4"
    lines.close()
    sink.close()
