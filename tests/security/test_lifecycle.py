"""Lifecycle, group L: caves end when they should, wholly, whatever happens to whom."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from ghost_mcp import CaveSpec, Ghost, GhostError, Limits, State
from ghost_mcp.backends.local import backend as local
from ghost_mcp.backends.local.backend import LocalBackend
from ghost_mcp.backends.local.state import FIRST_UID, UIDS, CaveDir
from ghost_mcp.errors import CaveNotFound
from ghost_mcp.spec import CaveInfo
from ghost_mcp.testing.basis import until
from tests.security.lives import destroyed_by_many, made_in_a_thread
from tests.security.racing import races
from tests.security.results import LONG

# What is promised, where nothing else is done meanwhile; else that it comes at all.
GONE_S = 3 if LONG else 30
MAKER = Path(__file__).parent / "maker.py"
SEED = 20_261_123


def survivors(state: Path) -> list[int]:
    """Live processes of this state folder's caves: their outer bubblewrap, or a user of the caves' range."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if not entry.isdigit() or _state_of(entry) in "ZX":
                continue
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
            mine = f"{state}/caves".encode() in command or f"{state}/pool".encode() in command
            if mine and b"maker.py" not in command:
                found.append(int(entry))
        except OSError:
            continue
    return found


def _state_of(entry: str) -> str:
    return Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]


def cave_users() -> set[int]:
    """Host users of the caves' range that have live processes."""
    found = set()
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and _state_of(entry) not in "ZX":
                uid = Path(f"/proc/{entry}").stat().st_uid
                if FIRST_UID <= uid < FIRST_UID + UIDS:
                    found.add(uid)
        except OSError:
            continue
    return found


async def nobody_lives(state: Path) -> None:
    deadline = time.monotonic() + GONE_S
    while survivors(state) and time.monotonic() < deadline:
        await anyio.sleep(0.05)
    assert survivors(state) == []


def own_dir(state_dir: Path, name: str) -> Path:
    folder = state_dir / name
    folder.mkdir(mode=0o711, exist_ok=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(500 if LONG else 8))
