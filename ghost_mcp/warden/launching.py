"""Starting a program with its input and output wired to where they belong: a stream, a file, a terminal."""

from __future__ import annotations

import os

from . import processes
from .commands import Command
from .heads import rows_and_columns
from .peers import WardenError
from .program import HOME
from .streams import Feeder, ToStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .peers import Stream
    from .program import Warden

STDOUT, STDERR = 1, 2


def environment(warden: Warden, extra: dict[str, str], mark: str) -> dict[str, str]:
    """What a program of this cave sees."""
    return {**os.environ, **warden.env, **extra, processes.MARK: mark}


def folder(wanted: Any) -> str:
    """A working directory that exists. Raises file_not_found or not_a_directory."""
    path: str = os.path.join(HOME, str(wanted)) if wanted else HOME
    if not os.path.isdir(path):
        if not path.startswith(HOME):
            raise WardenError("file_not_found", f"no such folder: {path[:500]}")
        if path.rstrip("/") == HOME:  # an image without one
            return "/"
        raise WardenError(
            "file_not_found", f"no such folder: {path[:500]}", "Make it first, or leave cwd out."
        )
    return path


def launch(warden: Warden, stream: Stream | None, head: dict[str, Any]) -> Command:
    """Run the ``argv`` or ``line`` of a head, see execution.start. Without a stream its output is kept.

    Raises invalid_argument, program_not_found, permission_refused, OSError; then there is no command.
    """
    env = {str(k): str(v) for k, v in (head.get("env") or {}).items()}
    cwd = folder(head.get("cwd"))
    seen = environment(warden, env, "")
    program, argv, text = _asked(head, seen, cwd)
    if head.get("pty"):
        rows_and_columns(head["pty"])
    command = Command(warden, text)
    seen[processes.MARK] = command.id
    warden.log(f"{command.id} start {command.text[:200]}")
    opened = None
    try:
        opened = _Wiring(command, stream, head)
        pid = processes.spawn(program, argv, seen, cwd, opened.child, terminal=opened.terminal)
    except (OSError, WardenError):
        if opened is not None:
            opened.abandon()
        command.discard()
        raise
    command.rooted(pid, command.id)
    warden.on_exit(pid, lambda status: command.exited(processes.exit_code(status)))
    opened.connect()
    return command


def _asked(head: dict[str, Any], env: dict[str, str], cwd: str) -> tuple[str, list[str], str]:
    """The program's file, its arguments, and what the command is called. Raises as launch() does."""
    line, argv = head.get("line"), [str(word) for word in head.get("argv") or ()]
    if line is not None:
        shell = processes.find_shell(env)
        return shell, [shell, "-c", str(line)], str(line)
    if not argv:
        raise WardenError("invalid_argument", "nothing to run")
    return processes.find_program(argv[0], env, cwd), argv, " ".join(argv)


class _Wiring:
    """The descriptors of one command: the child's ends, and where ours lead."""

    def __init__(self, command: Command, stream: Stream | None, head: dict[str, Any]) -> None:
        self.child: dict[int, int] = {}
        self.terminal = ""
        self._command = command
        self._stream = None if head.get("keep") else stream  # that carries what it writes and reads
        self._ours: list[tuple[int, int]] = []  # (channel, our end)
        self._input = self._held = -1
        try:
            self._open_terminal(head["pty"]) if head.get("pty") else self._pipes(head)
        except OSError:  # no descriptors left
            self.abandon()
            raise

    def _open_terminal(self, size: list[int]) -> None:
        master, slave = os.openpty()
        resize(master, size)
        self.terminal = os.ttyname(slave)
        # Until the child has opened it: without a holder the terminal would hang up.
        self._held = slave
        self._ours = [(STDOUT, master)]
        self._input = os.dup(master)
        self._command.terminal = os.dup(master)

    def _pipes(self, head: dict[str, Any]) -> None:
        # The program of DevTools reads commands on descriptor 3, and answers on 4.
        devtools = bool(head.get("pipes"))
        self.child[0] = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        if devtools or head.get("stdin", "none") != "none":
            target = 3 if devtools else 0
            if target in self.child:
                os.close(self.child[target])
            self.child[target], self._input = os.pipe()
        for channel in (STDOUT, STDERR, 4) if devtools else (STDOUT, STDERR):
            ours, self.child[channel] = os.pipe()
            self._ours.append((channel, ours))

    def connect(self) -> None:
        for fd in {*self.child.values(), self._held} - {-1}:
            os.close(fd)
        command, stream = self._command, self._stream
        for channel, fd in self._ours:
            command.take(fd, command.keep(channel) if not stream else ToStream(stream, channel))
        if self._input >= 0:
            taken = stream.consumed if stream else lambda count: None
            command.feeder = Feeder(command.warden, self._input, taken)

    def abandon(self) -> None:
        for fd in {
            *self.child.values(),
            *(fd for _, fd in self._ours),
            self._input,
            self._held,
            self._command.terminal,
        }:
            if fd >= 0:
                os.close(fd)


def resize(master: int, size: Any) -> None:
    """Tell a terminal its rows and columns. Raises invalid_argument."""
    import fcntl
    import struct

    packed = struct.pack("HHHH", *rows_and_columns(size), 0, 0)
    fcntl.ioctl(master, 0x5414, packed)  # TIOCSWINSZ
