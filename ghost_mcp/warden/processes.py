"""Starting programs, and ending whole process trees, setsid and double forks included."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from time import clock_gettime

from . import program
from .peers import WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

workers: set[int] = set()  # children of ours that no command started
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MARK = "GHOST_COMMAND"
# Python ignores these two; programs expect them.
_DEFAULT_SIGNALS = (_signal.SIGPIPE, _signal.SIGXFSZ)
_SPARE = 200
_CLOCK_BOOTTIME = 7


def find_program(name: str, env: dict[str, str], cwd: str) -> str:
    """The file that ``name`` stands for. Raises program_not_found, or permission_refused."""
    if "/" in name:
        path = os.path.join(cwd, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
        if os.path.exists(path):
            raise WardenError(
                "permission_refused",
                f"not an executable program: {name[:200]}",
                f"chmod +x {name[:200]}",
            )
    else:
        for folder in env.get("PATH", DEFAULT_PATH).split(":"):
            path = os.path.join(cwd, folder, name)
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
    raise WardenError("program_not_found", f"no such program in the cave: {name[:200]}")


def find_shell(env: dict[str, str]) -> str:
    """bash when the cave has it, else sh. Raises program_not_found."""
    for name in ("bash", "sh"):
        try:
            return find_program(name, env, "/")
        except WardenError:
            continue
    raise WardenError(
        "program_not_found",
        "this cave has no shell",
        "Give command as a list: program and arguments.",
    )


def spawn(
    program: str,
    argv: list[str],
    env: dict[str, str],
    cwd: str,
    fds: dict[int, int],
    *,
    terminal: str = "",
) -> int:
    """Start a program as leader of a new session; returns its pid.

    ``fds`` maps the child's descriptor to one of ours; with ``terminal``, the path of a pseudo terminal,
    descriptors 0 to 2 are that instead. posix_spawn, because it does not copy this process: a fork of it
    costs twice a whole small program. Raises OSError or invalid_argument when it cannot be run.
    """
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
    if terminal:
        # The first terminal a session leader opens becomes its controlling one.
        actions += [(os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
    # Through numbers that no target has, so that no pair overwrites another's source.
    actions += [(os.POSIX_SPAWN_DUP2, fd, _SPARE + target) for target, fd in fds.items()]
    actions += [(os.POSIX_SPAWN_DUP2, _SPARE + target, target) for target in fds]
    actions += [(os.POSIX_SPAWN_CLOSE, _SPARE + target) for target in fds]
    os.chdir(cwd)  # the child starts where we are; nothing else here depends on it
    _volunteer(b"500")
    try:
        return os.posix_spawn(
            program, argv, env, file_actions=actions, setsid=True, setsigdef=_DEFAULT_SIGNALS
        )
    except ValueError:  # a NUL byte, a name with "=", half a character
        what = "its arguments or environment hold what no program can be given"
        raise WardenError("invalid_argument", f"cannot run {argv[0][:200]}: {what}") from None
    finally:
        _volunteer(b"0")
        os.chdir("/")


def _volunteer(score: bytes) -> None:
    """What we start inherits our score, and is ended before us when the cave's memory runs out."""
    if program.oom_score_fd >= 0:
        os.pwrite(program.oom_score_fd, score, 0)


class _Seen:
    """One scan of /proc: each live process's parent and start, in clock ticks since the machine's start."""

    def __init__(self) -> None:
        self.parent: dict[int, int] = {}
        self.started: dict[int, int] = {}
        for entry in os.listdir("/proc"):
            fields = _stat(entry) if entry.isdigit() else []
            if len(fields) > 19 and fields[0] not in (b"Z", b"X"):
                self.parent[int(entry)] = int(fields[1])
                self.started[int(entry)] = int(fields[19])


def _stat(entry: str) -> list[bytes]:
    """The fields of /proc/PID/stat after the name; proc_pid_stat(5)."""
    raw = _contents(f"/proc/{entry}/stat", 1024)
    return raw.rpartition(b")")[2].split()


def _contents(path: str, limit: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, limit)
    except OSError:
        return b""
    finally:
        os.close(fd)


def ticks() -> int:
    """Now, as /proc counts the start of processes."""
    return int(clock_gettime(_CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


class Tree:
    """The processes that one command started: those below ``root``, and orphans that came from there.

    An orphan is known by the mark in its environment. One that cleared its environment is taken only when
    ``alone()`` says that no other command runs that it could belong to. Orphans older than ``since`` belong
    to what ran before. Without ``include_root`` the root is a shell that goes on after the command.
    """

    def __init__(
        self,
        root: int,
        mark: str,
        since: int,
        alone: Callable[[], bool],
        *,
        include_root: bool = True,
    ) -> None:
        self.root, self.since, self.alone, self.include_root = root, since, alone, include_root
        self.mark = f"{MARK}={mark}\0".encode()
        self._until: int | None = None

    def finished(self) -> None:
        """The command has ended. Its process number may be another's from now on; what a shell starts from
        now on belongs to other commands."""
        if self.include_root:
            self.root = 0
        else:
            self._until = ticks()

    def pids(self) -> list[int]:
        """Who is alive now, each before what it started."""
        seen = _Seen()
        level = {pid for pid in seen.parent if self._strayed(seen, pid)}
        if self.include_root:
            level |= {self.root} & set(seen.parent)
        else:  # a shell's earlier jobs are not this command's
            level |= {
                p
                for p, up in seen.parent.items()
                if up == self.root and self._in_time(seen.started[p])
            }
        found: dict[int, None] = {}
        while level:
            found |= dict.fromkeys(level)
            level = {pid for pid, parent in seen.parent.items() if parent in found} - found.keys()
        return list(found)

    def _strayed(self, seen: _Seen, pid: int) -> bool:
        if (
            seen.parent[pid] != os.getpid()
            or pid == self.root
            or pid in workers
            or not self._in_time(seen.started[pid])
        ):
            return False
        environ = _contents(f"/proc/{pid}/environ", 1 << 20)
        if f"{MARK}=".encode() in environ:
            return self.mark in environ
        return self.alone()

    def _in_time(self, started: int) -> bool:
        return self.since <= started and (self._until is None or started <= self._until)

    def signal(self, number: int) -> int:
        """Send a signal to all; returns how many it reached.

        A shell hears of it before its programs end by it: it would take their end for its own work's.
        """
        return sum(_send(pid, number) for pid in self.pids())

    def kill(self) -> None:
        """End all. Stopping everything first keeps a fork bomb from outrunning the scan."""
        for _ in range(64):
            found = self.pids()
            if not found:
                return
            for pid in found:
                _send(pid, _signal.SIGSTOP)
            for pid in found:
                _send(pid, _signal.SIGKILL)


def _send(pid: int, number: int) -> int:
    try:
        os.kill(pid, number)
    except OSError:
        return 0
    return 1


def exit_code(status: int) -> int:
    """A wait status as shells say it: the exit code, or 128 + the signal's number."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
