# Only this file limits, freezes and counts what a cave uses, and says which of that is really enforced.
"""The limit driver: cgroup v2 where controllers are delegated to us, else v1, else nothing (and it says so).

Each cave has one group ``ghost/<cave>`` in each hierarchy in use; ``hierarchies`` finds where. All calls are
a few file operations; ``freeze`` and ``kill`` also wait, within WAIT_S, for the kernel.

v1 offers two doors into a group. ``tasks`` takes the calling thread at once (0.2 ms); ``cgroup.procs`` takes a
whole process under a lock that waits for an RCU grace period (6 ms). A launcher has one thread, so it uses the
first. For the same reason v1 caves get no v2 group beside their own ones, though it would make killing shorter.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Self

from ghost_mcp.backends.local.hierarchies import (
    CONTROLLERS,
    FOLDER,
    Base,
    find_bases,
    make_group,
    pids_in,
    read,
    write,
)
from ghost_mcp.errors import (
    BackendUnavailable,
    Conflict,
    InvalidArgument,
    LimitExceeded,
    Unsupported,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ghost_mcp.spec import Limits

__all__ = ["CaveGroup", "CgroupDriver", "detect"]

CPU_PERIOD_US = 100_000
WAIT_S = 5.0
KILL_BATCH = 64
_MAX_ID = 64
_GONE = (errno.ENOENT, errno.ENODEV)  # a group that is not there, or goes while its file is open


def detect() -> CgroupDriver:
    """The best driver for this process; one that enforces nothing when no controller is delegated to us."""
    return CgroupDriver(find_bases())


class CgroupDriver:
    """Creates, changes, freezes, kills, counts and removes the groups of caves. Keeps no list of its own."""

    def __init__(self, bases: Mapping[str, Base]) -> None:
        self.bases = dict(bases)
        self.version = next((base.version for base in bases.values()), 0)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The driver of another process, from its ``as_dict()``: one started elsewhere finds the same groups."""
        return cls({role: Base(int(version), str(path)) for role, (version, path) in data.items()})

    def as_dict(self) -> dict[str, list[Any]]:
        """JSON-ready: ``{role: [version, path]}``."""
        return {role: [base.version, base.path] for role, base in self.bases.items()}

    # --- a cave's life ---------------------------------------------------------------------------

    def create(self, cave_id: str, limits: Limits) -> tuple[str, ...]:
        """Make the cave's groups and set its limits. Returns the files that take a process in.

        A launcher writes ``0`` to each of them, in a process of one thread, before it execs: no program of the
        cave ever runs outside. Idempotent. Raises BackendUnavailable; then nothing is left.
        """
        groups = self._wanted(cave_id, limits)
        try:
            passed_on = self.bases if self.version == 2 else ()
            made = [make_group(group, controllers=passed_on) for group in groups]
            self._apply(cave_id, limits, fresh=all(made))
        except OSError as exc:
            self.remove(cave_id)
            raise BackendUnavailable(
                f"cannot make the cave's cgroup: {exc.strerror}: {exc.filename}",
                hint="Is the hub's own cgroup still there and writable? See: ghost doctor",
            ) from exc
        door = "tasks" if self.version == 1 else "cgroup.procs"
        return tuple(f"{group}/{door}" for group in groups)

    def update(self, cave_id: str, limits: Limits) -> None:
        """Change the limits of a live cave.

        Raises LimitExceeded when it uses more memory than asked and v1 cannot reclaim it; v2 then ends some of
        the cave's processes instead.
        """
        for group in self._wanted(cave_id, limits):
            if not os.path.isdir(group):
                self._gather(cave_id, group)
        try:
            self._apply(cave_id, limits, fresh=False)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise BackendUnavailable(f"cannot change the limits: {exc.strerror}") from exc
            raise LimitExceeded(
                "the cave uses more memory than the new limit",
                hint="End some of its processes first, or ask for a higher limit.",
            ) from exc

    def freeze(self, cave_id: str) -> None:
        """Stop every process of the cave where it stands.

        Raises Unsupported without a freezer, Conflict when a process does not stop within WAIT_S.
        """
        group = self._freezer(cave_id)
        if group is None:
            raise Unsupported(
                "a cave cannot be paused here: no cgroup freezer is delegated",
                hint="Stop the cave instead: its files stay.",
            )
        if self.version == 2:
            write(f"{group}/cgroup.freeze", "1")
        else:
            make_group(group)
            # First the state, then the processes: each is caught as it enters, so none forks a free one.
            write(f"{group}/freezer.state", "FROZEN")
            self._gather(cave_id, group)
        deadline = monotonic() + WAIT_S
        while not _is_frozen(group, self.version):
            if monotonic() > deadline:
                self.thaw(cave_id)
                raise Conflict(
                    "a process of the cave does not stop", hint="Try again, or stop the cave."
                )
            sleep(0.001)

    def frozen(self, cave_id: str) -> bool:
        """Has the cave been frozen?"""
        group = self._freezer(cave_id)
        return group is not None and _is_frozen(group, self.version)

    def thaw(self, cave_id: str) -> None:
        """Let the cave's processes run on. Idempotent."""
        group = self._freezer(cave_id)
        if group is None:
            return
        name, word = ("cgroup.freeze", "0") if self.version == 2 else ("freezer.state", "THAWED")
        try:
            write(f"{group}/{name}", word)
        except OSError as exc:
            if exc.errno not in _GONE:
                raise

    def kill(self, cave_id: str) -> bool:
        """SIGKILL to every process of the cave; True when none is left, within WAIT_S. Idempotent."""
        group = self._populated(cave_id)
        if group is None:
            return True
        with suppress(OSError):
            if self.version == 2:
                write(f"{group}/cgroup.kill", "1")  # Linux 5.14: all at once, forks included
        with suppress(OSError, KeyError):
            write(
                f"{self._group('pids', cave_id)}/pids.max", "0"
            )  # nothing new while the rest is ended
        self.thaw(cave_id)  # v1 delivers no signal to a frozen process
        deadline = monotonic() + WAIT_S
        while pids := pids_in(group):
            if monotonic() > deadline:
                return False
            _end(pids[:KILL_BATCH], group, deadline)
        return True

    def remove(self, cave_id: str) -> bool:
        """Remove the cave's groups; False while processes are in them. Idempotent, does not wait.

        A process that has just ended may hold its group for a moment longer: ask again.
        """
        gone = True
        for group in self._groups(cave_id):
            try:
                os.rmdir(group)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone

    def tidy(self) -> None:
        """Remove the empty folders of all caves, as a hub does that leaves. Nothing happens while a cave lives."""
        for base in set(self.bases.values()):
            with suppress(OSError):
                os.rmdir(f"{base.path}/{FOLDER}")

    # --- what is there ---------------------------------------------------------------------------

    def list(self) -> tuple[str, ...]:
        """The ids of all caves that have a group, live or leaked."""
        found: set[str] = set()
        for base in set(self.bases.values()):
            with suppress(OSError), os.scandir(f"{base.path}/{FOLDER}") as entries:
                found.update(entry.name for entry in entries if entry.is_dir())
        return tuple(sorted(found))

    def usage(self, cave_id: str) -> dict[str, Any]:
        """``{memory_bytes, memory_peak_bytes, cpu_s, pids, oom_kills}``; None for what no controller tells.

        v1's ``cpu_s`` is the time of all processes alive and of those they have waited for.
        """
        memory = self._group("memory", cave_id) if "memory" in self.bases else ""
        tasks = self._group("pids", cave_id) if "pids" in self.bases else ""
        if self.version == 2:
            current, peak, events = "memory.current", "memory.peak", "memory.events"
            used_us = _field(f"{self._groups(cave_id)[0]}/cpu.stat", "usage_usec")
            cpu_s = None if used_us is None else used_us / 1e6
        else:
            current, peak = "memory.usage_in_bytes", "memory.max_usage_in_bytes"
            events = "memory.oom_control"
            group = self._populated(cave_id)
            cpu_s = None if group is None else sum(_cpu_s(pid) for pid in pids_in(group))
        return {
            "memory_bytes": _number(f"{memory}/{current}"),
            "memory_peak_bytes": _number(f"{memory}/{peak}"),
            "cpu_s": cpu_s,
            "pids": _number(f"{tasks}/pids.current"),
            "oom_kills": _field(f"{memory}/{events}", "oom_kill"),
        }

    def assurance(self, limits: Limits) -> dict[str, tuple[bool, str]]:
        """For memory, pids and cpu: is the limit enforced, and by what, or why not."""
        asked = {"memory": limits.memory_bytes, "pids": limits.pids, "cpu": limits.cpus}
        return {role: self._assure(role, value is not None) for role, value in asked.items()}

    def _assure(self, role: str, asked: bool) -> tuple[bool, str]:
        base = self.bases.get(role)
        if not asked:
            return False, "no limit was asked for"
        if base is None:
            return False, "no cgroup controller is delegated to Ghost here"
        how = f"cgroup v{base.version}"
        if role == "memory":
            swap = base.version == 2 or os.path.exists(f"{base.path}/memory.memsw.limit_in_bytes")
            how += ", swap included" if swap else "; swap is not bounded"
        return True, how

    # --- inside ----------------------------------------------------------------------------------

    def _group(self, role: str, cave_id: str) -> str:
        if not cave_id.replace("-", "").isalnum() or len(cave_id) > _MAX_ID:
            raise InvalidArgument(f"not a cave id: {cave_id[:_MAX_ID]!r}")
        return f"{self.bases[role].path}/{FOLDER}/{cave_id}"

    def _groups(self, cave_id: str) -> tuple[str, ...]:
        """The cave's groups in all hierarchies, each once: controllers may share one."""
        return tuple(dict.fromkeys(self._group(role, cave_id) for role in self.bases))

    def _populated(self, cave_id: str) -> str | None:
        """The group that holds every process of the cave; None when there is none."""
        return next((group for group in self._groups(cave_id) if os.path.isdir(group)), None)

    def _freezer(self, cave_id: str) -> str | None:
        if self.version == 2:
            return self._populated(cave_id)
        return self._group("freezer", cave_id) if "freezer" in self.bases else None

    def _wanted(self, cave_id: str, limits: Limits) -> tuple[str, ...]:
        """The groups a cave needs from its start: v1's cpu and freezer ones cost time, so only when used."""
        unused = (
            () if self.version == 2 else ("freezer", *(("cpu",) if limits.cpus is None else ()))
        )
        roles = [role for role in self.bases if role not in unused]
        return tuple(dict.fromkeys(self._group(role, cave_id) for role in roles))

    def _apply(self, cave_id: str, limits: Limits, *, fresh: bool) -> None:
        """Write the limits; those of a fresh group already are "none"."""
        asked = {"memory": limits.memory_bytes, "pids": limits.pids, "cpu": limits.cpus}
        for role in CONTROLLERS:
            if role not in self.bases or (fresh and asked[role] is None):
                continue
            group = self._group(role, cave_id)
            if role == "memory":
                _limit_memory(group, limits.memory_bytes, self.version)
            elif role == "pids":
                write(f"{group}/pids.max", _or_max(limits.pids))
            elif os.path.isdir(group):
                _limit_cpu(group, limits.cpus, self.version)

    def _gather(self, cave_id: str, group: str) -> None:
        """Bring all of the cave's processes into one more v1 group; their forks are born in it."""
        source = self._populated(cave_id)
        make_group(group)
        seen: set[int] = set()
        for _ in range(100):
            new = set(pids_in(source)) - seen if source else set()
            if not new:
                return
            for pid in new:
                with suppress(ProcessLookupError):
                    write(f"{group}/cgroup.procs", str(pid))
            seen |= new
        raise Conflict("the cave starts processes faster than they can be limited")


