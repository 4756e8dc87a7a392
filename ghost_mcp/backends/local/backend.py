"""Caves on this machine: bubblewrap namespaces, one host user for each cave, no daemon."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread

from ghost_mcp.backends.base import SHAPE, Backend, oldest_first
from ghost_mcp.backends.local.assurance import assurance
from ghost_mcp.backends.local.cgroups import CaveGroup, detect
from ghost_mcp.backends.local.disk import make_disk
from ghost_mcp.backends.local.launch import Launch, launch, require_bwrap
from ghost_mcp.backends.local.removal import remove_tree
from ghost_mcp.backends.local.state import CaveDir, StateDir, info_of
from ghost_mcp.backends.tail import tail
from ghost_mcp.errors import (
    BackendUnavailable,
    CaveGone,
    CaveNotFound,
    Conflict,
    InvalidArgument,
    Unsupported,
    map_os_errors,
)
from ghost_mcp.lifecycle import Event, State, after
from ghost_mcp.sockets import Wired
from ghost_mcp.spec import CaveInfo, CaveSpec, Usage
from ghost_mcp.warden.link import configure

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from anyio.abc import ByteStream

__all__ = ["LocalBackend"]

GONE_S = 5.0
# What kernels say of a number that no process has; the last two, while it still names a thread, a session or a group.
NO_PROCESS = (errno.ESRCH, errno.EINVAL, errno.ENOENT)
LOCK_S = 60.0
TRIES = 5


class LocalBackend(Backend):
    """See :class:`~ghost_mcp.backends.base.Backend`. The truth is the state directory and the live wardens."""

    name = "local"
    pools = True

    def __init__(self, state: Path | None = None) -> None:
        self.state = StateDir(state)
        self._cgroups = detect()
        self._lifelines: dict[str, int] = {}
        self._released: dict[str, int] = {}
        self._children: set[int] = set()

    async def __aenter__(self) -> Self:
        if sys.platform != "linux":
            raise Unsupported("local caves need Linux", hint="Use the docker backend.")
        require_bwrap()
        self.state.prepare()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the ephemeral caves this process made; the others live on."""
        with anyio.CancelScope(shield=True):
            async with AsyncExitStack() as closing:
                closing.callback(self._leave)
                for cave_id in list(self._lifelines):
                    closing.push_async_callback(self.destroy, cave_id)

    def _leave(self) -> None:
        """Let go of all caves: what could not be destroyed ends without its lifeline."""
        for cave_id in {*self._lifelines, *self._released}:
            self._let_go(cave_id)
        self._reap()
        self._cgroups.tidy()

    async def create(
        self, spec: CaveSpec, *, secrets: Mapping[str, bytes] | None = None
    ) -> CaveInfo:
        self._check(spec)
        cave = self.state.cave(spec.id)
        with map_os_errors("the cave cannot be made"):
            for _ in range(TRIES):
                try:
                    cave.path.mkdir(0o711)
                except FileExistsError:
                    break
                # Another process may take the new folder for half a creation, and sweep it, until it is locked.
                with suppress(CaveNotFound):
                    return await self._make_all(cave, spec, secrets or {})
        async with self._locked(cave):  # made before, under the same id, or just being made
            info = await self.get(spec.id)
        if info.full_name != spec.full_name:
            raise Conflict(f"the cave id {spec.id} belongs to another cave")
        return info

    async def _make_all(
        self, cave: CaveDir, spec: CaveSpec, secrets: Mapping[str, bytes]
    ) -> CaveInfo:
        """Make the cave in its new folder, or leave nothing."""
        try:
            return await self._make(cave, spec, secrets)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.destroy(spec.id)
                self.state.release(spec.full_name, spec.id)
            raise

    async def _make(self, cave: CaveDir, spec: CaveSpec, secrets: Mapping[str, bytes]) -> CaveInfo:
        async with self._locked(cave):
            cave.path.chmod(0o711)
            uid, gid = self._user(spec)
            await self._lay_out(cave, spec, uid, gid)
            if cave.path.parent == self.state.caves:
                self.state.reserve(spec.full_name, spec.id)
            self._launch(cave, spec, uid, gid)
            # Written while the cave starts; one without a record is no cave and is swept.
            own = {"uid": uid, "gid": gid, "group": spec.id, "cgroups": self._cgroups.as_dict()}
            record = self._record(spec, uid) | own
            cave.write_record(record)
            await self._await_start(cave, self.settings(spec, secrets))
        return info_of(record, State.RUNNING)

    def _record(self, spec: CaveSpec, uid: int) -> dict[str, Any]:
        created = time.time()
        return {
            "spec": {**spec.as_dict(), "backend": self.name},
            "created_at": created,
            "deadline_at": None if spec.timeout_s is None else created + spec.timeout_s,
            "assurance": {
                name: asdict(line) for name, line in assurance(spec, uid, self._cgroups).items()
            },
        }

    def ledger(self, cave_id: str) -> Path:
        return self.state.cave(cave_id).path / "egress"

    def _check(self, spec: CaveSpec) -> None:
        if spec.limits.disk_bytes is not None and os.geteuid() != 0:
            raise Unsupported(
                "a disk limit needs root on the local backend",
                hint="Leave disk out, or run Ghost as root.",
            )
        if spec.limits.disk_bytes is not None:
            there = os.statvfs(self.state.path)
            if spec.limits.disk_bytes > there.f_blocks * there.f_frsize:
                raise InvalidArgument(
                    f"disk: {spec.limits.disk_bytes} bytes are more than the whole disk that caves are on",
                    hint="Ask for less, or leave disk out.",
                )
        if spec.gpus is not None:
            raise Unsupported("a local cave has no GPUs", hint="Use --backend docker.")
        if missing := set(spec.secrets) & set(spec.env):
            raise InvalidArgument(f"{min(missing)} is given as a secret and as a plain variable")
        for source in spec.mounts.values():
            if not os.path.exists(source):
                raise InvalidArgument(f"nothing to mount: {source}")
        if spec.workspace is not None and not os.path.isdir(spec.workspace):
            raise InvalidArgument(f"no such workspace folder: {spec.workspace}")

    def _user(self, spec: CaveSpec) -> tuple[int, int]:
        """The host user the cave runs as: one of its own, or the owner of a given workspace; never root."""
        if os.geteuid() != 0:
            return os.geteuid(), os.getegid()
        if spec.workspace is None:
            uid = self.state.free_uid()
            return uid, uid
        owner = os.stat(spec.workspace)
        if owner.st_uid == 0:
            raise InvalidArgument(
                f"{spec.workspace} belongs to root, and no cave runs as root",
                hint="chown the folder to an ordinary user, or leave workspace out and copy the files in.",
            )
        return owner.st_uid, owner.st_gid

    async def _lay_out(self, cave: CaveDir, spec: CaveSpec, uid: int, gid: int) -> None:
        base = cave.path
        for number, source in enumerate(spec.mounts.values()):
            stand_in = base / "mounts" / str(number)
            stand_in.parent.mkdir(0o711, exist_ok=True)
            stand_in.mkdir() if os.path.isdir(source) else stand_in.touch()
        if spec.limits.disk_bytes is not None:
            (base / "disk").mkdir(0o711)
            await anyio.to_thread.run_sync(
                make_disk, base / "disk.ext4", spec.limits.disk_bytes, uid, gid
            )
            base = base / "disk"
        for name in ("run", "home", "workspace"):
            folder = base / name
            if not (folder.exists() or spec.limits.disk_bytes is not None):
                folder.mkdir(0o700)
                if os.geteuid() == 0:
                    os.chown(folder, uid, gid)

    def _launch(self, cave: CaveDir, spec: CaveSpec, uid: int, gid: int) -> None:
        """Start the cave's processes; the caller holds the lock and cleans up."""
        self._reap()
        request = Launch(
            cave=cave,
            spec=spec,
            uid=uid,
            gid=gid,
            cgroups=self._cgroups.create(f"{self.state.instance}-{cave.id}", spec.limits),
            cache=self.state.cache,
            disk=spec.limits.disk_bytes is not None,
        )
        with ExitStack() as given:  # to the cave, which has its own then
            theirs = None
            if spec.ephemeral:
                theirs, self._lifelines[cave.id] = os.pipe()
                given.callback(os.close, theirs)
            listener = given.enter_context(self.state.listen(cave))
            self._children.add(launch(request, listener, theirs))

    async def _await_start(self, cave: CaveDir, settings: Mapping[str, Any]) -> None:
        try:
            async with Wired(cave.connect()) as stream:
                await configure(stream, settings)
        except CaveGone as exc:
            raise BackendUnavailable(
                f"the cave did not start: {_last_words(cave.log)}",
                hint="See: ghost doctor. Are unprivileged user namespaces allowed here?",
            ) from exc

    def settings(self, spec: CaveSpec, secrets: Mapping[str, bytes]) -> dict[str, Any]:
        settings = super().settings(spec, secrets)
        # Each cave has a user namespace, in which the kernel counts.
        if spec.limits.pids is not None:
            settings["rlimits"]["nproc"] = spec.limits.pids
        if spec.limits.memory_bytes is not None and not self._limits_memory(spec):
            settings["rlimits"]["data"] = spec.limits.memory_bytes
        return settings

    def _limits_memory(self, spec: CaveSpec) -> bool:
        return self._cgroups.assurance(spec.limits)["memory"][0]

    async def prepare(self, template: CaveSpec) -> str:
        shape = {part: getattr(template, part) for part in SHAPE}
        spec = CaveSpec(**shape, ephemeral=True, owner=self.state.instance)
        self._check(spec)
        cave = self.state.prepared(spec.id)
        with map_os_errors("a cave for the pool cannot be made"):
            cave.path.mkdir(0o711)
            await self._make_all(cave, spec, {})
        return spec.id

    async def claim(self, prepared_id: str, spec: CaveSpec) -> CaveInfo:
        self._check(spec)
        prepared = self.state.prepared(prepared_id)
        record = prepared.record() | self._record(spec, prepared.record()["uid"])
        self.state.reserve(spec.full_name, spec.id)
        cave = self.state.cave(spec.id)
        try:
            os.rename(prepared.path, cave.path)  # one process only gets it
            cave.write_record(record)
        except OSError as exc:
            self.state.release(spec.full_name, spec.id)
            raise CaveNotFound(f"the prepared cave {prepared_id} is gone") from exc
        lifeline = self._lifelines.pop(prepared_id, None)
        if lifeline is not None:
            # A cave that outlives us lets go of its lifeline when configured; our end stays open until then.
            (self._lifelines if spec.ephemeral else self._released)[spec.id] = lifeline
        return info_of(record, State.RUNNING)

    async def get(self, name: str) -> CaveInfo:
        cave = self.state.find(name)
        return self.state.info(cave, self._cgroups)

    async def list(self, owner: str | None = None) -> list[CaveInfo]:
        self._reap()
        found = []
        for cave in self.state.all():
            info = self.state.listed(cave, self._cgroups)
            if info is not None:
                found.append(info)
            else:
                await self._sweep(cave)
        for cave in self.state.all(prepared=True):
            if cave.path.parent == self.state.pool and not cave.alive():
                await self._sweep(cave)
        for folder in self.state.discarded():
            await anyio.to_thread.run_sync(remove_tree, folder)
        self._sweep_groups()
        return oldest_first(found, owner)

    async def _sweep(self, cave: CaveDir) -> None:
        """Remove what an ended ephemeral cave, or a creation that broke off, has left."""
        with suppress(CaveNotFound, Conflict):
            async with self._locked(cave, wait_s=0):
                if not cave.alive():
                    await self._erase(cave)

    def _sweep_groups(self) -> None:
        """Remove the groups of caves that are gone; one that still has processes is left by the kernel."""
        prefix = f"{self.state.instance}-"
        # Before the caves: one that is just being made has its folder first.
        groups = self._cgroups.list()
        here = {self._group(cave).name for cave in self.state.all(prepared=True)}
        for group in groups:
            if group.startswith(prefix) and group not in here:
                self._cgroups.remove(group)

    async def start(self, cave_id: str, *, secrets: Mapping[str, bytes] | None = None) -> CaveInfo:
        cave = self.state.find(cave_id)
        async with self._locked(cave):
            info = await self.get(cave.id)
            after(info.state, Event.START, info.name)
            if info.state is State.PAUSED:
                self._group(cave).thaw()
            elif info.state is not State.RUNNING:
                record = cave.record() | {"group": cave.id, "cgroups": self._cgroups.as_dict()}
                self._launch(cave, info.spec, record["uid"], record["gid"])
                await self._await_start(cave, self.settings(info.spec, secrets or {}))
                record.pop("stopped", None)
                if info.spec.timeout_s is not None:
                    record["deadline_at"] = time.time() + info.spec.timeout_s
                cave.write_record(record)
        return await self.get(cave.id)

    async def stop(self, cave_id: str, *, pause: bool = False) -> CaveInfo:
        cave = self.state.find(cave_id)
        async with self._locked(cave):
            info = await self.get(cave.id)
            after(info.state, Event.PAUSE if pause else Event.STOP, info.name)
            if pause:
                self._group(cave).freeze()
            else:
                cave.write_record({**cave.record(), "stopped": True})
                await self._end(cave)
        return await self.get(cave.id)

    async def destroy(self, cave_id: str) -> None:
        with suppress(CaveNotFound), map_os_errors("the cave cannot be removed"):
            cave = self.state.find(cave_id)
            async with self._locked(cave):
                await self._end(cave)
                await self._erase(cave)

    async def _end(self, cave: CaveDir) -> None:
        """Kill PID 1 of the cave and wait until the kernel has taken everything in it."""
        self._let_go(cave.id)
        with anyio.move_on_after(GONE_S):
            while cave.alive():
                pid = cave.warden_pid()
                if pid is None or not await self._killed(cave, pid):
                    # Only just starting: not in its group yet, perhaps, and its pid not known. Or just ending.
                    self._group(cave).kill()
                    await anyio.sleep(0.005)
        self._group(cave).kill()
        if cave.alive():
            raise BackendUnavailable(f"cave {cave.id} does not end")
        await self._collect(cave)

    def _let_go(self, cave_id: str) -> None:
        """Close our end of a lifeline, if there is one."""
        for lifelines in (self._lifelines, self._released):
            if (lifeline := lifelines.pop(cave_id, None)) is not None:
                os.close(lifeline)

    async def _killed(self, cave: CaveDir, pid: int) -> bool:
        """Kill the warden and wait for its end; False when that number is no process's any more."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as exc:
            if exc.errno not in NO_PROCESS:
                raise
            return False
        try:
            with suppress(ProcessLookupError):
                if cave.warden_pid() == pid:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            self._group(cave).thaw()  # the frozen die only once thawed
            await anyio.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        return True

    async def _collect(self, cave: CaveDir) -> None:
        """Reap the outer process if it is ours, then the cgroup is empty and can go."""
        for _ in range(50):
            self._reap()
            if self._group(cave).remove():
                return
            await anyio.sleep(0.01)

    async def _erase(self, cave: CaveDir) -> None:
        self._let_go(cave.id)
        self._group(cave).remove()
        with suppress(CaveNotFound):
            record = cave.record()
            self.state.release(CaveSpec.from_dict(record["spec"]).full_name, cave.id)
        await anyio.to_thread.run_sync(remove_tree, self.state.discard(cave))

    def _reap(self) -> None:
        for pid in list(self._children):
            try:
                done, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                done = pid
            if done:
                self._children.discard(pid)

    @asynccontextmanager
    async def _locked(self, cave: CaveDir, *, wait_s: float = LOCK_S) -> AsyncIterator[None]:
        """Hold the cave's lock, against other tasks and processes. Raises Conflict when it stays held."""
        deadline = time.monotonic() + wait_s
        while (fd := cave.try_lock()) is None:
            if time.monotonic() >= deadline:
                raise Conflict(
                    f"cave {cave.id} is being changed by someone else", hint="Try again."
                )
            await anyio.sleep(0.005)
        try:
            yield
        finally:
            os.close(fd)

    def _group(self, cave: CaveDir) -> CaveGroup:
        return self.state.group(cave, self._cgroups)

    async def connect(self, cave_id: str) -> ByteStream:
        cave = self.state.find(cave_id)
        state = self.state.info(cave, self._cgroups).state
        if state is not State.ENDED:  # of which connecting tells
            after(state, Event.CALL, cave.id)
        return Wired(cave.connect())

    async def usage(self, cave_id: str) -> Usage:
        cave = self.state.find(cave_id)
        return Usage(**self._group(cave).usage())

    async def logs(self, cave_id: str, *, follow: bool = False) -> AsyncIterator[bytes]:
        cave = self.state.find(cave_id)
        async for piece in tail(cave.log, lambda: follow and cave.alive()):
            yield piece


def _last_words(log: Path) -> str:
    """The end of the cave's log, for an error message."""
    with suppress(OSError):
        text = log.read_bytes()[-600:].decode("utf-8", "replace").strip()
        return text.splitlines()[-1][:400] if text else "it said nothing"
    return "it left no log"
