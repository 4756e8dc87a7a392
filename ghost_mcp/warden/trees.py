# Only this file starts workers: forked children that walk trees, so that the loop never waits for them.
"""Operations on whole trees. Each runs in a worker of its own, which a hostile tree or pattern may stall.

What needs more than the warden has, patterns and archives, lies in modules that only workers import, so that
the warden itself stays small. A worker has a limit of processor time and memory, and dies with its stream.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import resource

from . import files, folders, processes, wire
from .failures import error_head
from .peers import CHUNK, WardenError
from .program import HOME
from .streams import Feeder, Source, ToStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

    from .peers import Stream

    Job = Callable[["Output", int], dict[str, Any]]

CPU_S = 120
MEMORY_BYTES = 512 << 20
_FLUSH_BYTES = 1 << 15
_TOO_MUCH = "it needs more memory than a worker may have"


class Output:
    """What a worker says before its answer, in pieces that the stream takes as it has room."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines = bytearray()

    def write(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def line(self, value: dict[str, Any]) -> None:
        """One JSON line."""
        self._lines += wire.dumps(value) + b"\n"
        if len(self._lines) >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        lines, self._lines = self._lines, bytearray()
        self.write(lines)


class _Answer:
    """The sink for a worker's final head."""

    room = CHUNK

    def __init__(self) -> None:
        self.raw = bytearray()

    def put(self, data: bytes) -> None:
        self.raw += data


class _Worker:
    """The warden's side of a worker: three ends to wait for, its output, its answer and its exit."""

    def __init__(self, stream: Stream, job: Job, *, feed: bool, cpu_s: int | None) -> None:
        self.stream = stream
        self.feeder: Feeder | None = None
        self._answer = _Answer()
        self._status: int | None = None
        self._waiting = 3
        self._start(job, feed, cpu_s)

    def _start(self, job: Job, feed: bool, cpu_s: int | None) -> None:
        warden, stream = self.stream.peer.warden, self.stream
        pipes: list[int] = []
        try:
            for _ in range(3 if feed else 2):
                pipes += os.pipe()
            self._pid = os.fork()
        except OSError:
            for fd in pipes:
                os.close(fd)
            raise
        given = pipes[4] if feed else -1
        if self._pid == 0:
            _live(job, pipes[1], pipes[3], given, cpu_s)
        for fd in (pipes[1], pipes[3], *pipes[4:5]):
            os.close(fd)
        processes.workers.add(self._pid)
        warden.on_exit(self._pid, self._exited)
        if feed:
            self.feeder = Feeder(warden, pipes[5], stream.consumed)
            stream.on_data = self._feed
            stream.on_eof = self._fed
        self._sources = [
            Source(warden, pipes[0], ToStream(stream, 0), self._ended),
            Source(warden, pipes[2], self._answer, self._ended),
        ]
        stream.on_credit = self._sources[0].resume
        stream.on_reset = self._reset

    def _feed(self, channel: int, data: bytes) -> int:
        if self.feeder is not None:
            self.feeder.put(data)
        return 0

    def _fed(self, channel: int) -> None:
        if self.feeder is not None:
            self.feeder.end()

    def _reset(self) -> None:
        if self._status is None:
            os.kill(self._pid, _signal.SIGKILL)
        for source in self._sources:
            source.close()

    def _exited(self, status: int) -> None:
        processes.workers.discard(self._pid)
        self._status = status
        if self.feeder is not None:
            self.feeder.close()
        self._ended()

    def _ended(self) -> None:
        self._waiting -= 1
        if self._waiting or self._status is None:
            return
        try:
            head = wire.loads(bytes(self._answer.raw))
        except ValueError:
            self.stream.fail(_death(self._status))
        else:
            self.stream.close(head)


def _death(status: int) -> WardenError:
    """Why a worker ended without an answer."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == _signal.SIGXCPU:
        return WardenError(
            "timed_out",
            f"it took more than {CPU_S} s of processor time",
            "Use a simpler pattern, or a smaller folder.",
        )
    return WardenError(
        "limit_exceeded", "the worker was ended from outside: the cave is out of memory?"
    )


def _live(job: Job, data: int, answer: int, given: int, cpu_s: int | None) -> NoReturn:
    """The worker's whole life. It shares the warden's memory, secrets included: it stays undumpable."""
    try:
        try:
            _settle({0, 1, 2, data, answer, given}, cpu_s)
            out = Output(data)
            raw = wire.dumps({"ok": True, **job(out, given)})
            out.flush()
        except MemoryError:
            raw = wire.dumps({"ok": False, "code": "limit_exceeded", "message": _TOO_MUCH})
        except BaseException as exc:  # noqa: BLE001  (the child must never return into the loop)
            raw = wire.dumps({"ok": False, **error_head(exc)})
        Output(answer).write(raw)
    finally:
        os._exit(0)


def _settle(keep: set[int], cpu_s: int | None) -> None:
    """Become a process of its own: no signal handler and no descriptor of the warden's, and limits."""
    _signal.set_wakeup_fd(-1)
    for number in (_signal.SIGCHLD, _signal.SIGTERM):
        _signal.signal(number, _signal.SIG_DFL)
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - keep:
        try:
            os.close(fd)
        except OSError:
            continue  # the descriptor of the listing itself
    limits = [(resource.RLIMIT_DATA, MEMORY_BYTES)]
    if cpu_s is not None:
        limits.append((resource.RLIMIT_CPU, cpu_s))
    for kind, value in limits:
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard < 0 else min(value, hard), hard))


