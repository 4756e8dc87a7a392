"""Completion, through the shells themselves."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from .conftest import Cli, document

if TYPE_CHECKING:
    from pathlib import Path


def offered(cli: Cli, *words: str) -> list[str]:
    return cli("complete", *words).stdout.decode().split()


def test_commands_options_and_values(cli: Cli, named: str) -> None:
    assert offered(cli, "ex") == ["exec"]
    assert offered(cli, "exec", "--lang") == ["--language"]
    assert offered(cli, "exec", "--language", "") == ["bash", "javascript", "python"]
    assert named in offered(cli, "exec", "")
    assert offered(cli, "exec", named[:4]) == [named]
    assert offered(cli, "exec", "--language", "bash", named[:4]) == [named]
    assert offered(cli, "exec", named, "") == []
    assert offered(cli, "exec", named, "--", "--l") == []
    assert offered(cli, "destroy", "other", named[:4]) == [named]
    assert offered(cli, "mcp", "--cave", named[:4]) == [named]
    assert offered(cli, "mcp", "--server", "m") == ["markitdown"]
    assert "file_replace" in offered(cli, "call", "file_")
    assert offered(cli, "nosuch", "") == []


def test_the_script_as_a_document(cli: Cli) -> None:
    told = document(cli("completion", "bash", "--json"))
    assert told == {"shell": "bash", "script": cli("completion", "bash").stdout.decode()}
    cli("completion", "tcsh", code=2)


@pytest.fixture
def ghost_on_path(tmp_path: Path) -> Path:
    """A folder with a command ``ghost``, as an installation gives."""
    command = tmp_path / "ghost"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ghost_mcp.cli "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return tmp_path


# What a shell does when a person presses tab, and how it is asked for the answer.
ASK = {
    "bash": (
        'eval "$(ghost completion bash)"; COMP_WORDS=(ghost exec {start}); COMP_CWORD=2; '
        '_ghost; printf "%s\\n" "${{COMPREPLY[@]}}"'
    ),
    "zsh": (
        "compdef() {{ :; }}; compadd() {{ shift; print -l ${{(P)1}}; }}; _files() {{ :; }}; "
        'eval "$(ghost completion zsh)"; words=(ghost exec {start}); CURRENT=3; _ghost'
    ),
    "fish": "ghost completion fish | source; complete -C 'ghost exec {start}'",
}


@pytest.mark.parametrize("shell", list(ASK))
def test_in_a_shell(
    shell: str, named: str, environment: dict[str, str], ghost_on_path: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"not run: {shell} is not installed")
    done = subprocess.run(
        [shell, "-c", ASK[shell].format(start=named[:4])],
        env={**environment, "PATH": f"{ghost_on_path}:{environment['PATH']}"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.decode().split() == [named], done.stderr
