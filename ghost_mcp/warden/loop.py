"""The warden's event loop: descriptors, timers, children and signals, each told by a callback.

Imported at the warden's start: see program.py for what that means.
"""

from __future__ import annotations

import _heapq
import _signal  # type: ignore[import-not-found]  # the C half: signal itself imports enum
import _socket
import os
import select
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    Callback = Callable[[int], None]

READ = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
WRITE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
ACCEPT_PAUSE_S = 0.1


class Timer:
    """A pending call. ``cancel`` makes it do nothing."""

    __slots__ = ("call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Calls back until there is an exit code. It takes over SIGCHLD: children are reaped here alone."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._poll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._timers: list[Timer] = []
        self._children: dict[int, Callable[[int], None]] = {}
        self._wake_r, wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(wake_w, False)
        _signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda number, frame: None)
        self.watch(self._wake_r, READ, self._woken)

    def callback_failed(self, exc: Exception) -> None:
        """A callback has raised. The loop goes on after this, without the descriptor that the callback was for."""
        raise exc

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Call ``callback(events)`` whenever there are some; a descriptor has one callback."""
        if fd in self._callbacks:
            self._poll.modify(fd, events)
        else:
            self._poll.register(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Call once, in so many seconds."""
        timer = Timer(monotonic() + delay_s, call)
        _heapq.heappush(self._timers, timer)
        return timer

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(wait status)`` when the child ``pid`` has ended."""
        self._children[pid] = callback

    def accept(self, sock: _socket.socket, take: Callable[[_socket.socket], None]) -> None:
        """Hand each connection of a listening socket to ``take``. Out of descriptors, pause instead of spinning."""

        def ready(events: int) -> None:
            try:
                fd, _ = sock._accept()  # type: ignore[attr-defined]
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self.unwatch(sock.fileno())
                self.after(ACCEPT_PAUSE_S, again)
                return
            client = _socket.socket(fileno=fd)
            client.setblocking(False)
            take(client)

        def again() -> None:
            if sock.fileno() >= 0:
                self.watch(sock.fileno(), READ, ready)

        sock.setblocking(False)
        again()

    def run(self) -> None:
        """Until there is an exit code."""
        while self.exit_code is None:
            for fd, events in self._poll.poll(self._patience(), 64):
                callback = self._callbacks.get(fd)
                if callback is not None and not self._safely(callback, events):
                    self.unwatch(fd)
            self._run_timers()

    def _safely(self, call: Callable[..., None], *args: int) -> bool:
        """Whether a callback went well: one that fails ends nothing else."""
        try:
            call(*args)
        except Exception as exc:  # noqa: BLE001
            self.callback_failed(exc)
            return False
        return True

    def _patience(self) -> float:
        while self._timers and self._timers[0].call is None:
            _heapq.heappop(self._timers)
        return max(0.0, self._timers[0].when - monotonic()) if self._timers else -1.0

    def _run_timers(self) -> None:
        now = monotonic()
        while self._timers and self._timers[0].when <= now:
            call = _heapq.heappop(self._timers).call
            if call is not None:
                self._safely(call)

    def _woken(self, events: int) -> None:
        os.read(self._wake_r, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            callback = self._children.pop(pid, None)
            if callback is not None:
                self._safely(callback, status)