async def test_l1_l2_kill_9_of_the_hub(state_dir: Path, round_: int) -> None:
    """At a random moment of creating, working and destroying: nothing lives on, and a new Ghost finds nothing and
    leaves nothing."""
    state = own_dir(state_dir, f"killed-{round_}")
    command = [sys.executable, str(MAKER), str(state), "6"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline().startswith("made")
        time.sleep(random.Random(SEED + round_).uniform(0, 0.5))
        maker.kill()
    await nobody_lives(state)
    mounts = Path("/proc/self/mounts").read_text()
    assert str(state) not in mounts
    async with Ghost(backend="local", state_dir=state) as ghost:
        assert await ghost.list() == []
        backend = await ghost.backend()
        assert isinstance(backend, LocalBackend)
        assert list((state / "caves").iterdir()) == []
        prefix = f"{backend.state.instance}-"

        async def no_group() -> bool:  # what has just ended may hold its own for a moment
            await ghost.list()
            return not any(group.startswith(prefix) for group in backend._cgroups.list())

        await until(no_group)


async def test_l2_a_cave_that_is_not_ephemeral_survives_its_maker(state_dir: Path) -> None:
    """Another Ghost finds it, with every acknowledged write."""
    state = own_dir(state_dir, "survives")
    async with Ghost(backend="local", state_dir=state) as first:
        made = await first.create(CaveSpec(name="keeper"))
        await made.write("note", "kept")
    async with Ghost(backend="local", state_dir=state) as second:
        assert [info.name for info in await second.list()] == ["keeper"]
        found = await second.get("keeper")
        assert (await found.read("note")).data == b"kept"
        await found.destroy()


async def test_l3_destroy_is_idempotent(ghost: Ghost) -> None:
    victim = await destroyed_by_many(ghost)
    backend = await ghost.backend()
    assert isinstance(backend, LocalBackend)
    assert not backend.state.cave(victim.id).path.exists()


@pytest.mark.slow
async def test_l4_races(state_dir: Path) -> None:
    """Random interleavings of create, exec and destroy end with nothing left."""
    state = own_dir(state_dir, "races")
    async with Ghost(backend="local", state_dir=state, pool_size=2) as ghost:
        await races(ghost, seed=SEED, racers=50, steps=10, names=8)
    assert survivors(state) == []
    assert list((state / "caves").iterdir()) == []
    assert list((state / "pool").iterdir()) == []
    assert list((state / "names").iterdir()) == []


@pytest.mark.parametrize("step", ["_lay_out", "_launch", "_await_start", "_record"])
async def test_l4_a_fault_at_each_step_of_creating_leaves_nothing(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    state = own_dir(state_dir, f"fault-{step}")

    def fault(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    async with Ghost(backend="local", state_dir=state) as ghost:
        await ghost.backend()
        with monkeypatch.context() as patch:
            patch.setattr(local.LocalBackend, step, fault)
            with pytest.raises(GhostError) as caught:
                await ghost.create(CaveSpec(name="faulty"))
            assert caught.value.code == "no_space"
        assert await ghost.list() == []
        again = await ghost.create(CaveSpec(name="faulty"))
        assert (await again.exec(["true"])).exit_code == 0
        await again.destroy()
    assert survivors(state) == []


async def test_l6_a_cave_made_in_a_thread_that_ends_lives_on(state_dir: Path) -> None:
    state = own_dir(state_dir, "threads")
    await made_in_a_thread(lambda: Ghost(backend="local", state_dir=state))


async def test_a_cave_ends_at_its_deadline_without_any_hub(state_dir: Path) -> None:
    state = own_dir(state_dir, "deadline")
    async with Ghost(backend="local", state_dir=state) as ghost:
        await ghost.create(CaveSpec(name="short", timeout_s=0.5))
    await nobody_lives(state)
    async with Ghost(backend="local", state_dir=state) as ghost:
        assert (await ghost.get("short")).info.state is State.ENDED
        await ghost.destroy("short")


async def test_a_group_that_is_just_being_made_is_not_swept(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another hub makes a cave in the moment in which this one has looked at the caves there are."""
    async with LocalBackend(own_dir(state_dir, "swept")) as backend:
        if not backend._cgroups.bases:
            pytest.skip("not run: no cgroup is delegated here")
        new = backend.state.cave(CaveSpec().id)
        name = f"{backend.state.instance}-{new.id}"
        look = backend.state.all

        def all_but_the_new(*, prepared: bool = False) -> list[CaveDir]:
            found = look(prepared=prepared)
            new.path.mkdir()
            backend._cgroups.create(name, Limits())
            return found

        with monkeypatch.context() as patch:
            patch.setattr(backend.state, "all", all_but_the_new)
            backend._sweep_groups()
        assert name in backend._cgroups.list()
        new.path.rmdir()
        backend._sweep_groups()
        assert name not in backend._cgroups.list()


async def test_a_cave_that_is_just_being_made_is_not_swept_away(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process looks at the caves after the new one's folder is there, and before it is locked."""
    state = own_dir(state_dir, "swept-away")
    async with LocalBackend(state) as other, LocalBackend(state) as maker:
        make, looks = maker._make_all, list[list[CaveInfo]]()

        async def make_when_looked_at(
            cave: CaveDir, spec: CaveSpec, secrets: Mapping[str, bytes]
        ) -> CaveInfo:
            if not looks:
                looks.append(await other.list())
                assert not cave.path.exists()
            return await make(cave, spec, secrets)

        monkeypatch.setattr(maker, "_make_all", make_when_looked_at)
        made = await maker.create(CaveSpec(name="new"))
        assert looks == [[]]
        assert [info.id for info in await other.list()] == [made.id]
        await maker.destroy(made.id)


async def test_a_lock_of_a_folder_that_was_swept_is_none(state_dir: Path) -> None:
    async with LocalBackend(own_dir(state_dir, "unlocked")) as backend:
        cave = backend.state.cave(CaveSpec().id)
        cave.path.mkdir()
        held = cave.try_lock()
        assert held is not None
        assert cave.try_lock() is None
        backend.state.discard(cave)
        os.close(held)
        with pytest.raises(CaveNotFound):
            cave.try_lock()


DEEP = "import os\nfor _ in range(3000): os.mkdir('d' * 200); os.chdir('d' * 200)\nopen('f', 'w')"


async def test_a_tree_deeper_than_any_path_goes_with_its_cave(state_dir: Path) -> None:
    """And holds nobody up who looks at the caves meanwhile."""
    state = own_dir(state_dir, "deep")
    async with Ghost(backend="local", state_dir=state) as ghost:
        cave = await ghost.create(CaveSpec(name="deep"))
        assert (await cave.exec(["python3", "-c", DEEP])).exit_code == 0
        await cave.destroy()
        assert await ghost.list() == []
    assert list((state / "gone").iterdir()) == []


async def test_a_number_that_is_no_process_any_more_holds_no_end_up(state_dir: Path) -> None:
    """A thread's stands for a warden's that is just being reaped: to the kernel neither is a process."""
    state, done = own_dir(state_dir, "reaped"), threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        async with Ghost(backend="local", state_dir=state) as ghost:
            cave = await ghost.create(CaveSpec(name="reaped"))
            (state / "caves" / cave.id / "info.json").write_text(
                json.dumps({"child-pid": thread.native_id})
            )
            await cave.destroy()
            assert await ghost.list() == []
    finally:
        done.set()
        thread.join()
    assert survivors(state) == []


async def test_a_full_state_disk_is_a_clear_error(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Ghost(backend="local", state_dir=state_dir) as ghost:
        await ghost.backend()
        monkeypatch.setattr(os, "posix_spawn", _no_more_processes)
        with pytest.raises(GhostError) as caught:
            await ghost.create(CaveSpec(ephemeral=True))
        assert caught.value.code in ("limit_exceeded", "backend_unavailable")


def _no_more_processes(*_: object, **__: object) -> int:
    raise BlockingIOError(11, "Resource temporarily unavailable")
