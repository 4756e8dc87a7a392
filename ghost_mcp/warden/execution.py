"""Operations on commands: starting one, waiting for it, feeding and signalling it, reading what it wrote."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]

from . import commands, wire
from .commands import MAX_PENDING_INPUT
from .heads import number, seconds, signal_number
from .launching import STDOUT, launch, resize
from .peers import WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .commands import Command
    from .loop import Timer
    from .peers import Stream

MAX_EXCERPT = 1 << 16
MAX_LISTING = 60_000


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


def _started(stream: Stream, head: dict[str, Any], body: bytes) -> Command:
    command = launch(stream.peer.warden, stream, head)
    if command.feeder is not None and body:
        command.feeder.put(body)
    if command.feeder is not None and head.get("stdin") == "data":
        command.feeder.end()
    if not head.get("keep"):
        _attach(stream, command)
    return command


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
    command = commands.of(stream.peer.warden).get(head.get("id"))
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
    known = list(commands.of(stream.peer.warden).commands.values())
    told: list[dict[str, Any]] = []
    room = MAX_LISTING
    for command in reversed(known):
        entry = {**command.status(), "text": command.text[:200]}
        room -= len(wire.dumps(entry)) + 1
        if room < 0:
            break
        told.append(entry)
    stream.close({"commands": told[::-1], "omitted": len(known) - len(told)})


def output(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{id, channel, offset, count}``: a range of a kept output; the body is the bytes."""
    command = commands.of(stream.peer.warden).get(head.get("id"))
    spool = command.kept(head.get("channel", STDOUT))
    count = number(head, "count", MAX_EXCERPT, 0, 3 << 16)
    start, data = spool.read(number(head, "offset", 0, 0, 1 << 62), count)
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
