"""``ghost exec -it``: a real terminal on both sides."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING, Self

import pytest

from .conftest import GHOST

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 60


class Terminal:
    """A person's terminal with a program in it."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self.master, self._slave = pty.openpty()
        self.resize(30, 100)
        self.before = termios.tcgetattr(self._slave)
        self.process = subprocess.Popen(
            argv,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        self.seen = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str) -> str:
        """Read up to and with a text; what came is returned."""
        deadline = time.monotonic() + PATIENCE_S
        while text.encode() not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, (text, self.seen)
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 65536)
        end = self.seen.index(text.encode()) + len(text)
        found, self.seen = self.seen[:end], self.seen[end:]
        return found.decode()

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._slave) == self.before


@pytest.fixture
def shell(named: str, environment: dict[str, str]) -> Iterator[Terminal]:
    """``ghost exec -it CAVE``, at its prompt."""
    with Terminal([*GHOST, "exec", "-it", named], environment) as terminal:
        terminal.until("$ ")
        yield terminal


def test_a_shell_with_job_control_and_our_size(shell: Terminal) -> None:
    shell.type("tty; stty size; set -o | grep monitor; echo term:$TERM:\n")
    shell.until("/dev/pts/")
    shell.until("30 100")
    assert shell.until("\r\nterm:").split()[-2] == "on"
    shell.until(f"{os.environ.get('TERM', 'xterm-256color')}:")


def test_a_resize_is_followed(named: str, environment: dict[str, str]) -> None:
    code = """
import os, signal
def show(*_): os.write(1, b'%d by %d\\n' % tuple(os.get_terminal_size()))
signal.signal(signal.SIGWINCH, show)
show()
while True: signal.pause()
"""
    with Terminal([*GHOST, "exec", "-it", named, code], environment) as terminal:
        terminal.until("100 by 30")
        terminal.resize(41, 123)
        terminal.until("123 by 41")


def test_keys_go_to_the_program_not_to_us(named: str, environment: dict[str, str]) -> None:
    """Ctrl-C, Ctrl-Z and Ctrl-D: our own terminal would act on each."""
    code = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTSTP):
    signal.signal(number, lambda number, frame: os.write(1, b'signal %d\\n' % number))
os.write(1, b'ready\\n')
sys.stdin.read()
os.write(1, b'end of input\\n')
"""
    with Terminal([*GHOST, "exec", "-it", named, code], environment) as terminal:
        terminal.until("ready")
        for key, said in (("\x03", "signal 2"), ("\x1a", "signal 20"), ("\x04", "end of input")):
            terminal.type(key)
            terminal.until(said)
        assert terminal.process.wait(PATIENCE_S) == 0


def test_the_exit_code_and_the_terminal_come_back(shell: Terminal) -> None:
    assert not shell.is_as_before()
    shell.type("exit 23\n")
    assert shell.process.wait(PATIENCE_S) == 23
    assert shell.is_as_before()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_terminal_back(shell: Terminal, number: signal.Signals) -> None:
    shell.process.send_signal(number)
    assert shell.process.wait(PATIENCE_S) == 128 + number
    assert shell.is_as_before()


def test_code_in_a_terminal(named: str, environment: dict[str, str]) -> None:
    code = "import sys; print('tty', sys.stdin.isatty(), sys.stdout.isatty())"
    with Terminal([*GHOST, "exec", "-it", named, code], environment) as terminal:
        terminal.until("tty True True")
        assert terminal.process.wait(PATIENCE_S) == 0


def test_without_t_a_terminal_is_not_our_programs_input(
    named: str, environment: dict[str, str]
) -> None:
    """It would wait for a line that nobody knows it wants."""
    with Terminal([*GHOST, "exec", named, "--", "cat"], environment) as terminal:
        assert terminal.process.wait(PATIENCE_S) == 0
    with Terminal([*GHOST, "exec", "-i", named, "--", "cat"], environment) as terminal:
        terminal.type("typed\n")
        terminal.until("typed\r\ntyped")
        terminal.type("\x04")
        assert terminal.process.wait(PATIENCE_S) == 0


def test_ctrl_c_outside_a_terminal_session(named: str, environment: dict[str, str]) -> None:
    argv = [*GHOST, "exec", named, "--", "sh", "-c", "echo ready; exec sleep 60"]
    with Terminal(argv, environment) as terminal:
        terminal.until("ready")
        terminal.type("\x03")
        assert terminal.process.wait(PATIENCE_S) == 130
        assert "Traceback" not in terminal.until("^C")


def test_what_takes_long_shows_that_it_goes_on(named: str, environment: dict[str, str]) -> None:
    argv = [*GHOST, "call", "shell_exec", "command=sleep 4; echo done", "--cave", named]
    with Terminal(argv, environment) as terminal:
        assert "done" not in terminal.until("| shell_exec")
        terminal.until("\x1b[K")
        terminal.until("done")
        assert terminal.process.wait(PATIENCE_S) == 0
