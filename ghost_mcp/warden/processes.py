"""Starting programs, and ending whole process trees, setsid and double forks included."""

from __future__ import annotations

import _signal
import os

from . import libc
from .program import WardenError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MARK = "GHOST_COMMAND"
_F_DUPFD_CLOEXEC = 1030
_TIOCSCTTY = 0x540E


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
    tty: bool = False,
) -> int:
    """Start a program as leader of a new session; returns its pid.

    ``fds`` maps the child's descriptor to one of ours. The child is a subreaper, so that while it lives
    nothing it started can leave its tree. With ``tty`` descriptor 0 becomes its controlling terminal.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        _become(program, argv, env, cwd, fds, tty)
    except BaseException as exc:  # the child must never return into the loop
        try:
            text = os.strerror(exc.errno or 0) if isinstance(exc, OSError) else type(exc).__name__
            os.write(2, f"ghost: cannot run {program}: {text}\n".encode())
        finally:
            os._exit(126)
    os._exit(126)


def _become(
    program: str, argv: list[str], env: dict[str, str], cwd: str, fds: dict[int, int], tty: bool
) -> None:
    import fcntl

    os.setsid()
    high = {target: fcntl.fcntl(fd, _F_DUPFD_CLOEXEC, 64) for target, fd in fds.items()}
    for target, fd in high.items():
        os.dup2(fd, target)
    if tty:
        fcntl.ioctl(0, _TIOCSCTTY, 0)
    for number in (
        _signal.SIGPIPE,
        _signal.SIGXFSZ,
    ):  # Python ignores these two; programs expect them
        _signal.signal(number, _signal.SIG_DFL)
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(libc.PR_SET_DUMPABLE, 1)
    _volunteer()
    os.umask(0o022)
    os.chdir(cwd)
    os.execve(program, argv, env)


def _volunteer() -> None:
    """Be ended before the warden when memory runs out; where the kernel refuses, the default stays."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(fd, b"500")
    except OSError:
        pass
    finally:
        os.close(fd)


def _parents() -> dict[int, int]:
    """pid -> parent's pid of every live process (zombies left out)."""
    table = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            fd = os.open(f"/proc/{entry}/stat", os.O_RDONLY)
        except OSError:
            continue
        try:
            fields = os.read(fd, 1024).rpartition(b")")[2].split()
        except OSError:
            continue
        finally:
            os.close(fd)
        if len(fields) > 1 and fields[0] not in (b"Z", b"X"):
            table[int(entry)] = int(fields[1])
    return table


def _marked(pid: int, mark: bytes) -> bool:
    try:
        fd = os.open(f"/proc/{pid}/environ", os.O_RDONLY)
    except OSError:
        return False
    try:
        return mark in os.read(fd, 1 << 20)
    except OSError:
        return False
    finally:
        os.close(fd)


def tree(root: int, mark: str, *, include_root: bool = True) -> set[int]:
    """Live processes below ``root``, plus orphans that still carry ``mark`` in their environment."""
    parents = _parents()
    own = os.getpid()
    needle = f"{MARK}={mark}\0".encode() if mark else b""
    found = {root} & set(parents)
    grew = True
    while grew:
        grew = False
        for pid, parent in parents.items():
            if pid not in found and pid != own and parent in found:
                found.add(pid)
                grew = True
    if needle:
        found |= {
            pid
            for pid, parent in parents.items()
            if parent == own and pid not in found and _marked(pid, needle)
        }
    return found if include_root else found - {root}


def signal_tree(root: int, mark: str, number: int, *, include_root: bool = True) -> int:
    """Send a signal to the whole tree; returns how many processes it reached."""
    reached = 0
    for pid in tree(root, mark, include_root=include_root):
        reached += _send(pid, number)
    return reached


def kill_tree(root: int, mark: str, *, include_root: bool = True) -> None:
    """End the whole tree. Stopping everything first keeps a fork bomb from outrunning the scan."""
    for _ in range(64):
        found = tree(root, mark, include_root=include_root)
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
