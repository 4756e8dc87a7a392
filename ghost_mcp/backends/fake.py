# For tests only: these caves have no walls. No name leads here; a test hands over the object it made.
"""Caves without isolation, for tests of one's own program: no bubblewrap, no daemon, no image, no root.

::

    async with Ghost(backend=FakeBackend()) as ghost:
        cave = await ghost.create()
        assert (await cave.exec("echo hello")).stdout == "hello\\n"

A fake cave is a temporary folder and a real warden that works in it as an ordinary child process: the same link,
the same operations, real programs. What a program does there it does to this machine, as the user who runs the
test. Relative paths and ``~`` lie in the temporary folder; absolute ones are this machine's, so ``/workspace``
is not there. Caves are known to this process only and end with it; killed, it leaves their folders behind.
Linux only, as the warden is.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread

from ghost_mcp.backends.base import Backend, oldest_first
from ghost_mcp.backends.tail import tail
from ghost_mcp.errors import BackendUnavailable, CaveGone, CaveNotFound, Conflict, Unsupported
from ghost_mcp.lifecycle import Event, State, after
from ghost_mcp.spec import Assurance, CaveInfo, CaveSpec, Usage
from ghost_mcp.warden.link import configure

if TYPE_CHECKING:
    from types import TracebackType

    from anyio.abc import ByteStream

__all__ = ["FakeBackend"]

END_S = 5.0
# Appended, never first: some of our modules have the names of the standard library's.
START = (
    "import sys; sys.path.append({package!r}); from warden.program import main; main(sys.argv[1:])"
)
_HOST = "the host's, as it is: a fake cave isolates nothing"
ASSURANCE = {
    "isolation": "none: programs run on this machine, as the user who runs the test",
    "user": _HOST,
    "syscalls": _HOST,
    "network": _HOST,
    "memory": "no limit is enforced",
    "cpu": "no limit is enforced",
    "pids": "no limit is enforced",
    "disk": "no limit is enforced",
    "tmp": "no limit is enforced",
    "lifetime": "the warden ends the cave, but a program can kill the warden",
}


@dataclass(slots=True, kw_only=True)
class _Cave:
    """What the memory of this process says of one cave."""

    spec: CaveSpec
    folder: Path
    created_at: float
    deadline_at: float | None = None
    pid: int = 0
    lifeline: int = -1
    stopped: bool = False
    lock: anyio.Lock = field(default_factory=anyio.Lock)

    def alive(self) -> bool:
        """Whether its warden runs; one that has ended is reaped."""
        if self.pid:
            try:
                ended, _ = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                ended = self.pid
            if ended:
                self.pid = 0
        return self.pid != 0

    def state(self) -> State:
        if self.alive():
            return State.RUNNING
        return State.STOPPED if self.stopped else State.ENDED

    def info(self) -> CaveInfo:
        return CaveInfo(
            spec=self.spec,
            state=self.state(),
            created_at=self.created_at,
            deadline_at=self.deadline_at,
            assurance={name: Assurance(enforced=False, how=how) for name, how in ASSURANCE.items()},
        )


class FakeBackend(Backend):
    """See :class:`~ghost_mcp.backends.base.Backend`. With ``beside`` it is another view of that one's caves."""

    name = "fake"
    proxied = frozenset()

    def __init__(self, beside: FakeBackend | None = None) -> None:
        self._caves: dict[str, _Cave] = {} if beside is None else beside._caves
        self._beside = beside
        self._made: set[str] = set()

    async def __aenter__(self) -> Self:
        if sys.platform != "linux":
            raise Unsupported("fake caves need Linux: the warden does")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the ephemeral caves made here; the first view ends all."""
        with anyio.CancelScope(shield=True):
            for cave in list(self._caves.values()):
                if self._beside is None or (cave.spec.id in self._made and cave.spec.ephemeral):
                    await self.destroy(cave.spec.id)

    async def create(
        self, spec: CaveSpec, *, secrets: Mapping[str, bytes] | None = None
    ) -> CaveInfo:
        _check(spec)
        cave = self._caves.get(spec.id)
        if cave is not None and cave.spec.full_name != spec.full_name:
            raise Conflict(f"the cave id {spec.id} belongs to another cave")
        if cave is None:
            cave = self._reserve(spec.with_(backend=self.name))
            try:
                async with cave.lock:
                    await self._start(cave, secrets or {})
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self.destroy(spec.id)
                raise
        return await self.get(spec.id)

    def _reserve(self, spec: CaveSpec) -> _Cave:
        if any(cave.spec.full_name == spec.full_name for cave in self._caves.values()):
            raise Conflict(
                f"a cave named {spec.name} is already there", hint="Choose another name."
            )
        folder = Path(tempfile.mkdtemp(prefix="ghost-fake-"))
        for name in ("workspace", "home", "run", "tmp"):
            (folder / name).mkdir()
        cave = self._caves[spec.id] = _Cave(spec=spec, folder=folder, created_at=time.time())
        self._made.add(spec.id)
        return cave

    @asynccontextmanager
    async def _held(self, name: str) -> AsyncIterator[_Cave]:
        """The cave of that full name or id, with its lock. Raises CaveNotFound, with the names there are."""
        for cave in list(self._caves.values()):
            if name in (cave.spec.id, cave.spec.full_name):
                async with cave.lock:
                    if self._caves.get(cave.spec.id) is cave:
                        yield cave
                        return
        raise CaveNotFound.among(name, (one.spec.full_name for one in self._caves.values()))

    async def _start(self, cave: _Cave, secrets: Mapping[str, bytes]) -> None:
        self._let_go(cave)
        with _listening(cave.folder / "warden.sock") as listener:
            cave.pid, cave.lifeline = _spawn(cave.folder, listener)
        cave.stopped = False
        stream = await self._dial(cave)
        try:
            await configure(stream, self.settings(cave.spec, secrets))
        except CaveGone as exc:
            said = (cave.folder / "log").read_text("utf-8", "replace")[-400:]
            raise BackendUnavailable(f"the cave did not start: {said}") from exc
        finally:
            await stream.aclose()
        if cave.spec.timeout_s is not None:
            cave.deadline_at = time.time() + cave.spec.timeout_s

    def settings(self, spec: CaveSpec, secrets: Mapping[str, bytes]) -> dict[str, Any]:
        # The lifeline stays: no fake cave outlives the process that made it.
        return {**super().settings(spec, secrets), "release": False}

    async def get(self, name: str) -> CaveInfo:
        async with self._held(name) as cave:
            return cave.info()

    async def list(self, owner: str | None = None) -> list[CaveInfo]:
        found = []
        for cave_id in list(self._caves):
            with suppress(CaveNotFound):
                info = await self.get(cave_id)
                if info.state is State.ENDED and info.spec.ephemeral:
                    await self.destroy(cave_id)
                else:
                    found.append(info)
        return oldest_first(found, owner)

    async def start(self, cave_id: str, *, secrets: Mapping[str, bytes] | None = None) -> CaveInfo:
        async with self._held(cave_id) as cave:
            after(cave.state(), Event.START, cave.spec.name)
            if not cave.alive():
                await self._start(cave, secrets or {})
            return cave.info()

    async def stop(self, cave_id: str, *, pause: bool = False) -> CaveInfo:
        async with self._held(cave_id) as cave:
            if pause:
                raise Unsupported("a fake cave cannot be paused", hint="Stop it instead.")
            after(cave.state(), Event.STOP, cave.spec.name)
            await self._end(cave)
            cave.stopped = True
            return cave.info()

    async def destroy(self, cave_id: str) -> None:
        with suppress(CaveNotFound):
            async with self._held(cave_id) as cave:
                await self._end(cave)
                await anyio.to_thread.run_sync(shutil.rmtree, cave.folder)
                del self._caves[cave.spec.id]

    async def _end(self, cave: _Cave) -> None:
        """Let the warden end itself and all its programs; one that does not is killed."""
        self._let_go(cave)
        if not cave.alive():
            return
        pidfd = os.pidfd_open(cave.pid)
        try:
            with anyio.move_on_after(END_S):
                await anyio.wait_readable(pidfd)
            if cave.alive():
                os.kill(cave.pid, signal.SIGKILL)
                await anyio.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        cave.alive()

    @staticmethod
    def _let_go(cave: _Cave) -> None:
        if cave.lifeline >= 0:
            os.close(cave.lifeline)
            cave.lifeline = -1

    async def connect(self, cave_id: str) -> ByteStream:
        async with self._held(cave_id) as cave:
            if cave.state() is State.ENDED:
                raise CaveGone(f"cave {cave.spec.name} has ended", hint="Start it again.")
            after(cave.state(), Event.CALL, cave.spec.name)
            return await self._dial(cave)

    @staticmethod
    async def _dial(cave: _Cave) -> ByteStream:
        try:
            return await anyio.connect_unix(cave.folder / "warden.sock")
        except OSError as exc:
            raise CaveGone(f"cave {cave.spec.name} has ended") from exc

    async def usage(self, cave_id: str) -> Usage:
        """Nothing: its programs are not counted apart from the machine's."""
        async with self._held(cave_id):
            return Usage()

    async def logs(self, cave_id: str, *, follow: bool = False) -> AsyncIterator[bytes]:
        async with self._held(cave_id) as cave:
            path = cave.folder / "log"
        async for piece in tail(path, lambda: follow and cave.alive()):
            yield piece