def work(stream: Stream, job: Job, *, feed: bool = False, cpu_s: int | None = CPU_S) -> None:
    """Run ``job(output, input descriptor)`` in a worker; its result closes the stream.

    What it writes to ``output`` goes out as DATA. With ``feed`` it reads the stream's DATA, until EOF, from
    the descriptor. A reset kills it.
    """
    _Worker(stream, job, feed=feed, cpu_s=cpu_s)


# --- the operations ------------------------------------------------------------------------------


def listing(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{path, glob, depth, hidden, limit, sort: name|size|mtime, types}``: entries as JSON lines.

    A line is ``{path, type, size, mtime, mode, target?}``, its path relative to the folder; the answer is
    ``{path, total, truncated, unreadable}``. Without ``depth`` as deep as ``glob`` reaches, else 1.
    """

    def job(out: Output, given: int) -> dict[str, Any]:
        return folders.listing(head, out)

    work(stream, job)


def search(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{path, pattern, fixed, ignore_case, multiline, include, exclude, hidden, gitignore, before, after,
    limit}``: matching lines as JSON lines.

    A line is ``{path, line, column, text, before?, after?, cut?, end_line?}``, its path relative to the
    answer's; the answer is ``{path, matches, files, searched, skipped, truncated}``. Raises bad_pattern.
    With ``{output, channel}``, a command's id and the number of a channel, its kept output is searched, and
    the answer's ``gap`` says whether lines are missing in it, which are not counted.
    """
    spool = None
    if head.get("output") is not None:
        from . import commands

        spool = commands.of(stream.peer.warden).get(head["output"]).kept(head.get("channel"))

    def job(out: Output, given: int) -> dict[str, Any]:
        from . import search

        return search.search(head, out) if spool is None else search.kept(spool, head, out)

    work(stream, job)


def edit(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{path, regex, count, all}`` and, as JSON in the body, ``{edits: [{old, new}]}``: what a file would be.

    Nothing is written: DATA is the new content, to be written with the answer's version. The answer is
    ``{path, version, replaced, diff, cut}``. Raises bad_pattern, not_found for a text that is not there,
    conflict for one that is there too often.
    """
    edits = wire.loads(body)

    def job(out: Output, given: int) -> dict[str, Any]:
        from . import edits as editing

        return editing.edit(head, edits, out)

    work(stream, job)


def snapshot(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{path, limit}``: what stands below a folder, to be compared with a later one.

    DATA is records ``kind size mtime_ns inode path``, fields parted by a space, each ended by NUL. Kinds:
    ``f`` file, ``d`` folder, ``s`` symbolic link, ``o`` other, ``n`` noise: a folder such as node_modules,
    not entered, whose size is how many entries it has. The answer is ``{path, entries, truncated}``.
    """

    def job(out: Output, given: int) -> dict[str, Any]:
        return folders.snapshot(head, out)

    work(stream, job)


def remove(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{path, recursive}``: a file, a symbolic link (itself), an empty folder; ``recursive``: any folder.

    The answer is ``{path, removed}``. Raises permission_refused for the cave's own places.
    """
    full = files.real(head.get("path"), last=False)
    for place in ("/", HOME, os.path.realpath(os.environ.get("HOME", "/")), *files.OUTSIDE):
        if place == full or full == "/" or place.startswith(full + "/"):
            raise WardenError(
                "permission_refused", f"{full} is a place of the cave itself: it stays"
            )
    if os.path.isdir(full) and not os.path.islink(full):
        _remove_folder(stream, full, recursive=bool(head.get("recursive")))
        return
    try:
        os.unlink(full)
    except FileNotFoundError:
        raise WardenError("file_not_found", f"no such file: {full}", files.near(full)) from None
    stream.close({"path": full, "removed": 1})


def _remove_folder(stream: Stream, full: str, *, recursive: bool) -> None:
    def job(out: Output, given: int) -> dict[str, Any]:
        return {"path": full, "removed": folders.remove_tree(full)}

    try:
        os.rmdir(full)
    except OSError as exc:
        if recursive:
            work(stream, job)
            return
        if os.path.isdir(full) and os.listdir(full):
            hint = "Set recursive to remove it with everything in it."
            raise WardenError("not_empty", f"{full} is not empty", hint) from exc
        raise
    stream.close({"path": full, "removed": 1})


def pack(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{path, format: tar|tar.gz}``: a folder's content, or one file, as an archive in DATA.

    The answer is ``{path, entries, bytes, skipped}``; skipped are sockets and the like, and what cannot be
    read.
    """

    def job(out: Output, given: int) -> dict[str, Any]:
        from . import packing

        return packing.pack(head, out)

    work(stream, job)


def unpack(stream: Stream, head: dict[str, Any], body: bytes) -> None:
    """``{path, format: tar|tar.gz|zip, strip}``: extract the archive that comes as DATA into a folder.

    Without ``format`` the archive's first bytes tell. ``strip`` leaves out so many leading folders. The
    answer is ``{path, entries, bytes}``; an error's data says how much was extracted before it.
    """

    def job(out: Output, given: int) -> dict[str, Any]:
        from . import archives

        return archives.unpack(head, given)

    work(stream, job, feed=True)
