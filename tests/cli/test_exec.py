"""``ghost exec``: to its caller it is the program it runs."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import IO, TYPE_CHECKING

import pytest

from .conftest import GHOST, PATIENCE_S, Cli, document

if TYPE_CHECKING:
    from pathlib import Path

FLOOD = 5_000_000


def test_code_in_each_language(cli: Cli, named: str) -> None:
    for language, code in (
        ("python", "print(6 * 7)"),
        ("bash", "echo $((6 * 7))"),
        ("javascript", "console.log(6 * 7)"),
    ):
        assert cli("exec", named, code, "--language", language).stdout == b"42\n"
    assert cli("exec", named, "print('python is the default')").stdout.startswith(b"python")


def test_a_shell_line_by_mistake_is_told_the_way(cli: Cli, named: str) -> None:
    assert b"--language bash" in cli("exec", named, "ls -l /", code=1).stderr
    assert b"--language" not in cli("exec", named, "raise SystemExit(1)", code=1).stderr
    assert b"--language" not in cli("exec", named, "--", "false", code=1).stderr


def test_a_program_after_two_dashes(cli: Cli, named: str) -> None:
    done = cli("exec", named, "--", "printf", "%s|", "--json", "-it", "two words")
    assert done.stdout == b"--json|-it|two words|"


def test_streams_and_exit_code_are_the_programs(cli: Cli, named: str) -> None:
    done = cli("exec", named, "--language", "bash", "echo out; echo err >&2; exit 7", code=7)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    assert cli("exec", named, "--", "sh", "-c", "kill -9 $$", code=137).stderr == b""


def test_input_is_passed_through_with_every_byte(cli: Cli, named: str) -> None:
    data = os.urandom(3_000_001)
    assert cli("exec", named, "--", "cat", given=data).stdout == data


def test_input_that_nobody_reads_ends_with_the_program(cli: Cli, named: str) -> None:
    assert cli("exec", named, "--", "true", given=bytes(4_000_000)).stdout == b""


def test_a_flood_comes_whole(cli: Cli, named: str) -> None:
    done = cli("exec", named, f"print('x' * {FLOOD})")
    assert len(done.stdout) == FLOOD + 1


def test_output_is_live(named: str, environment: dict[str, str]) -> None:
    code = "import sys; print('first', flush=True); sys.stdin.read(); print('last')"
    with subprocess.Popen(
        [*GHOST, "exec", named, code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as ghost:
        assert ghost.stdout is not None
        assert ghost.stdin is not None
        assert ghost.stdout.readline() == b"first\n"  # while it waits for its input
        ghost.stdin.close()
        assert ghost.stdout.read() == b"last\n"
        assert ghost.wait(PATIENCE_S) == 0


def test_json_is_one_document(cli: Cli, named: str) -> None:
    code = "import sys; print('o'); print('e', file=sys.stderr); sys.exit(3)"
    told = document(cli("exec", "--json", named, code, code=3))
    assert (told["exit_code"], told["stdout"], told["stderr"]) == (3, "o\n", "e\n")
    assert told["timed_out"] is False
    assert told["duration_s"] > 0


def test_time_over_ends_the_whole_tree(cli: Cli, named: str) -> None:
    done = cli(
        *("exec", named, "--timeout", "1.5s", "--language", "bash"),
        "setsid sleep 77 & echo begun; sleep 77",
        code=124,
    )
    assert done.stdout == b"begun\n"
    assert b"its time was over" in done.stderr
    survivors = cli("exec", named, "--", "sh", "-c", "cat /proc/[0-9]*/cmdline 2>&1").stdout
    assert b"sleep\x0077" not in survivors


def test_interrupt_reaches_the_program(named: str, environment: dict[str, str]) -> None:
    code = """
import os, signal
signal.signal(signal.SIGINT, lambda number, frame: (os.write(1, b'caught\\n'), os._exit(5)))
os.write(1, b'ready\\n')
signal.pause()
"""
    with _started(environment, "exec", named, code) as ghost:
        assert ghost.stdout.readline() == b"ready\n"
        ghost.send_signal(signal.SIGINT)
        assert ghost.stdout.read() == b"caught\n"
        assert ghost.wait(PATIENCE_S) == 5


def test_a_second_interrupt_ends_what_ignores_the_first(
    named: str, environment: dict[str, str]
) -> None:
    code = """
