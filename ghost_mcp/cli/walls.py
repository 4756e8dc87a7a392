# The self-test of `ghost doctor`: a cave is made, and each of its walls is tried. What holds was seen to hold.
"""Tries to cross the walls of a throwaway cave, from inside and by looking at it from outside."""

from __future__ import annotations

import json
import os
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.backends.local.state import StateDir
from ghost_mcp.errors import GhostError
from ghost_mcp.ghost import Ghost
from ghost_mcp.spec import CaveSpec
from ghost_mcp.warden import runtime

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave

__all__ = ["Finding", "try_walls"]

PROBE = Path(__file__).with_name("probe.py")
PROBE_S = 20.0
GONE_S = 3.0
NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
DEVICES = frozenset(
    [
        "console",
        "core",
        "fd",
        "full",
        "null",
        "ptmx",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
        "tty",
        "urandom",
        "zero",
    ]
)
REFUSALS = ("EPERM", "ENOSYS", "EACCES")
SOCKETS = ("/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock")
VARIABLE = "GHOST_DOCTOR_CANARY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report. ``required``: without it Ghost must not be trusted, or does not run."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = True


async def try_walls() -> AsyncIterator[Finding]:
    """Each wall as soon as it was tried. A cave that cannot be made is the one finding."""
    begun = monotonic()
    async with Ghost(backend="local") as ghost:
        try:
            cave = await ghost.create(CaveSpec(ephemeral=True))
        except GhostError as exc:
            yield Finding(name="a cave starts", ok=False, detail=exc.message, fix=exc.hint)
            return
        took_ms = (monotonic() - begun) * 1000
        yield Finding(name="a cave starts", ok=True, detail=f"ready after {took_ms:.0f} ms")
        pid = StateDir().find(cave.id).warden_pid()
        yield _identity(pid)
        with _bait() as bait:
            try:
                met = await _probe(cave, bait.given)
            except (GhostError, ValueError) as exc:
                yield Finding(name="the probe runs", ok=False, detail=str(exc)[:500])
                return
            for finding in _judge(met, reached=bait.reached()):
                yield finding
        if pid is not None:
            with _process(pid) as process:
                await cave.destroy()
                yield await _gone(process)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bait:
    """What lies outside for a cave to find: a file, a variable, two listeners."""

    given: Mapping[str, Any]
    listeners: tuple[socket.socket, ...]

    def reached(self) -> bool:
        """Whether anything connected to a listener."""
        for listener in self.listeners:
            try:
                listener.accept()[0].close()
                return True
            except BlockingIOError:
                continue
        return False


@contextmanager
def _bait() -> Iterator[_Bait]:
    name = f"ghost-doctor-{secrets.token_hex(8)}"
    os.environ[VARIABLE] = name
    with (
        tempfile.NamedTemporaryFile(prefix="ghost-canary-") as temporary,
        tempfile.NamedTemporaryFile(prefix=".ghost-canary-", dir=Path.home()) as at_home,
        socket.create_server(("0.0.0.0", 0)) as tcp,  # noqa: S104  (for a moment, and it answers nothing)
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as abstract,
    ):
        abstract.bind(f"\0{name}")
        abstract.listen(1)
        for listener in (tcp, abstract):
            listener.setblocking(False)
        yield _Bait(
            given={
                "paths": [temporary.name, at_home.name, *SOCKETS, str(StateDir().path)],
                "variables": [VARIABLE],
                "addresses": ["127.0.0.1", *_own_addresses()],
                "port": tcp.getsockname()[1],
                "abstract": name,
                "namespaces": NAMESPACES,
            },
            listeners=(tcp, abstract),
        )
    del os.environ[VARIABLE]


def _own_addresses() -> list[str]:
    """An address of this machine on its network, if it has one. Nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [sock.getsockname()[0]]


async def _probe(cave: Cave, given: Mapping[str, Any]) -> dict[str, Any]:
    python = runtime.argv()[: runtime.argv().index("-c")]
    result = await cave.exec(
        [*python, "-c", PROBE.read_text(encoding="utf-8"), json.dumps(given)], timeout_s=PROBE_S
    )
    if result.exit_code or result.timed_out:
        raise ValueError(result.stderr[-500:] or f"it ended with {result.exit_code}")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _judge(met: Mapping[str, Any], *, reached: bool) -> Iterator[Finding]:
    status = met["status"]
    yield _finding(
        "no privileges",
        [f"{name} is {status[name]}" for name in CAPABILITIES if int(status[name], 16)]
        + (["NoNewPrivs is off"] if status["NoNewPrivs"] != "1" else []),
        "no capability in any set, no new privileges",
    )
    yield _finding(
        "system calls",
        [f"{name}: {error}" for name, error in met["syscalls"].items() if error not in REFUSALS]
        + (["no seccomp filter"] if status["Seccomp"] != "2" else []),
        f"filtered; refused: {', '.join(met['syscalls'])}",
    )
    yield _finding(
        "namespaces",
        [n for n, link in met["namespaces"].items() if link == os.readlink(f"/proc/self/ns/{n}")],
        "its own: " + ", ".join(NAMESPACES),
    )
    yield _finding(
        "kernel settings", met["writable"], "no file of /proc/sys or /sys opens for writing"
    )
    yield _finding("read-only system", met["created"], "no file can be made in /, /usr, /etc, /dev")
    yield _finding(
        "host files",
        [*met["seen"], *met["environment"]],
        "not seen: files, state folder, engine sockets, variables of the host",
    )
    yield _finding(
        "network",
        [where for where, how in met["reach"].items() if how == "reached"]
        + (["a listener of the host was reached"] if reached else [])
        + [name for name in met["interfaces"] if name != "lo"],
        f"only its own loopback; not reached: {', '.join(met['reach'])}",
    )
    yield _finding(
        "devices", sorted(set(met["devices"]) - DEVICES), f"{len(met['devices'])} harmless ones"
    )
    yield _finding(
        "processes",
        [] if len(met["processes"]) <= 2 else [f"{len(met['processes'])} seen"],
        "it sees only its own",
    )


def _finding(name: str, crossed: list[str], holds: str) -> Finding:
    """What was crossed, or what holds."""
    detail = f"CROSSED: {', '.join(crossed[:5])}" if crossed else holds
    return Finding(name=name, ok=not crossed, detail=detail)


@contextmanager
def _process(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _identity(pid: int | None) -> Finding:
    """Who the cave is for the host."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            uid = next(int(line.split()[1]) for line in file if line.startswith("Uid:"))
    except (OSError, StopIteration):
        return Finding(name="identity", ok=False, detail="its first process is not found")
    if uid == 0:
        return Finding(name="identity", ok=False, detail="CROSSED: it is root on the host")
    if uid == os.geteuid():
        return Finding(
            name="identity",
            ok=False,
            required=False,
            detail=f"host user {uid}, as your own programs",
            fix="As root Ghost gives each cave a user of its own.",
        )
    return Finding(name="identity", ok=True, detail=f"host user {uid}, this cave's alone")


async def _gone(process: int) -> Finding:
    """Whether the cave's first process, by its pidfd, has ended: with it the kernel ended the others."""
    with anyio.move_on_after(GONE_S) as scope:
        await anyio.wait_readable(process)
    gone = not scope.cancelled_caught
    return Finding(name="its end", ok=gone, detail="no process left" if gone else "it lives on")
