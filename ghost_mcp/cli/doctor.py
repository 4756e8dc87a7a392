# What this machine has, what it lacks and the exact way to get it; then a cave's walls are tried.
"""``ghost doctor``."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from ghost_mcp.backends.local.cgroups import detect
from ghost_mcp.backends.local.launch import ENVIRONMENT, require_bwrap
from ghost_mcp.backends.local.seccomp import filter_bytes
from ghost_mcp.backends.local.state import StateDir
from ghost_mcp.cli.walls import Finding, try_walls
from ghost_mcp.errors import GhostError
from ghost_mcp.reply import size_text

if TYPE_CHECKING:
    import argparse

    from ghost_mcp.cli.output import Output

__all__ = ["run"]

ENOUGH_DISK = 1 << 30
# program: (what it is for, Debian's package)
PROGRAMS = {
    "python3": ("code in Python, documents", "python3"),
    "bash": ("shell sessions", "bash"),
    "chromium": ("the browser tools", "chromium"),
    "rg": ("fast search", "ripgrep"),
    "node": ("code in JavaScript", "nodejs"),
    "git": ("git in caves", "git"),
}


def run(options: argparse.Namespace, out: Output) -> int:
    """Exit code 0 only when all that is required holds; the walls are tried only then."""
    report = _Report(out)
    for finding in _machine():
        report.add("machine", finding)
    for finding in _programs():
        report.add("programs for caves", finding)
    if report.healthy:
        anyio.run(_walls, report)
    report.conclude()
    return 0 if report.healthy else 1


async def _walls(report: _Report) -> None:
    async for finding in try_walls():
        report.add("a cave's walls, tried", finding)


class _Report:
    """Findings in groups, each told when it is there."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._found: list[tuple[str, Finding]] = []

    @property
    def healthy(self) -> bool:
        return all(finding.ok or not finding.required for _, finding in self._found)

    def add(self, group: str, finding: Finding) -> None:
        if not any(known == group for known, _ in self._found):
            self._out.line(f"{group}:")
        self._found.append((group, finding))
        mark = "ok  " if finding.ok else "FAIL" if finding.required else "--  "
        self._out.line(f"  {mark} {finding.name:<17} {finding.detail}")
        if not finding.ok and finding.fix:
            self._out.line(f"       {'':<17} {finding.fix}")

    def conclude(self) -> None:
        if self._out.json:
            checks = [{"group": group, **asdict(finding)} for group, finding in self._found]
            self._out.document({"ok": self.healthy, "checks": checks})
        elif self.healthy:
            self._out.line("all that is required holds")
        else:
            self._out.line("something that is required is missing")


# --- the machine --------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    system = os.uname()
    yield Finding(
        name="system",
        ok=sys.platform == "linux",
        detail=f"{system.sysname} {system.release} {system.machine}",
        fix="Local caves need Linux; use the docker backend here.",
    )
    yield _tried("bubblewrap", lambda: require_bwrap())
    yield _user_namespaces()
    yield _tried(
        "seccomp filter", lambda: f"{len(filter_bytes()) // 8} instructions for {system.machine}"
    )
    yield _limits()
    yield from _state()


def _tried(name: str, what: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, ok=True, detail=what())
    except GhostError as exc:
        return Finding(name=name, ok=False, detail=exc.message, fix=exc.hint)


def _user_namespaces() -> Finding:
    """What the kernel's switches say; whether they work is seen when a cave starts."""
    if _setting("user/max_user_namespaces") == "0":
        off = "user.max_user_namespaces", "10000"
    elif _setting("kernel/unprivileged_userns_clone") == "0":
        off = "kernel.unprivileged_userns_clone", "1"
    elif _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return Finding(
            name="user namespaces",
            ok=False,
            required=False,
            detail="AppArmor lets only programs with a profile make them",
            fix="If no cave starts: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    else:
        return Finding(name="user namespaces", ok=True, detail="allowed by the kernel's settings")
    return Finding(
        name="user namespaces",
        ok=False,
        detail=f"switched off by {off[0]}",
        fix=f"sysctl -w {off[0]}={off[1]}",
    )


def _setting(path: str) -> str:
    try:
        return Path("/proc/sys", path).read_text().strip()
    except OSError:
        return ""


def _limits() -> Finding:
    """Which limits hold here; without any a cave still runs, and says so."""
    driver = detect()
    missing = [role for role in ("memory", "pids", "cpu", "freezer") if role not in driver.bases]
    have = list(driver.bases)
    if not missing:
        return Finding(
            name="limits", ok=True, detail=f"cgroup v{driver.version}: {', '.join(have)}"
        )
    return Finding(
        name="limits",
        ok=False,
        required=False,
        detail=f"not enforced by cgroups: {', '.join(missing)}",
        fix="As root all are; else: systemd-run --user --scope -p Delegate=yes ghost ...",
    )


def _state() -> Iterator[Finding]:
    state = StateDir()
    try:
        state.prepare()
    except GhostError as exc:
        yield Finding(name="state folder", ok=False, detail=exc.message, fix=exc.hint)
        return
    yield Finding(
        name="state folder",
        ok=os.access(state.path, os.W_OK),
        detail=str(state.path),
        fix="Set GHOST_STATE_DIR to a folder you own.",
    )
    free = shutil.disk_usage(state.path).free
    yield Finding(
        name="disk",
        ok=free >= ENOUGH_DISK,
        required=False,
        detail=f"{size_text(free)} free",
        fix=f"Caves keep their files in {state.path}: make room there.",
    )


# --- what caves will find -----------------------------------------------------------------------


def _programs() -> Iterator[Finding]:
    path = ":".join(p for p in ENVIRONMENT["PATH"].split(":") if not p.startswith("/home"))
    for name, (purpose, package) in PROGRAMS.items():
        found = shutil.which(name, path=path)
        yield Finding(
            name=name,
            ok=found is not None,
            required=False,
            detail=f"{found}: {purpose}" if found else f"missing, for {purpose}",
            fix=f"apt-get install {package}",
        )
    if os.geteuid() == 0:
        made = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin")
        yield Finding(
            name="mkfs.ext4",
            ok=made is not None,
            required=False,
            detail=f"{made}: disk limits" if made else "missing, for disk limits",
            fix="apt-get install e2fsprogs",
        )
    yield _engine()


def _engine() -> Finding:
    """Whether there is a container engine for this user; it is not asked anything."""
    sockets = ("/var/run/docker.sock", "/run/docker.sock")
    found = os.environ.get("DOCKER_HOST") or next(filter(os.path.exists, sockets), "")
    if found in sockets and not os.access(found, os.W_OK):
        return Finding(
            name="docker",
            ok=False,
            required=False,
            detail=f"{found} is not open to you",
            fix="usermod -aG docker USER lets you, and is as much as being root here.",
        )
    detail = found or "none; only the docker backend needs one"
    return Finding(name="docker", ok=bool(found), required=False, detail=detail)