import os, signal
signal.signal(signal.SIGINT, lambda number, frame: os.write(1, b'again\\n'))
os.write(1, b'ready\\n')
while True: signal.pause()
"""
    with _started(environment, "exec", named, code) as ghost:
        assert ghost.stdout.readline() == b"ready\n"
        ghost.send_signal(signal.SIGINT)
        assert ghost.stdout.readline() == b"again\n"
        ghost.send_signal(signal.SIGINT)
        assert ghost.wait(PATIENCE_S) == 130
        assert ghost.stderr.read() == b""


def test_a_program_that_takes_the_default_ends_with_130(
    named: str, environment: dict[str, str]
) -> None:
    with _started(
        environment, "exec", named, "--", "sh", "-c", "echo ready; exec sleep 60"
    ) as ghost:
        assert ghost.stdout.readline() == b"ready\n"
        ghost.send_signal(signal.SIGINT)
        assert ghost.wait(PATIENCE_S) == 130


def test_a_closed_pipe_is_quiet_and_ends_the_program(
    cli: Cli, named: str, environment: dict[str, str]
) -> None:
    with _started(
        environment, "exec", named, "--", "sh", "-c", "while echo yy; do :; done"
    ) as ghost:
        assert ghost.stdout.readline() == b"yy\n"
        ghost.stdout.close()
        assert ghost.wait(PATIENCE_S) == 141
        assert ghost.stderr.read() == b""
    gone(cli, named, "echo y[y]")


def test_killing_ghost_ends_the_program(cli: Cli, named: str, environment: dict[str, str]) -> None:
    with _started(environment, "exec", named, "--", "sh", "-c", "echo ready; sleep 66") as ghost:
        assert ghost.stdout.readline() == b"ready\n"
        ghost.kill()
    gone(cli, named, "sleep 6[6]")


def gone(cli: Cli, cave: str, pattern: str) -> None:
    """Wait until no program of the cave has that in its command line; written so that it does not find itself."""
    look = f"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q '{pattern}'"
    cli("exec", cave, "--timeout", "50s", "--", "sh", "-c", f"while {look}; do sleep 0.05; done")


def test_closed_descriptors_of_our_own_harm_nothing(
    named: str, environment: dict[str, str]
) -> None:
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        line = f'"$@" {closed}'
        argv = ["sh", "-c", line, "sh", *GHOST, "exec", named, "--", "sh", "-c", "echo x; exit 9"]
        done = subprocess.run(argv, env=environment, capture_output=True, timeout=60, check=False)
        assert done.returncode == 9, (closed, done.stderr)
        assert done.stdout == (b"" if ">&-" in closed.split() else b"x\n")


def test_environment_and_folder(cli: Cli, named: str) -> None:
    done = cli(
        *("exec", named, "--env", "A=1 = one", "--env", "OURS", "--cwd", "/tmp"),
        *("--", "sh", "-c", "pwd; echo $A; echo $OURS"),
        OURS="from here",
    )
    assert done.stdout == b"/tmp\n1 = one\nfrom here\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nosuchcave", "1"], 4, b"no such cave: nosuchcave"),
        (["{cave}", "--", "nosuchprogram"], 4, b"no such program in the cave: nosuchprogram"),
        (["{cave}"], 2, b"nothing to run"),
        (["{cave}", "1", "--", "true"], 2, b"give CODE, or a program after --"),
        (["{cave}", "--"], 2, b"give CODE, or a program after --"),
        (["{cave}", "1", "--language", "cobol"], 2, b"cobol"),
        (["{cave}", "1", "--timeout", "soon"], 2, b"not a time span: 'soon'"),
        (["{cave}", "1", "--env", "NOT_SET_ANYWHERE"], 2, b"NOT_SET_ANYWHERE is not set here"),
        (["{cave}", "1", "--cwd", "/nowhere"], 4, b"no such folder: /nowhere"),
        (["-it", "{cave}"], 2, b"-t needs a terminal"),
        (["../../etc", "1"], 4, b"no such cave"),
        (["{cave}", "x" * 100_001], 2, b"the code is too long"),
        (["{cave}", "é" * 20_000], 7, b"the command is too long"),
    ],
)
def test_refusals(cli: Cli, named: str, words: list[str], code: int, said: bytes) -> None:
    words = [word.replace("{cave}", named) for word in words]
    done = cli("exec", *words, code=code)
    assert said in done.stderr
    assert done.stderr.startswith(b"ghost: ")
    assert done.stdout == b""
    told = document(cli("exec", "--json", *words, code=code))["error"]
    assert said.decode() in told["message"]
    assert set(told) >= {"code", "message", "hint", "retryable"}


def test_a_cave_that_cannot_answer_says_why(cli: Cli, named: str) -> None:
    for stop, state in ((["--pause"], b"paused"), ([], b"stopped")):
        cli("stop", named, *stop)
        done = cli("exec", named, "1", code=5)
        assert b"is " + state in done.stderr
        assert b"ghost start" in done.stderr
        cli("start", named)
        assert cli("exec", named, "print(1)").stdout == b"1\n"


def test_a_cave_that_dies_under_a_call(cli: Cli, environment: dict[str, str]) -> None:
    cli("create", "mortal")
    with _started(environment, "exec", "mortal", "--", "sh", "-c", "echo ready; sleep 60") as ghost:
        assert ghost.stdout.readline() == b"ready\n"
        cli("destroy", "mortal")
        assert ghost.wait(PATIENCE_S) == 6
        assert b"ghost: the cave ended" in ghost.stderr.read()


def test_a_long_state_folder(cli: Cli, state_dir: Path) -> None:
    """Longer than the 108 bytes a socket's address has."""
    folder = state_dir / ("x" * 100)
    folder.mkdir(0o711)
    cli("create", "deep", GHOST_STATE_DIR=str(folder))
    assert cli("exec", "deep", "print(1)", GHOST_STATE_DIR=str(folder)).stdout == b"1\n"
    cli("destroy", "deep", GHOST_STATE_DIR=str(folder))


class _Streams(subprocess.Popen[bytes]):
    stdout: IO[bytes]
    stderr: IO[bytes]


def _started(environment: dict[str, str], *words: str) -> _Streams:
    return _Streams(
        [*GHOST, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
