"""``ghost audit``: what was called where, after the fact."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

from .conftest import GHOST, Cli

if TYPE_CHECKING:
    from pathlib import Path


def entries(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_calls_are_found_again(cli: Cli, named: str, tmp_path: Path) -> None:
    trail = {"GHOST_AUDIT": str(tmp_path / "audit")}
    cli("call", "file_write", "path=a", "content=some text", "--cave", named, **trail)
    cli("call", "file_read", "path=/nowhere", "--cave", named, code=4, **trail)
    found = entries(cli("audit", "--cave", named, "--since", "1h", "--json", **trail))
    assert [(entry["tool"], entry["outcome"]) for entry in found] == [
        ("file_write", "ok"),
        ("file_read", "file_not_found"),
    ]
    assert entries(cli("audit", "--failed", "--json", **trail)) == found[1:]
    assert entries(cli("audit", "--tool", "file_write", "--json", **trail)) == found[:1]
    for words in (("--cave", "other"), ("--owner", "alice"), ("--since", "0s")):
        assert cli("audit", *words, "--json", **trail).stdout == b""
    shown = cli("audit", **trail).stdout.decode()
    assert "file_not_found" in shown
    assert "some text" not in shown
    assert b"not a time span" in cli("audit", "--since", "soon", code=2, **trail).stderr


def test_following(cli: Cli, named: str, tmp_path: Path, environment: dict[str, str]) -> None:
    trail = {"GHOST_AUDIT": str(tmp_path / "audit")}
    words = [*GHOST, "audit", "-f", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment | trail) as follower:
        assert follower.stdout is not None
        cli("call", "shell_exec", "command=true", "--cave", named, **trail)
        assert json.loads(follower.stdout.readline())["tool"] == "shell_exec"
        follower.terminate()


def test_to_standard_error_and_off(cli: Cli, named: str, state_dir: Path) -> None:
    call = ("call", "shell_exec", "command=true", "--cave", named)
    told = json.loads(cli(*call, GHOST_AUDIT="-").stderr)
    assert (told["cave"], told["tool"]) == (named, "shell_exec")
    assert cli(*call, GHOST_AUDIT="off").stderr == b""
    before = entries(cli("audit", "--json"))
    cli(*call, GHOST_AUDIT="")
    assert len(entries(cli("audit", "--json"))) == len(before) + 1
    assert (state_dir / "audit" / "calls.jsonl").stat().st_mode & 0o777 == 0o600
