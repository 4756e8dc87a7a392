"""What README.md shows is run as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import Served

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def environment(state_dir: Path, tmp_path: Path) -> dict[str, str]:
    """The command ``ghost`` on the path, and a state folder of its own."""
    command = tmp_path / "ghost"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ghost_mcp.cli "$@"\n')
    command.chmod(0o755)
    folder = state_dir / "readme"
    folder.mkdir(0o711, exist_ok=True)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "GHOST_STATE_DIR": str(folder)}


def run(argv: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        argv, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    assert done.stderr == ""
    return done.stdout


def test_the_commands(environment: dict[str, str]) -> None:
    (block,) = blocks("console")
    said = {
        line[2:]: run(["bash", "-c", line[2:]], environment) for line in block.strip().splitlines()
    }
    assert said["ghost exec dev 'print(6 * 7)'"] == "42\n"
    assert "greeting.txt" in said["ghost exec dev -- ls -l"]
    assert said["echo some input | ghost exec dev -- wc -c"] == "11\n"
    assert said["ghost call file_read path=greeting.txt --cave dev"].startswith("hello\n")
    assert "running" in said["ghost list"]


def test_the_requests(served: Served, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"data")
    lines = [
        line for block in blocks("sh") for line in block.splitlines() if line.startswith("curl")
    ]
    assert len(lines) == 2
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line.replace("http://127.0.0.1:8000", served.url)],
            env={**os.environ, "GHOST_TOKEN": served.token},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        answer = json.loads(done.stdout)
        assert "stdout" in answer or answer["size"] == 4


def test_the_program(environment: dict[str, str]) -> None:
    (block,) = blocks("python")
    lines = run([sys.executable, "-c", block], environment).splitlines()
    assert lines[0] == "0 1 notes.txt"
    assert "42" in lines
    assert lines[-1].startswith("none:")


def test_the_names_of_the_tools() -> None:
    from ghost_hub.catalog import toolsets

    for one in toolsets():
        (row,) = re.findall(rf"^\| {one.name} \| (`.*?) \|", README, re.MULTILINE)
        assert re.findall(r"`(\w+)`", row) == [tool.name for tool in one.tools]
