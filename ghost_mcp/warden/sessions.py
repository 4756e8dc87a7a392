"""Sessions: a shell that keeps its directory, variables, functions and jobs from command to command.

The shell runs a small loop: it reads a command's number from descriptor 8, sources the file of that number
with input and outputs redirected, and says the exit status and its directory on descriptor 9. Standard
output and error stay apart, and a command that ends the shell (``exit 0``) ends only this shell: the next
command gets a fresh one in the directory this one started in.
"""

from __future__ import annotations

import os

from . import processes
from .commands import MAX_PENDING_INPUT, Command
from .heads import signal_number
from .launching import STDERR, STDOUT, environment, folder
from .loop import READ
from .peers import WardenError
from .program import RUN
from .streams import Feeder, write_new

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .peers import Stream
    from .program import Warden

MAX_SESSIONS = 32
GRACE_S = 1.0

# POSIX, so that dash and busybox run it too. Descriptors 8 and 9 are closed for the command itself. Its own
# are the shell's meanwhile, not only those of ".", so that an EXIT trap still writes where it should.
LOOP = """
while IFS= command read -r ghost_n <&8; do
  exec <"$ghost_n.in" >"$ghost_n.out" 2>"$ghost_n.err"
  [ -p "$ghost_n.in" ] && command printf 'begun\\0' >&9
  . "$ghost_n.sh" 8<&- 9>&-
  command printf '%s %s\\0' "$?" "$PWD" >&9
  exec </dev/null >/dev/null 2>&1
done
"""
MAX_SAID = 4200  # an exit status and a path


