# The whole of Ghost, as an agent meets it: a real client starts `ghost mcp` and works in a cave.
"""The story that `ghost demo` tells, with documents that LibreOffice made; each answer is checked."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mcp import Client, StdioServerParameters
from PIL import Image

from ghost_mcp.cli.clients import CLIENTS, Way, entry, ghost_command
from ghost_mcp.cli.demo import server
from ghost_mcp.cli.story import GUEST, Answer, Document, play
from tests import documents

if TYPE_CHECKING:
    from mcp.types import CallToolResult

DEMO_S = 170
PICTURES = {(width, height) for width, height, _ in documents.PICTURES.values()}
# name: what its Markdown must hold, the sizes of its pictures
BROUGHT: dict[str, tuple[Sequence[str], set[tuple[int, int]]]] = {
    "report.pdf": (["Expedition report", "The last line of the report."], PICTURES),
    "report.docx": (["# Expedition report", "| North | 412 |", "Grüße aus der Höhle"], PICTURES),
    "slides.pptx": (["First slide", "Red slide", "Blue slide"], PICTURES),
    "book.xlsx": (["## Squares", "| 12 | 144 |", "brass"], {(240, 240)}),
}


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    monkeypatch.setenv("GHOST_STATE_DIR", str(state_dir))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("_here")
async def test_a_whole_workflow(state_dir: Path) -> None:
    folder = documents.folder()
    brought = [Document(name=name, data=(folder / name).read_bytes()) for name in BROUGHT]
    answers: list[Answer] = []
    others = _caves(state_dir)
    async with Client(server(), read_timeout_seconds=120) as client:
        assert len((await client.list_tools()).tools) == 16
        async for answer in play(client, brought):
            assert not answer.result.is_error, (answer.tool, answer.text)
            assert 0 < len(answer.text) <= 8000
            answers.append(answer)
        caves = [
            json.loads((cave / "cave.json").read_text()) for cave in _caves(state_dir) - others
        ]
        assert caves
        assert all(cave["spec"]["ephemeral"] for cave in caves)
    _check_page(answers[:8])
    rest = iter(answers[8:])
    for name, (texts, sizes) in BROUGHT.items():
        _check_document(name, [next(rest), next(rest), next(rest)], texts, sizes)
    assert next(rest, None) is None
    assert _caves(state_dir) <= others  # they ended with their connection


def _caves(state_dir: Path) -> set[Path]:
    folder = state_dir / "caves"
    return {*folder.iterdir()} if folder.is_dir() else set()


def _check_page(answers: Sequence[Answer]) -> None:
    written, started, waited, opened, typed, pressed, shot, read = answers
    assert written.data["created"] is True
    assert started.data["running"] is True
    assert waited.data["exit_code"] == 0
    assert "it answers" in waited.data["stdout"]
    assert opened.data["status"] == 200
    assert opened.data["title"] == "Results"
    assert opened.data["url"] == "http://localhost:5000/results"
    assert "Add" in json.dumps(opened.data["outline"])
    assert typed.tool == "browser_type"
    assert GUEST in pressed.text
    (picture,) = shot.pictures
    image = Image.open(io.BytesIO(picture))
    assert (image.format, min(image.size) > 400, max(image.size) <= 1568) == ("PNG", True, True)
    colors = image.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert len(colors) > 10, "a page with text has more than one color"
    assert read.data["content"] == f"{GUEST}\n"


def _check_document(
    name: str, answers: Sequence[Answer], texts: Sequence[str], sizes: set[tuple[int, int]]
) -> None:
    written, converted, extracted = answers
    assert written.data["path"] == f"/workspace/{name}"
    for text in texts:
        assert text in converted.data["markdown"], name
    found = {(image["width"], image["height"]) for image in extracted.data["images"]}
    assert found == sizes, name
    assert all(image["path"].startswith("/workspace/") for image in extracted.data["images"])


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_demo(state_dir: Path, tmp_path: Path) -> None:
    """What `make run` shows: every call and its answer, a screenshot, what to paste where."""
    done = _demo(state_dir, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for tool in ("file_write", "shell_exec", "browser_click", "markitdown_extract_images"):
        assert f"> {tool}(" in done.stdout
    shot = tmp_path / "ghost-demo" / "screenshot.png"
    assert str(shot) in done.stdout
    with Image.open(shot) as image:
        assert image.format == "PNG"
        size = image.size
    for client in CLIENTS:
        assert client.title in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) < 400
    told = json.loads(_demo(state_dir, tmp_path, "--json").stdout)
    assert [call["tool"] for call in told["calls"]][-1] == "markitdown_extract_images"
    found = told["calls"][-1]["data"]["images"][0]
    assert (found["width"], found["height"]) == size
    assert told["screenshot"] == str(shot)


def _demo(
    state_dir: Path, folder: Path, *words: str, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ghost_mcp.cli", "demo", *words],
        cwd=folder,
        env={**os.environ, "GHOST_STATE_DIR": str(state_dir), **more},
        capture_output=True,
        text=True,
        timeout=DEMO_S,
        check=False,
    )


def test_a_server_that_does_not_start_is_said(state_dir: Path, tmp_path: Path) -> None:
    done = _demo(state_dir, tmp_path, GHOST_BACKEND="nosuch")
    assert done.returncode == 10
    assert "unknown backend: nosuch" in done.stderr
    assert "See: ghost doctor" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ghost-demo").exists()


@pytest.mark.usefixtures("_here")
async def test_the_printed_configuration_starts_a_server() -> None:
    """The entry of each client, taken as that client takes it."""
    program = ghost_command()
    assert os.path.isabs(program[0])
    for client in CLIENTS:
        given = entry(client, Way(command=(*program, "mcp")))
        assert [given["command"], *given["args"]] == [*program, "mcp"]
    settings = {"GHOST_STATE_DIR": os.environ["GHOST_STATE_DIR"]}
    parameters = StdioServerParameters(command=given["command"], args=given["args"], env=settings)
    async with Client(parameters, read_timeout_seconds=60) as connected:
        result: CallToolResult = await connected.call_tool("shell_exec", {"command": "echo here"})
        assert (result.structured_content or {})["stdout"] == "here\n"