@dataclass(frozen=True, slots=True)
class CaveGroup:
    """The group of one cave, by the driver that made it."""

    driver: CgroupDriver
    name: str

    def frozen(self) -> bool:
        return self.driver.frozen(self.name)

    def freeze(self) -> None:
        self.driver.freeze(self.name)

    def thaw(self) -> None:
        self.driver.thaw(self.name)

    def kill(self) -> bool:
        return self.driver.kill(self.name)

    def remove(self) -> bool:
        return self.driver.remove(self.name)

    def usage(self) -> dict[str, Any]:
        return self.driver.usage(self.name)


def _limit_memory(group: str, limit: int | None, version: int) -> None:
    if version == 2:
        with suppress(FileNotFoundError):  # a kernel without swap accounting
            write(f"{group}/memory.swap.max", "max" if limit is None else "0")
        write(f"{group}/memory.max", _or_max(limit))
        return
    both = f"{group}/memory.memsw.limit_in_bytes"  # memory and swap, never below the limit of memory alone
    before = _number(both)
    if before is not None:
        write(both, "-1")
    try:
        write(f"{group}/memory.limit_in_bytes", str(-1 if limit is None else limit))
    except OSError:
        if before is not None:
            write(both, str(before))
        raise
    if before is not None and limit is not None:
        write(both, str(limit))


