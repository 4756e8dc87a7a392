"""Moving bytes between file descriptors, streams and files without ever blocking the loop."""

from __future__ import annotations

import os

# The C half: collections itself imports much.
from _collections import deque  # type: ignore[import-not-found]
from itertools import islice

from .loop import READ, WRITE
from .peers import CHUNK

SMALL = 2048
GATHERED = 16  # pieces written at once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Protocol

    from .peers import Stream
    from .program import Warden

    class Sink(Protocol):
        @property
        def room(self) -> int: ...
        def put(self, data: bytes) -> None: ...


def write_new(path: str, data: bytes) -> None:
    """Make a file that only we can read. Raises FileExistsError: what is there is never followed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


class ToStream:
    """A sink that is one channel of a stream: it has room while the stream has credit."""

    __slots__ = ("channel", "stream")

    def __init__(self, stream: Stream, channel: int) -> None:
        self.stream = stream
        self.channel = channel

    @property
    def room(self) -> int:
        return self.stream.room if self.stream.open else CHUNK

    def put(self, data: bytes) -> None:
        if self.stream.open:
            self.stream.data(data, self.channel)


class Nowhere:
    """A sink for what nobody will ask for."""

    room = CHUNK

    def put(self, data: bytes) -> None:
        return


class Source:
    """Reads a descriptor into a sink while the sink has room. ``done`` is called once: at the end of the
    descriptor, or, after ``settle()``, as soon as nothing more is waiting in it."""

    def __init__(self, warden: Warden, fd: int, sink: Sink, done: Callable[[], None]) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.sink = sink
        self._warden = warden
        self._done: Callable[[], None] | None = done
        self._settling = False
        self._paused = False
        warden.watch(fd, READ, self._ready)

    def resume(self) -> None:
        """The sink may have room again."""
        if self._paused and self.fd >= 0:
            self._paused = False
            self._warden.watch(self.fd, READ, self._ready)
            if self._settling:
                self.settle()

    def settle(self) -> None:
        """The writer has ended: take what is left and call ``done``, even if others hold the other end."""
        self._settling = True
        while self._settling and self.fd >= 0 and not self._paused:
            self._ready(0)

    def close(self) -> None:
        if self.fd >= 0:
            self._warden.unwatch(self.fd)
            os.close(self.fd)
            self.fd = -1
        self._finish()

    def _finish(self) -> None:
        self._settling = False
        done, self._done = self._done, None
        if done is not None:
            done()

    def _ready(self, events: int) -> None:
        room = min(self.sink.room, CHUNK)
        if room <= 0:
            self._paused = True
            self._warden.unwatch(self.fd)
            return
        try:
            data = os.read(self.fd, room)
        except BlockingIOError:
            if self._settling:
                self._finish()
            return
        except OSError:  # EIO: the last process of a terminal has gone
            data = b""
        if data:
            self.sink.put(data)
        else:
            self.close()


class Feeder:
    """Writes bytes into a descriptor as it takes them. ``taken(count)`` is told of each piece written,
    ``closed`` of the end: all is written, or nobody reads any more."""

    def __init__(
        self,
        warden: Warden,
        fd: int,
        taken: Callable[[int], None],
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._warden = warden
        self._taken = taken
        self._closed = closed
        self._pieces: deque[bytes | bytearray] = deque()  # of which ``_begun`` bytes are written
        self._begun = 0
        self.pending = 0
        self._ending = False
        self._held = False
        self._watched = False

    def put(self, data: bytes) -> None:
        """Queue ``data``; what a closed reader will never take is counted as taken."""
        if self.fd < 0:
            self._taken(len(data))
            return
        self.pending += len(data)
        last = self._pieces[-1] if self._pieces else None
        if len(data) >= SMALL:
            self._pieces.append(data)
        elif isinstance(last, bytearray) and len(last) < CHUNK:
            last += data  # a million pieces of one byte must not cost a million objects
        else:
            self._pieces.append(bytearray(data))
        self._flush(0)

    def end(self) -> None:
        """Close the descriptor once everything is written."""
        self._ending = True
        if self.fd >= 0:
            self._flush(0)

    def hold(self) -> None:
        """Let an end wait for ``release()``."""
        self._held = True

    def release(self) -> None:
        self._held = False
        if self.fd >= 0:
            self._flush(0)

    def close(self) -> None:
        if self.fd >= 0:
            self._unwatch()
            os.close(self.fd)
            self.fd = -1
            self._pieces.clear()
            left, self.pending = self.pending, 0
            self._taken(left)
            self._closed()

    def _unwatch(self) -> None:
        if self._watched:
            self._warden.unwatch(self.fd)
            self._watched = False

    def _flush(self, events: int) -> None:
        while self._pieces:
            try:
                count = self._write()
            except BlockingIOError:
                if not self._watched:
                    self._watched = True
                    self._warden.watch(self.fd, WRITE, self._flush)
                return
            except OSError:
                self.close()
                return
            self.pending -= count
            self._taken(count)
        self._unwatch()
        if self._ending and not self._held:
            self.close()

    def _write(self) -> int:
        """Write what is taken of the first pieces; how many bytes. Raises OSError."""
        first = memoryview(self._pieces[0])[self._begun :]
        count = os.writev(self.fd, [first, *islice(self._pieces, 1, GATHERED)])
        self._begun += count
        while self._pieces and self._begun >= len(self._pieces[0]):
            self._begun -= len(self._pieces.popleft())
        return count


class Spool:
    """One command's output, kept on disk and bounded: its first ``KEEP`` bytes and its last ``KEEP``.

    The file holds the head at [0, KEEP) and the tail as a ring at [KEEP, 2 * KEEP). ``size`` counts all
    bytes ever put; ``gap`` is the range that is no longer there, empty while everything is.
    """

    KEEP = 8 << 20
    room = CHUNK

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = 0
        self.lost = False  # the disk was full: what is missing was never kept
        self._fd = -1

    @property
    def gap(self) -> tuple[int, int]:
        return (
            (self.KEEP, self.size - self.KEEP)
            if self.size > 2 * self.KEEP
            else (self.KEEP, self.KEEP)
        )

    @property
    def kept_bytes(self) -> int:
        return min(self.size, 2 * self.KEEP)

    def put(self, data: bytes) -> None:
        try:
            if self._fd < 0:
                self._fd = os.open(
                    self.path,
                    os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
                    0o600,
                )
            at = 0
            while at < len(data):
                position, room = self._place(self.size + at)
                count = os.pwrite(self._fd, data[at : at + room], position)
                at += count
        except OSError:
            self.lost = True
        self.size += len(data)

    def _place(self, offset: int) -> tuple[int, int]:
        """Where a logical offset stands in the file, and how many bytes follow there in one piece."""
        if offset < self.KEEP:
            return offset, self.KEEP - offset
        turn = (offset - self.KEEP) % self.KEEP
        return self.KEEP + turn, self.KEEP - turn

    def read(self, offset: int, count: int) -> tuple[int, bytes]:
        """At most ``count`` bytes from ``offset``, and where they really start (after the gap, if in it)."""
        start, end = self.gap
        if start <= offset < end:
            offset = end
        stop = min(self.size, offset + count)
        if offset < start < end:
            stop = min(stop, start)
        pieces = []
        at = offset
        while at < stop and self._fd >= 0:
            position, room = self._place(at)
            piece = os.pread(self._fd, min(room, stop - at), position)
            if not piece:
                break
            pieces.append(piece)
            at += len(piece)
        return offset, b"".join(pieces)

    def reopen(self) -> None:
        """In a worker, which has no descriptor of ours: read what is there by now."""
        self._fd = (
            os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC) if self.size else -1
        )

    def remove(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            try:
                os.unlink(self.path)
            except OSError:
                return