class Session:
    def __init__(self, warden: Warden, name: str, cwd: str, env: dict[str, str]) -> None:
        self.warden = warden
        self.name = name
        self.cwd = cwd
        self.env = env
        self.pid = 0
        self.command: Command | None = None
        self.count = 0
        self.folder = f"{RUN}/session/{name}"
        self._to_shell = self._from_shell = -1
        self._said = b""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)

    @property
    def live(self) -> bool:
        return self.pid != 0

    def begin(self) -> None:
        """Start the shell in the session's directory."""
        if not os.path.isdir(self.cwd):
            self.cwd = folder(None)
        env = environment(self.warden, self.env, f"session-{self.name}")
        shell = processes.find_shell(env)
        argv = (
            [shell, "--noprofile", "--norc", "-c", LOOP]
            if shell.endswith("bash")
            else [shell, "-c", LOOP]
        )
        read_commands, self._to_shell = os.pipe()
        self._from_shell, write_results = os.pipe()
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        fds = {0: null, 1: null, 2: null, 8: read_commands, 9: write_results}
        try:
            self.pid = processes.spawn(shell, argv, env, self.cwd, fds)
        finally:
            for fd in (null, read_commands, write_results):
                os.close(fd)
        os.set_blocking(self._from_shell, False)
        self._said = b""
        self.warden.watch(self._from_shell, READ, self._heard)
        self.warden.on_exit(self.pid, self._ended)

    def run(self, command: Command, code: bytes, stdin: bytes | None, *, open_input: bool) -> None:
        """Hand one command to the shell."""
        self.count += 1
        base = f"{self.folder}/{self.count}"
        write_new(f"{base}.sh", code + b"\n")
        for suffix, channel in ((".out", STDOUT), (".err", STDERR)):
            os.mkfifo(base + suffix, 0o600)
            command.take(
                os.open(base + suffix, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC),
                command.keep(channel),
            )
        if open_input:
            os.mkfifo(f"{base}.in", 0o600)
            # Opened for both ways, so that neither side waits for the other to open.
            fd = os.open(f"{base}.in", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            command.feeder = Feeder(self.warden, fd, lambda n: None)
            command.feeder.hold()  # closed before the shell has opened it, all of it would be lost
            command.feeder.put(stdin or b"")
        elif stdin is not None:
            write_new(f"{base}.in", stdin)
        else:
            os.symlink("/dev/null", f"{base}.in")
        self.command = command
        command.rooted(self.pid, f"session-{self.name}", include_root=False)
        command.end_tree = self._interrupt
        os.write(self._to_shell, base.encode() + b"\n")

    def _interrupt(self) -> None:
        """End what the command started; a shell that then does not come back is replaced."""
        command = self.command
        if command is not None and command.tree is not None:
            command.tree.kill()
        self.warden.after(GRACE_S, lambda: self._replace(command))

    def _replace(self, command: Command | None) -> None:
        if command is not None and self.command is command and self.live:
            command.note = (
                "the shell did not come back and was replaced: its variables and jobs are gone"
            )
            self._end()

    def _heard(self, events: int) -> None:
        try:
            data = os.read(self._from_shell, 1 << 16)
        except (BlockingIOError, OSError):
            return
        if not data:
            self.warden.unwatch(self._from_shell)
        *messages, rest = (self._said + data).split(b"\0")
        self._said = rest[:MAX_SAID]
        for message in messages:
            self._told(message[:MAX_SAID])

    def _told(self, message: bytes) -> None:
        """One message of the shell: a command has begun, and reads its input; or it has ended, and how."""
        if message == b"begun":
            if self.command is not None and self.command.feeder is not None:
                self.command.feeder.release()
            return
        status, _, cwd = message.decode("utf-8", "surrogateescape").partition(" ")
        if cwd and len(message) < MAX_SAID:  # PWD is a variable like any other: it may be anything
            self.cwd = cwd
        self._finish(int(status) if status.isdigit() else 1)

    def _ended(self, status: int) -> None:
        self._heard(0)
        self.warden.unwatch(self._from_shell)
        os.close(self._from_shell)
        os.close(self._to_shell)
        self.pid = 0
        if self.command is not None:
            if not self.command.note:
                self.command.note = "the command ended the shell: the next one starts fresh in the directory this one started in"
            self._finish(processes.exit_code(status))

    def _finish(self, code: int) -> None:
        command, self.command = self.command, None
        if command is None:
            return
        command.cwd = self.cwd
        for suffix in (".sh", ".in", ".out", ".err"):
            try:
                os.unlink(f"{self.folder}/{self.count}{suffix}")
            except OSError:
                continue
        command.exited(code)

    def _tree(self, *, include_root: bool = True) -> processes.Tree:
        """Everything that came from the shell."""
        mark = f"session-{self.name}"
        return processes.Tree(self.pid, mark, 0, lambda: False, include_root=include_root)

    def _end(self) -> None:
        """End the shell and everything that came from it."""
        self._tree().kill()

    def signal(self, number: int) -> int:
        """Signal all that came from the shell, jobs included, but not the shell; returns how many that is."""
        return self._tree(include_root=False).signal(number) if self.live else 0

    def close(self) -> None:
        if self.live:
            self._end()


class Sessions:
    """Those of this cave."""

    def __init__(self) -> None:
        self.named: dict[str, Session] = {}
        self._count = 0

    def get(self, name: Any) -> Session:
        """Raises session_not_found, with the names there are."""
        session = self.named.get(str(name))
        if session is None:
            known = ", ".join(sorted(self.named)) or "none"
            raise WardenError(
                "session_not_found",
                f"no such session: {str(name)[:64]}",
                f"Sessions of this cave: {known}.",
            )
        return session

    def create(self, warden: Warden, head: dict[str, Any]) -> Session:
        """One whose shell runs. Raises limit_exceeded, invalid_argument, conflict."""
        if len(self.named) >= MAX_SESSIONS:
            raise WardenError(
                "limit_exceeded", f"{MAX_SESSIONS} sessions are open", "Kill one first."
            )
        name = str(head.get("name") or "") or self._next()
        plain = name.replace("-", "").replace("_", "")
        if not plain.isalnum() or len(name) > 40 or not name.isascii():
            raise WardenError(
                "invalid_argument",
                f"not a session name: {name[:64]}",
                "Use letters, digits, - and _.",
            )
        if name in self.named:
            raise WardenError("conflict", f"session {name} is already there")
        env = {str(k): str(v) for k, v in (head.get("env") or {}).items()}
        session = Session(warden, name, folder(head.get("cwd")), env)
        session.begin()
        self.named[name] = session
        return session

    def _next(self) -> str:
        self._count += 1
        return f"s{self._count}"

    def close(self, name: Any) -> Session:
        """It is forgotten, with all that came from its shell ended. Raises session_not_found."""
        session = self.get(name)
        session.close()
        del self.named[session.name]
        return session


def of(warden: Warden) -> Sessions:
    """The sessions of a cave."""
    if warden.sessions is None:
        warden.sessions = Sessions()
    return warden.sessions


def run(stream: Stream, head: dict[str, Any], body: bytes) -> Command:
    """Run a line in a session; the session is there, and free."""
    warden = stream.peer.warden
    session = of(warden).get(head.get("session"))
    code = _code(head)
    if len(body) > MAX_PENDING_INPUT:
        raise WardenError("limit_exceeded", "too much input for a session: write it to a file")
    if session.command is not None:
        raise WardenError(
            "session_busy",
            f"session {session.name} is still running command {session.command.id}",
            "Wait for it by its command_id, kill it, or use another session.",
        )
    if not session.live:
        session.begin()
    command = Command(warden, str(head["line"]), session=session.name)
    warden.log(f"{command.id} start in {session.name} {command.text[:200]}")
    stdin = str(head.get("stdin", "none"))
    given = body if stdin == "data" or body else None
    try:
        session.run(command, code, given, open_input=stdin == "open")
    except OSError:
        command.discard()
        raise
    return command


def _code(head: dict[str, Any]) -> bytes:
    """The line that a head gives a session, as the shell reads it. Raises invalid_argument."""
    line = head.get("line")
    if line is None:
        raise WardenError("invalid_argument", "a session takes a command line, not a list")
    if head.get("cwd") or head.get("env"):
        raise WardenError(
            "invalid_argument", "cwd and env belong to the session", "Use cd and export in it."
        )
    if head.get("pty"):
        raise WardenError(
            "invalid_argument", "a session has no terminal", "Leave session out to get one."
        )
    if not head.get("keep"):
        raise WardenError("invalid_argument", "a session's command keeps its output")
    try:
        code = str(line).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise WardenError("invalid_argument", "half a character in the command") from None
    if b"\0" in code:
        raise WardenError("invalid_argument", "a NUL byte in the command")
    return code


def control(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{action: create|close|signal|list, name, cwd, env, signal}``."""
    warden, action, name = stream.peer.warden, head.get("action"), head.get("name")
    if action == "create":
        stream.close(_describe(of(warden).create(warden, head)))
    elif action == "close":
        stream.close(_describe(of(warden).close(name)))
    elif action == "signal":
        stream.close({"reached": of(warden).get(name).signal(signal_number(head))})
    elif action == "list":
        stream.close({"sessions": [_describe(one) for one in of(warden).named.values()]})
    else:
        raise WardenError("invalid_argument", f"cannot {str(action)[:64]} a session")


def _describe(session: Session) -> dict[str, Any]:
    busy = session.command.id if session.command is not None else None
    return {"name": session.name, "cwd": session.cwd, "pid": session.pid, "busy": busy}