def _limit_cpu(group: str, cpus: float | None, version: int) -> None:
    quota_us = None if cpus is None else round(cpus * CPU_PERIOD_US)
    if version == 2:
        write(f"{group}/cpu.max", f"{_or_max(quota_us)} {CPU_PERIOD_US}")
    else:
        write(f"{group}/cpu.cfs_quota_us", str(-1 if quota_us is None else quota_us))


def _is_frozen(group: str, version: int) -> bool:
    try:
        if version == 2:
            return "frozen 1" in read(f"{group}/cgroup.events")
        return read(f"{group}/freezer.state") == "FROZEN\n"
    except OSError:
        return False


def _end(pids: list[int], group: str, deadline: float) -> None:
    """SIGKILL some processes of a group and wait for their end.

    Through descriptors, and only after a second look at the group: by now a number may be someone else's.
    """
    targets = {}
    for pid in pids:
        with suppress(OSError):
            targets[pid] = os.pidfd_open(pid)
    poll = select.poll()
    waiting = 0
    try:
        still = set(pids_in(group))
        for pid, fd in targets.items():
            if pid in still:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    poll.register(fd, select.POLLIN)
                    waiting += 1
        while waiting and (left := deadline - monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                poll.unregister(fd)
                waiting -= 1
    finally:
        for fd in targets.values():
            os.close(fd)


def _cpu_s(pid: int) -> float:
    """utime, stime, cutime and cstime of a process: its own time and that of the children it has reaped."""
    try:
        fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(value) for value in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _or_max(value: int | None) -> str:
    return "max" if value is None else str(value)


def _number(path: str) -> int | None:
    try:
        return int(read(path))
    except (OSError, ValueError):
        return None


def _field(path: str, name: str) -> int | None:
    """One ``name number`` line of a file."""
    with suppress(OSError):
        for line in read(path).splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return None
