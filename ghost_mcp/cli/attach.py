# The one terminal loop of `ghost exec`, for every backend: one program, its input, its output, its end.
"""Drives one ``exec`` stream of a warden over a connected socket, without an event loop's price.

A backend whose caves are not reached by a socket lends one: see ``bridge``. Only C modules and the wire
format are imported here, since this file is on the path of ``ghost exec``.
"""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from ghost_mcp.errors import CaveGone, LimitExceeded, ProtocolFailure, TimedOut, from_wire
from ghost_mcp.warden import wire

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from ghost_mcp.secrets.masker import Feed

__all__ = ["HELLO_S", "Attachment", "Interrupted", "OutputClosed"]

HELLO_S = 20.0
# A pipe that poll() calls writable takes this much without blocking.
PIECE = select.PIPE_BUF
# No more input is read while this much waits for the warden.
HIGH_WATER = 1 << 18
# Nor is the warden answered any more that has let so much pile up.
MOST_WAITING = 1 << 20
MAX_CAPTURE = 64 << 20
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR
_WRITABLE = select.POLLOUT | select.POLLHUP | select.POLLERR


class Interrupted(Exception):
    """A signal ended the wait; ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class OutputClosed(Exception):
    """Nobody reads the output any more."""


class Attachment:
    """One program in a cave, joined to descriptors of this process.

    ``sinks`` maps channel 1 and 2 to a descriptor, or to a bytearray that collects. ``source`` is the
    descriptor of its input, None for none. ``terminal`` is the descriptor of the terminal to put into raw
    mode and to follow in size, None without one.
    """

    def __init__(
        self,
        sock: _socket.socket,
        *,
        sinks: dict[int, int | bytearray],
        source: int | None,
        terminal: int | None = None,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._sinks = sinks
        self._source = source
        self._terminal = terminal
        self._wire = wire.Connection(hub=True)
        self._stream = 0
        self._out = bytearray()
        self._pending: deque[tuple[int, memoryview]] = deque()
        self._answer: dict[str, Any] | None = None
        self._body = b""
        self._secrets = False
        self._feeds: dict[int, Feed] = {}  # by channel, when the cave has secrets
        self._interrupts = 0
        self._poll = select.poll()
        self._watched: dict[int, int] = {}

    def greet(self, patience_s: float, *, silent: Callable[[], None]) -> dict[str, Any]:
        """Wait for the warden's hello, and return what it says. ``silent`` is called once when it takes longer than ``patience_s``.

        Nothing has been asked of the warden before this returns, so a cave that is frozen starts nothing
        later. Raises CaveGone, ProtocolFailure, TimedOut, and what ``silent`` raises.
        """
        deadline = monotonic() + HELLO_S
        self._watch({self._sock.fileno(): _READABLE})
        patience: float | None = patience_s
        while True:
            left = deadline - monotonic() if patience is None else patience
            if not self._poll.poll(max(0, int(left * 1000))):
                if patience is None:
                    raise TimedOut("the cave's warden does not answer")
                patience = None
                silent()
            else:
                for frame in self._receive():
                    if frame.kind == wire.HELLO:
                        self._secrets = bool(frame.head.get("secrets"))
                        return frame.head

    def run(self, head: dict[str, Any]) -> dict[str, Any]:
        """Run the program to its end; returns ``{exit_code, timed_out, duration_s}``.

        Raises the GhostError the warden answered with, CaveGone, LimitExceeded, Interrupted, OutputClosed.
        The first interrupt goes to the program, the second ends it.
        """
        self._out += self._wire.send_hello({})
        if self._secrets:
            self._learn()
        try:
            self._stream, opening = self._wire.open({"op": "exec", **head})
        except wire.LocalProtocolError as exc:
            raise LimitExceeded(
                "the command is too long for one call", hint="Write it to a file and run that."
            ) from exc
        self._out += opening
        with _Signals(terminal=self._terminal) as signals:
            while self._answer is None or self._pending:
                self._watch(self._interest(signals.fd))
                for fd, _ in self._poll.poll():
                    if fd == signals.fd:
                        self._signalled(signals.take())
                    else:
                        self._ready(fd)
        if self._answer.get("ok") is not True:
            raise from_wire(self._answer)
        kinds = {"exit_code": (int,), "timed_out": (bool,), "duration_s": (int, float)}
        if any(type(self._answer.get(key)) not in kind for key, kind in kinds.items()):
            raise ProtocolFailure("the cave's warden did not say how the program ended")
        return self._answer

    def ask(self, op: str) -> dict[str, Any]:
        """Ask what is no program; returns the answer. Raises the GhostError it may be, CaveGone, TimedOut."""
        self._out += self._wire.send_hello({})
        answer, _ = self._asked(op)
        if answer.get("ok") is not True:
            raise from_wire(answer)
        return answer

    def _learn(self) -> None:
        """Ask for the cave's secrets: its programs' output is masked here, as it is everywhere."""
        from ghost_mcp.secrets.masker import Masker, values_of

        masker = Masker(values_of(*self._asked("secrets")))
        self._feeds = {channel: masker.feed() for channel in self._sinks}

    def _asked(self, op: str) -> tuple[dict[str, Any], bytes]:
        self._stream, opening = self._wire.open({"op": op})
        self._out += opening
        deadline = monotonic() + HELLO_S
        while self._answer is None:
            self._watch({self._sock.fileno(): _READABLE | (_WRITABLE if self._out else 0)})
            if not self._poll.poll(max(0, int((deadline - monotonic()) * 1000))):
                raise TimedOut("the cave's warden does not answer")
            self._exchange()
        answer, self._answer = self._answer, None
        return answer, self._body

    # --- what to wait for ------------------------------------------------------------------------

    def _interest(self, signals: int) -> dict[int, int]:
        wanted = {signals: _READABLE}
        if self._answer is None:
            wanted[self._sock.fileno()] = _READABLE | (_WRITABLE if self._out else 0)
            if self._source is not None and self._room():
                wanted[self._source] = wanted.get(self._source, 0) | _READABLE
        if self._pending:
            fd = self._pending[0][0]
            wanted[fd] = wanted.get(fd, 0) | _WRITABLE
        return wanted

    def _watch(self, wanted: dict[int, int]) -> None:
        for fd in [fd for fd in self._watched if fd not in wanted]:
            self._poll.unregister(fd)
            del self._watched[fd]
        for fd, events in wanted.items():
            if self._watched.get(fd) != events:
                self._poll.register(fd, events)
                self._watched[fd] = events

    def _room(self) -> int:
        if len(self._out) >= HIGH_WATER:
            return 0
        return min(self._wire.credit(self._stream), wire.MAX_DATA)

    def _ready(self, fd: int) -> None:
        if self._answer is None and fd == self._sock.fileno():
            self._exchange()
        elif self._pending and fd == self._pending[0][0]:
            self._write()
        elif fd == self._source and self._room():
            self._read_input(fd)

    # --- the warden ------------------------------------------------------------------------------

    def _exchange(self) -> None:
        try:
            if self._out:
                del self._out[: self._sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError as exc:
            raise CaveGone("the cave ended", hint="See: ghost list") from exc
        for frame in self._receive():
            if frame.kind == wire.PING:
                if len(self._out) > MOST_WAITING:
                    raise ProtocolFailure("the cave's warden asks, and reads no answer")
                self._out += self._wire.send_pong(frame.body)
            elif frame.stream == self._stream:
                self._take(frame)

    def _receive(self) -> list[wire.Frame]:
        try:
            data = self._sock.recv(1 << 18)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            raise CaveGone("the cave ended", hint="See: ghost list")
        try:
            return self._wire.receive(data)
        except wire.RemoteProtocolError as exc:
            raise ProtocolFailure(f"the cave's warden broke the protocol: {exc}") from exc

    def _take(self, frame: wire.Frame) -> None:
        if frame.kind == wire.CLOSE:
            self._answer, self._body = frame.head, frame.body
            for channel, feed in self._feeds.items():
                self._put(channel, feed.flush())
        elif frame.kind == wire.RESET:
            raise CaveGone("the warden gave the program up")
        elif frame.kind == wire.DATA:
            masked = self._feeds.get(frame.channel)
            self._put(frame.channel, masked.feed(frame.body) if masked else frame.body)
            if not isinstance(self._sinks.get(frame.channel), int):  # else as it is written
                self._out += self._wire.consumed(self._stream, len(frame.body))

    def _put(self, channel: int, data: bytes) -> None:
        sink = self._sinks.get(channel)
        if isinstance(sink, int):
            if data:
                self._pending.append((sink, memoryview(data)))
        elif sink is not None:
            self._collect(sink, data)

    @staticmethod
    def _collect(sink: bytearray, data: bytes) -> None:
        if len(sink) + len(data) > MAX_CAPTURE:
            raise LimitExceeded(
                f"the program wrote more than {MAX_CAPTURE >> 20} MiB",
                hint="Leave --json out, or send its output to a file in the cave.",
                code="too_large",
            )
        sink += data

    # --- this side -------------------------------------------------------------------------------

    def _write(self) -> None:
        fd, data = self._pending[0]
        try:
            sent = os.write(fd, data[:PIECE])
        except BlockingIOError:
            return
        except BrokenPipeError:
            raise OutputClosed from None
        if sent < len(data):
            self._pending[0] = (fd, data[sent:])
        else:
            self._pending.popleft()
        self._out += self._wire.consumed(self._stream, sent)

    def _read_input(self, source: int) -> None:
        try:
            data = os.read(source, self._room())
        except BlockingIOError:
            return
        except OSError:  # a terminal that hung up
            data = b""
        if data:
            self._out += self._wire.send_data(self._stream, data)
        else:
            self._out += self._wire.send_eof(self._stream)
            self._source = None

    def _signalled(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH and self._terminal is not None:
                columns, rows = os.get_terminal_size(self._terminal)
                self._tell({"resize": [rows, columns]})
            elif number == signal.SIGINT and self._interrupts == 0:
                self._interrupts += 1
                self._tell({"signal": int(signal.SIGINT)})
            else:
                raise Interrupted(number)

    def _tell(self, head: dict[str, Any]) -> None:
        if self._wire.is_open(self._stream):
            self._out += self._wire.send_note(self._stream, head)


class _Signals:
    """Signals as bytes on a descriptor, so that no moment between two waits loses one; and the raw mode."""

    def __init__(self, *, terminal: int | None) -> None:
        self._terminal = terminal
        self._numbers = [signal.SIGINT]
        if terminal is not None:
            self._numbers += [signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP]
        self._before: list[Any] = []
        self._mode: list[Any] = []

    def __enter__(self) -> Self:
        self.fd, self._end = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._end, False)
        self._wakeup = signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)
        self._before = [signal.signal(n, lambda number, frame: None) for n in self._numbers]
        if self._terminal is not None:
            import termios
            import tty

            self._mode = termios.tcgetattr(self._terminal)
            tty.setraw(self._terminal)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._terminal is not None:
            import termios

            termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._mode)
        for number, handler in zip(self._numbers, self._before, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self.fd)
        os.close(self._end)

    def take(self) -> bytes:
        return os.read(self.fd, 64)
