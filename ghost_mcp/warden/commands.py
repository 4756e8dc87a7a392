"""Commands: running programs with their output, which outlive the call and the hub that started them."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from time import monotonic

from . import processes, wire
from .peers import WardenError
from .program import HOME, RUN
from .streams import Feeder, Nowhere, Source, Spool, ToStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .loop import Timer
    from .peers import Stream
    from .program import Warden

MAX_FINISHED = 64
MAX_KEPT = 128 << 20
MAX_PENDING_INPUT = 1 << 20
MAX_EXCERPT = 1 << 16
MAX_LISTING = 60_000
MAX_SECONDS = 1e9
STDOUT, STDERR = 1, 2


class Command:
    """One command, running or finished. Its output goes to spools (kept) or to the stream that started it."""

    def __init__(self, warden: Warden, text: str, *, session: str = "") -> None:
        registry = _registry(warden)
        registry.count += 1
        self.id = f"c{registry.count}"
        self.warden = warden
        self.text = text
        self.session = session
        self.started = monotonic()
        self.ended: float | None = None
        self.exit_code: int | None = None
        self.timed_out = False
        self.note = ""
        self.cwd = ""
        self.pid = 0
        self.spools: dict[int, Spool] = {}
        self.sources: list[Source] = []
        self.feeder: Feeder | None = None
        self.terminal = -1
        self.waiters: list[Callable[[], None]] = []
        self.since = processes.ticks()
        self.tree: processes.Tree | None = None
        self.end_tree: Callable[[], None] = self._kill_tree
        self._unsettled = 0
        self._code: int | None = None
        self._timer: Timer | None = None
        registry.commands[self.id] = self
        registry.trim()

    @property
    def running(self) -> bool:
        return self.ended is None

    def keep(self, channel: int) -> Spool:
        """A spool for one channel."""
        spool = self.spools[channel] = Spool(f"{_registry(self.warden).folder}/{self.id}.{channel}")
        return spool

    def take(self, fd: int, sink: Any) -> None:
        """Read ``fd`` into ``sink`` until it ends."""
        self._unsettled += 1
        self.sources.append(Source(self.warden, fd, sink, self._settled))

    def limit(self, timeout_s: float | None) -> None:
        """End the whole tree after so long."""
        if timeout_s is not None:
            self._timer = self.warden.after(timeout_s, self._overdue)

    def rooted(self, pid: int, mark: str, *, include_root: bool = True) -> None:
        """Say which processes are this command's."""
        self.pid = pid
        self.tree = processes.Tree(pid, mark, self.since, self._alone, include_root=include_root)

    def _alone(self) -> bool:
        others = _registry(self.warden).commands.values()
        return not any(other.running for other in others if other is not self)

    def _kill_tree(self) -> None:
        if self.tree is not None:
            self.tree.kill()

    def signal(self, number: int) -> int:
        """Send a signal to the whole tree; returns how many processes it reached."""
        return self.tree.signal(number) if self.tree is not None else 0

    def _overdue(self) -> None:
        self.timed_out = True
        self.kill()

    def kill(self) -> None:
        """End the tree now; the command finishes when its process is reaped."""
        if self.running:
            self.end_tree()

    def exited(self, code: int) -> None:
        """The process has ended: finished as soon as what it wrote is read."""
        self._code = code
        if self.tree is not None:
            self.tree.finished()
        if self._timer is not None:
            self._timer.cancel()
        if self.feeder is not None:
            self.feeder.close()
        for source in list(self.sources):
            source.settle()
        self._check()

    def _settled(self) -> None:
        self._unsettled -= 1
        self._check()

    def _check(self) -> None:
        if self._code is None or self._unsettled > 0 or not self.running:
            return
        self.exit_code, self.ended = self._code, monotonic()
        self.warden.log(f"{self.id} exit {self.exit_code} after {self.ended - self.started:.3f}s")
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter()

    def resume(self) -> None:
        for source in list(self.sources):
            source.resume()

    def status(self) -> dict[str, Any]:
        now = monotonic()
        head: dict[str, Any] = {
            "id": self.id,
            "running": self.running,
            "exit_code": self.exit_code,
            "timed_out": self.timed_out,
            "duration_s": round((self.ended or now) - self.started, 6),
        }
        for key in ("session", "note", "cwd"):
            if getattr(self, key):
                head[key] = getattr(self, key)
        return head

    def report(self, since: dict[str, int], excerpt: int) -> tuple[dict[str, Any], bytes]:
        """Status, and for each kept channel its head and tail from ``since`` on, at most ``excerpt`` bytes."""
        head = self.status()
        pieces: list[bytes] = []
        head["output"] = {}
        for channel, spool in self.spools.items():
            start = min(max(0, since.get(str(channel), 0)), spool.size)
            if spool.size - start <= excerpt:
                first, second = spool.read(start, excerpt)[1], b""
            else:
                first = spool.read(start, excerpt // 2)[1]
                second = spool.read(spool.size - excerpt // 2, excerpt // 2)[1]
            pieces += [first, second]
            head["output"][str(channel)] = {
                "size": spool.size,
                "from": start,
                "head": len(first),
                "tail": len(second),
                "gap": list(spool.gap) if spool.gap[0] < spool.gap[1] else None,
                "lost": spool.lost,
            }
        return head, b"".join(pieces)

    def discard(self) -> None:
        """It could not start: as if it had never been."""
        for source in self.sources:
            source.close()
        self.forget()
        del _registry(self.warden).commands[self.id]

    def forget(self) -> None:
        """Keep nothing of it. What it left running may go on writing: a closed pipe would end that."""
        for source in self.sources:
            source.sink = Nowhere()
            source.resume()
        for spool in self.spools.values():
            spool.remove()


class _Registry:
    """The commands of this cave, newest last."""

    def __init__(self) -> None:
        self.commands: dict[str, Command] = {}
        self.count = 0
        self.folder = f"{RUN}/out"
        os.makedirs(self.folder, mode=0o700, exist_ok=True)

    def trim(self) -> None:
        """Forget the oldest finished commands, beyond their number or their bytes on disk."""
        finished = [c for c in self.commands.values() if not c.running]
        kept = sum(s.kept_bytes for c in finished for s in c.spools.values())
        for command in finished:
            if len(finished) <= MAX_FINISHED and kept <= MAX_KEPT:
                return
            finished = finished[1:]
            kept -= sum(s.kept_bytes for s in command.spools.values())
            command.forget()
            del self.commands[command.id]

    def get(self, name: Any) -> Command:
        command = self.commands.get(str(name))
        if command is None:
            near = ", ".join(list(self.commands)[-5:]) or "none yet"
            raise WardenError(
                "command_not_found", f"no such command: {str(name)[:64]}", f"Newest: {near}."
            )
        return command


_registries: dict[int, _Registry] = {}


def _registry(warden: Warden) -> _Registry:
    found = _registries.get(id(warden))
    if found is None:
        found = _registries[id(warden)] = _Registry()
    return found


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


def start(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """Run a program.

    ``{argv | line, cwd, env, timeout_s, pty: [rows, cols], pipes: bool, stdin: none|data|open,
    keep: bool, wait_s, excerpt, session}``. Without ``keep`` output flows as DATA on channel 1 and 2 (a
    terminal: only 1), input as channel 0, and CLOSE carries the exit; a reset ends the tree. With ``keep``
    output is spooled, and CLOSE comes at the exit or after ``wait_s``, with the command still running.
    """
    if head.get("session"):
        from . import sessions

        run = sessions.run
    else:
        run = _started
    wanted, timeout_s = _Wanted(head), seconds(head, "timeout_s")  # before anything has started
    command = run(stream, head, body)
    command.limit(timeout_s)
    if head.get("keep"):
        _await(stream, command, wanted, kill_on_reset=True)


def launch(warden: Warden, head: dict[str, Any]) -> Command:
    """Run a program for the warden itself: its output is kept, and no stream carries it."""
    return _launch(warden, None, {**head, "keep": True})


def _started(stream: Stream, head: dict[str, Any], body: bytes) -> Command:
    command = _launch(stream.peer.warden, stream, head)
    if command.feeder is not None and body:
        command.feeder.put(body)
    if command.feeder is not None and head.get("stdin") == "data":
        command.feeder.end()
    if not head.get("keep"):
        _attach(stream, command)
    return command


def _launch(warden: Warden, stream: Stream | None, head: dict[str, Any]) -> Command:
    env = {str(k): str(v) for k, v in (head.get("env") or {}).items()}
    cwd = folder(head.get("cwd"))
    line, argv = head.get("line"), [str(a) for a in head.get("argv") or ()]
    seen = environment(warden, env, "")
    if line is not None:
        program = processes.find_shell(seen)
        argv = [program, "-c", str(line)]
    elif argv:
        program = processes.find_program(argv[0], seen, cwd)
    else:
        raise WardenError("invalid_argument", "nothing to run")
    if head.get("pty"):
        rows_and_columns(head["pty"])
    command = Command(warden, str(line) if line is not None else " ".join(argv))
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
        self._held = (
            slave  # until the child has opened it: without a holder the terminal would hang up
        )
        self._ours = [(STDOUT, master)]
        self._input = os.dup(master)
        self._command.terminal = os.dup(master)

    def _pipes(self, head: dict[str, Any]) -> None:
        devtools = bool(
            head.get("pipes")
        )  # the program reads commands on descriptor 3, answers on 4
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


def rows_and_columns(size: Any) -> tuple[int, int]:
    """A terminal's size. Raises invalid_argument."""
    if type(size) is not list or [type(n) for n in size] != [int, int]:
        raise WardenError(
            "invalid_argument", f"not a terminal's rows and columns: {str(size)[:40]}"
        )
    rows, columns = (max(1, min(n, 1000)) for n in size)
    return rows, columns


def resize(master: int, size: Any) -> None:
    import fcntl
    import struct

    packed = struct.pack("HHHH", *rows_and_columns(size), 0, 0)
    fcntl.ioctl(master, 0x5414, packed)  # TIOCSWINSZ


def seconds(head: dict[str, Any], key: str) -> float | None:
    """A span of time from a head, or None. Raises invalid_argument."""
    value = head.get(key)
    if value is None:
        return None
    if type(value) not in (int, float):
        raise WardenError(
            "invalid_argument", f"{key} is not a number of seconds: {str(value)[:40]}"
        )
    return max(0.0, min(float(value), MAX_SECONDS))


def _attach(stream: Stream, command: Command) -> None:
    """Let a stream carry a running command: its input, its signals, its end."""

    def on_data(channel: int, data: bytes) -> int:
        if command.feeder is None:
            return len(data)
        command.feeder.put(data)
        return 0

    def on_eof(channel: int) -> None:
        if command.terminal >= 0 and command.feeder is not None:
            command.feeder.put(b"\x04")
        elif command.feeder is not None:
            command.feeder.end()

    def on_note(head: dict[str, Any], body: bytes) -> None:
        if "signal" in head:
            command.signal(signal_number(head))
        if "resize" in head and command.terminal >= 0:
            resize(command.terminal, head["resize"])

    def on_reset() -> None:
        command.kill()
        command.resume()  # what is still to come is read and dropped

    stream.on_data, stream.on_eof, stream.on_note = on_data, on_eof, on_note
    stream.on_credit = command.resume
    stream.on_reset = on_reset
    command.waiters.append(lambda: stream.close(command.status()))


class _Wanted:
    """How long to wait for a command, and how much of its output to answer with. Raises invalid_argument."""

    def __init__(self, head: dict[str, Any]) -> None:
        self.wait_s = seconds(head, "wait_s")
        try:
            self.since = {str(k): int(v) for k, v in (head.get("since") or {}).items()}
            self.excerpt = max(0, min(int(head.get("excerpt", 4096)), MAX_EXCERPT))
        except (ValueError, TypeError, AttributeError):
            raise WardenError("invalid_argument", "since and excerpt are not counts") from None


def _await(stream: Stream, command: Command, wanted: _Wanted, *, kill_on_reset: bool) -> None:
    """Answer when the command has finished or the wait is over."""
    timer: list[Timer] = []

    def answer() -> None:
        for pending in timer:
            pending.cancel()
        if answer in command.waiters:
            command.waiters.remove(answer)
        status, body = command.report(wanted.since, wanted.excerpt)
        stream.close(status, body)

    def on_reset() -> None:
        for pending in timer:
            pending.cancel()
        if answer in command.waiters:
            command.waiters.remove(answer)
        if kill_on_reset:
            command.kill()

    if not command.running:
        answer()
        return
    stream.on_reset = on_reset
    command.waiters.append(answer)
    if wanted.wait_s is not None:
        timer.append(command.warden.after(wanted.wait_s, answer))


def control(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{id, action: wait|input|signal|resize, signal, eof, size, wait_s, since, excerpt}``."""
    command = _registry(stream.peer.warden).get(head.get("id"))
    action = head.get("action")
    if action == "wait":
        _await(stream, command, _Wanted(head), kill_on_reset=False)
        return
    if action == "input":
        _feed(command, body, eof=bool(head.get("eof")))
    elif action == "signal":
        stream.close({"reached": _signal_to(command, head), **command.status()})
        return
    elif action == "resize" and command.terminal >= 0:
        resize(command.terminal, head.get("size"))
    else:
        raise WardenError("invalid_argument", f"cannot {str(action)[:64]} this command")
    stream.close(command.status())


def signal_number(head: dict[str, Any]) -> int:
    """The signal a head names; 0 reaches nobody and only counts. Raises invalid_argument."""
    number = head.get("signal", _signal.SIGTERM)
    if type(number) is not int or not 0 <= number < _signal.NSIG:
        raise WardenError("invalid_argument", f"not a signal: {str(number)[:40]}")
    return number


def _signal_to(command: Command, head: dict[str, Any]) -> int:
    """Signal all that the command started; returns how many processes that is."""
    number = signal_number(head)
    if number != _signal.SIGKILL:
        return command.signal(number)
    reached = command.signal(0)
    if command.running:
        command.kill()
    elif command.tree is not None:
        command.tree.kill()  # what a finished command has left behind
    return reached


def _feed(command: Command, data: bytes, *, eof: bool) -> None:
    if not command.running:
        raise WardenError("conflict", f"command {command.id} has finished")
    if command.feeder is None:
        raise WardenError(
            "conflict", f"command {command.id} takes no input", "Start it with its input open."
        )
    if command.feeder.pending + len(data) > MAX_PENDING_INPUT:
        raise WardenError("limit_exceeded", "the command does not read its input")
    command.feeder.put(data)
    if eof:
        command.feeder.put(b"\x04") if command.terminal >= 0 else command.feeder.end()


def listing(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """The commands this cave remembers, oldest first; ``omitted`` older ones did not fit the message."""
    commands = list(_registry(stream.peer.warden).commands.values())
    told: list[dict[str, Any]] = []
    room = MAX_LISTING
    for command in reversed(commands):
        entry = {**command.status(), "text": command.text[:200]}
        room -= len(wire.dumps(entry)) + 1
        if room < 0:
            break
        told.append(entry)
    stream.close({"commands": told[::-1], "omitted": len(commands) - len(told)})


def kept(warden: Warden, name: Any, channel: Any) -> Spool:
    """The kept output of a command. Raises command_not_found, invalid_argument."""
    command = _registry(warden).get(name)
    spool = command.spools.get(channel)
    if spool is None:
        raise WardenError("invalid_argument", f"command {command.id} keeps no such output")
    return spool


def output(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{id, channel, offset, count}``: a range of a kept output; the body is the bytes."""
    command = _registry(stream.peer.warden).get(head.get("id"))
    spool = kept(stream.peer.warden, command.id, head.get("channel", STDOUT))
    count = max(0, min(int(head.get("count", MAX_EXCERPT)), 3 << 16))
    start, data = spool.read(max(0, int(head.get("offset", 0))), count)
    gap = list(spool.gap) if spool.gap[0] < spool.gap[1] else None
    stream.close(
        {
            "offset": start,
            "size": spool.size,
            "gap": gap,
            "running": command.running,
            "lost": spool.lost,
        },
        data,
    )
