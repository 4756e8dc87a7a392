"""The fake backend keeps the contract, says what it is, and is never taken for a real one."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import anyio
import psutil
import pytest

from ghost_mcp import CaveSpec, Ghost
from ghost_mcp.backends.base import Backend
from ghost_mcp.backends.fake import FakeBackend
from ghost_mcp.backends.registry import find_backend
from ghost_mcp.errors import InvalidArgument
from ghost_mcp.testing import BackendContract
from ghost_mcp.testing.basis import PATIENCE_S

# Makes a cave with a program that has left its session, says both their pids and its folder, and stays.
_MAKER = """
import asyncio
from ghost_mcp import Ghost
from ghost_mcp.backends.fake import FakeBackend

async def main():
    async with Ghost(backend=FakeBackend()) as ghost:
        cave = await ghost.create()
        line = "setsid sleep 1000 >/dev/null 2>&1 & echo $PPID $! $PWD"
        print((await cave.exec(line)).stdout, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


class TestFake(BackendContract):
    persistent = False
    can_pause = False
    measures = frozenset()
    python = (sys.executable, "-c")
    refused = (
        {"network": {"mode": "allow", "allow": ["example.org"]}},
        {"network": {"mode": "open"}},
        {"image": "/"},
        {"workspace": "/tmp"},
        {"mounts": {"/data": "/tmp"}},
        {"limits": {"disk_bytes": 1 << 30}},
    )

    @pytest.fixture(autouse=True)
    def _first(self) -> None:
        self.first = FakeBackend()

    def make(self) -> Backend:
        return FakeBackend(beside=self.first)

    async def leftovers(self, cave_id: str) -> list[str]:
        return [cave for cave in self.first._caves if cave == cave_id]

    async def test_it_claims_no_protection(self) -> None:
        async with self.cave() as cave:
            assert not any(line.enforced for line in cave.info.assurance.values())

    async def test_programs_do_not_see_our_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOKEN_OF_THE_TEST", "x")
        async with self.cave() as cave:
            assert "TOKEN_OF_THE_TEST" not in (await cave.exec(["env"])).stdout


async def test_no_name_leads_to_it() -> None:
    with pytest.raises(InvalidArgument):
        find_backend("fake")
    with pytest.raises(InvalidArgument):
        async with Ghost(backend="fake"):
            pass
    async with Ghost() as ghost:
        with pytest.raises(InvalidArgument):
            await ghost.create(CaveSpec(backend="fake"))


async def test_leaving_the_first_view_ends_all_and_removes_their_folders() -> None:
    async with FakeBackend() as backend:
        async with Ghost(backend=FakeBackend(beside=backend)) as ghost:
            cave = await ghost.create()
            folder = Path((await cave.exec("pwd")).stdout.strip()).parent
            warden = psutil.Process(int((await cave.exec("echo $PPID")).stdout))
        assert warden.is_running()
    assert not folder.exists()
    assert not warden.is_running()


async def test_when_the_process_is_killed_its_caves_and_their_programs_end() -> None:
    async with await anyio.open_process([sys.executable, "-c", _MAKER]) as maker:
        assert maker.stdout is not None
        with anyio.fail_after(PATIENCE_S):
            said = b""
            while b"\n" not in said:
                said += await maker.stdout.receive()
        *pids, workspace = said.decode().split()
        processes = [psutil.Process(int(pid)) for pid in pids]
        assert len(processes) == 2
        os.kill(maker.pid, signal.SIGKILL)
    _, alive = await anyio.to_thread.run_sync(psutil.wait_procs, processes, PATIENCE_S)
    assert alive == []
    shutil.rmtree(Path(workspace).parent)  # which nobody was left to do