def _check(spec: CaveSpec) -> None:
    asked = {
        "a network policy": spec.network.mode != "none",
        "an image": spec.image,
        "a workspace folder": spec.workspace,
        "mounts": spec.mounts,
        "GPUs": spec.gpus,
        "a disk limit": spec.limits.disk_bytes is not None,
    }
    for what, wanted in asked.items():
        if wanted:
            raise Unsupported(f"a fake cave cannot have {what}")


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A fresh listening socket, which the warden inherits."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(64)
        yield listener


def _spawn(folder: Path, listener: socket.socket) -> tuple[int, int]:
    """Start a warden; returns its pid and the lifeline whose closing ends it."""
    package = str(Path(__file__).parents[1])
    fd = listener.fileno()
    log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    theirs, ours = os.pipe()
    argv = [sys.executable, "-I", "-S", "-c", START.format(package=package)]
    argv += ["--listen-fd", str(fd), "--lifeline-fd", str(theirs), "--root", str(folder)]
    env = {
        "PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
    }
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, log, 1),
        (os.POSIX_SPAWN_DUP2, log, 2),
        # Onto themselves: the way to hand on descriptors that are otherwise closed.
        (os.POSIX_SPAWN_DUP2, fd, fd),
        (os.POSIX_SPAWN_DUP2, theirs, theirs),
    ]
    try:
        pid = os.posix_spawn(sys.executable, argv, env, file_actions=actions, setsid=True)
    except BaseException as exc:
        os.close(ours)
        if isinstance(exc, OSError):
            raise BackendUnavailable(f"cannot start {sys.executable}: {exc.strerror}") from exc
        raise
    finally:
        os.close(log)
        os.close(theirs)
    return pid, ours
