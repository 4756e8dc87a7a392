"""Caves of bubblewrap keep the contract."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from ghost_mcp.backends.base import Backend
from ghost_mcp.backends.local.backend import LocalBackend
from ghost_mcp.backends.local.cgroups import detect
from ghost_mcp.backends.local.state import StateDir
from ghost_mcp.spec import CaveInfo
from ghost_mcp.testing import BackendContract

# The cave's own part of its folder: what its programs write there is theirs.
OWN = ("run", "home", "workspace")


class TestLocal(BackendContract):
    refused = (
        {"image": "/no/such/tree"},
        {"image": "relative"},
        {"workspace": "/no/such/folder"},
        {"mounts": {"/data": "/no/such/file"}},
        {"env": {"KEY": "x"}, "secrets": ["KEY"]},
    )

    @pytest.fixture(autouse=True)
    def _state(self, state_dir: Path) -> None:
        self.folders = StateDir(state_dir)
        # What no cgroup was delegated for, as to an ordinary user, cannot be had.
        driver = detect()
        self.can_pause = driver.version == 2 or "freezer" in driver.bases
        told = {"memory": "memory_bytes", "pids": "pids"}
        self.measures = frozenset(told[role] for role in told if role in driver.bases)

    def make(self) -> Backend:
        return LocalBackend(self.folders.path)

    def elsewhere(self) -> str:
        return (
            "from pathlib import Path\n"
            "from ghost_mcp.backends.local.backend import LocalBackend\n"
            f"def make(): return LocalBackend(Path({str(self.folders.path)!r}))\n"
        )

    async def crash(self, info: CaveInfo) -> None:
        pid = self.folders.find(info.id).warden_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    async def engine_shows(self, info: CaveInfo) -> str:
        folder = self.folders.find(info.id).path
        files = [p for p in folder.rglob("*") if p.relative_to(folder).parts[0] not in OWN]
        shown = [p.read_text("utf-8", "replace") for p in files if p.is_file()]
        pid = self.folders.find(info.id).warden_pid()
        for name in ("cmdline", "environ"):
            with suppress(PermissionError):  # the environment is closed even to its own user
                shown.append(Path(f"/proc/{pid}/{name}").read_bytes().decode("utf-8", "replace"))
        return "\n".join(shown)

    async def leftovers(self, cave_id: str) -> list[str]:
        state = self.folders
        names = [name.name for name in state.names.iterdir() if state.holder(name.name) == cave_id]
        folders = [str(cave.path) for cave in state.all(prepared=True) if cave.id == cave_id]
        groups = [group for group in detect().list() if cave_id in group]
        return names + folders + groups
