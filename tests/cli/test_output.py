"""What every command keeps to: one document, quiet ends, bugs without tracebacks, few imports."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ghost_mcp import __version__
from ghost_mcp.cli import main, near
from ghost_mcp.cli.commands import COMMANDS
from ghost_mcp.cli.output import age
from ghost_mcp.logs import Lines
from ghost_mcp.plain import plain

from .conftest import GHOST, Cli, document

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = {
    "mcp",
    "pydantic",
    "playwright",
    "docker",
    "kubernetes",
    "rich",
    "click",
    "asyncio",
    "anyio",
    "_hashlib",
}


def test_version(cli: Cli) -> None:
    assert cli("version").stdout == cli("--version").stdout == f"ghost {__version__}\n".encode()
    assert document(cli("version", "--json"))["version"] == __version__


def test_help(cli: Cli) -> None:
    overview = cli().stdout
    assert overview == cli("--help").stdout == cli("help").stdout
    for name, command in COMMANDS.items():
        assert command.summary.encode() in overview
        shown = cli(name, "--help").stdout.decode()
        assert shown == cli("help", name).stdout.decode()
        for argument in command.arguments:
            assert argument.flags[0] in shown or argument.settings["metavar"] in shown


def test_every_command_but_a_server_has_json() -> None:
    without = {
        name
        for name, command in COMMANDS.items()
        if not any("--json" in argument.flags for argument in command.arguments)
    }
    assert without == {"mcp", "serve"}


@pytest.mark.parametrize(
    ("words", "way_out"),
    [
        (["exce"], "Did you mean: ghost exec"),
        (["ls"], "Did you mean: ghost list"),  # and not logs, which is nearer by its letters
        (["--backend", "docker", "list"], "Options follow the command"),
        (["create", "--memroy", "1g", "x"], "Did you mean: --memory"),
        (["create", "--qqq", "x"], "usage: ghost create"),
        (["install"], "CLIENT is one of: claude-code, "),
        (["token"], "ACTION is one of: create, list, revoke"),
    ],
)
def test_what_was_meant_is_suggested(
    words: list[str], way_out: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert f"\n{way_out}" in capfd.readouterr().err


def test_what_others_call_a_command_leads_to_one_that_there_is() -> None:
    assert {meant.split()[0] for meant in near._ELSEWHERE.values()} <= set(COMMANDS)
    assert not set(near._ELSEWHERE) & set(COMMANDS)


def test_a_hub_says_what_is_wrong_with_its_settings_before_it_listens(
    cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "hub.yaml"
    for text, said in (
        ("prot: 9000", "prot: no such setting"),
        ("backend: dokcer", "unknown backend: dokcer"),
    ):
        file.write_text(f"{text}\n")
        done = cli("serve", "--config", str(file), "--port", "0", code=2)
        assert said in done.stderr.decode()
        assert done.stdout == b""


def test_a_preview_that_no_hub_answers_leaves_no_token(cli: Cli) -> None:
    before = document(cli("token", "list", "--json"))
    cli("preview", "x", "8000", "--hub", "http://127.0.0.1:9", code=10, GHOST_TOKEN="")
    assert document(cli("token", "list", "--json")) == before


@pytest.mark.parametrize(
    "words", [["version"], ["exec", "{cave}", "1"], ["list"], ["info", "{cave}"]]
)
def test_no_heavy_import(named: str, environment: dict[str, str], words: list[str]) -> None:
    program = (
        "import sys; from ghost_mcp.cli import main; code = main(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    words = [word.replace("{cave}", named) for word in words]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=environment,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert not HEAVY & {name.partition(".")[0] for name in done.stderr.decode().split()}


def test_a_bug_is_one_line_and_a_log(cli: Cli, state_dir: Path) -> None:
    """A record that no Ghost wrote stands for a bug: nothing foresees it."""
    folder = state_dir / "bug"
    cave = folder / "caves" / ("0" * 16)
    cave.mkdir(parents=True)
    folder.chmod(0o711)
    fields = ("spec", "created_at", "assurance", "uid", "gid", "group", "cgroups")
    (cave / "cave.json").write_text(json.dumps(dict.fromkeys(fields, 7)))
    done = cli("info", "0" * 16, code=1, GHOST_STATE_DIR=str(folder))
    first, second = done.stderr.decode().splitlines()
    assert first.startswith("ghost: internal error ")
    assert str(folder / "cli.log") in second
    number = first.split()[3].rstrip(":")
    log = (folder / "cli.log").read_text()
    assert f"--- {number}\nTraceback" in log
    assert (folder / "cli.log").stat().st_mode & 0o777 == 0o600
    told = document(cli("info", "0" * 16, "--json", code=1, GHOST_STATE_DIR=str(folder)))
    assert told["error"]["code"] == "internal"
    loud = subprocess.run(
        [*GHOST, "info", "0" * 16],
        env={**os.environ, "GHOST_STATE_DIR": str(folder), "GHOST_DEBUG": "1"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert b"Traceback" in loud.stderr


def test_a_closed_pipe_is_quiet(named: str, environment: dict[str, str]) -> None:
    for words in (["list"], ["info", named, "--json"], ["--help"], ["logs", named]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*GHOST, *words],
            stdout=writer,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=60,
            check=False,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b""), words


def test_an_interrupt_ends_cleanly(named: str, environment: dict[str, str]) -> None:
    """In any command; with --json the one document says so."""
    for words, said in (([], b""), (["--json"], b"interrupted")):
        argv = [*GHOST, "call", "shell_exec", "command=echo up > up; sleep 60", "--cave", named]
        wait = [*GHOST, "exec", named, "--", "sh", "-c", "until [ -e up ]; do :; done; rm up"]
        with subprocess.Popen(
            [*argv, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        ) as ghost:
            subprocess.run(wait, env=environment, timeout=60, check=True)
            ghost.send_signal(signal.SIGINT)
            stdout, stderr = ghost.communicate(timeout=60)
        assert (ghost.returncode, stderr) == (130, b"")
        assert (json.loads(stdout)["error"]["code"].encode() if said else stdout) == said


def test_a_protocol_owns_the_output_of_mcp(cli: Cli) -> None:
    done = cli("mcp", "--json", code=2)
    assert done.stdout == b""
    assert b"not understood: --json" in done.stderr
    for words, code, said in (
        (["--server", "nosuch"], 2, b"no such server"),
        (["--cave", "Not A Name"], 2, b"not a cave name"),
        (["--backend", "nosuch"], 2, b"unknown backend"),
    ):
        done = cli("mcp", *words, code=code)
        assert done.stdout == b""
        assert said in done.stderr


def test_hostile_text_does_not_steer_a_terminal() -> None:
    assert plain("a\x1b[2Jb\x07\x9bc\nd\te") == "a\\x1b[2Jb\\x07\\x9bc\nd\te"
    assert plain("report\u202etxt.exe\u2066") == "report\\u202etxt.exe\\u2066"


def test_hostile_text_does_not_steer_the_log_nor_write_lines_of_it() -> None:
    name = "a\x1b]0;owned\x07\nghost: all is well"
    record = logging.LogRecord("x", 30, "f", 1, "%s changed just now", (name,), None)
    said = Lines("ghost: %(message)s").format(record)
    assert said == "ghost: a\\x1b]0;owned\\x07\n  ghost: all is well changed just now"


def test_spans_for_people() -> None:
    assert [age(s) for s in (-1, 0, 119, 120, 7199, 7200, 172800)] == [
        *("0s", "0s", "119s", "2m", "119m", "2h", "2d")
    ]
