"""A hub under stress, group L: what runs out is told, others go on, and so does the hub when there is room again."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from ghost_mcp import CaveSpec, Ghost, PoolPlan, State
from ghost_mcp.backends.local.backend import LocalBackend
from ghost_mcp.errors import BackendUnavailable
from ghost_mcp.testing.basis import until
from tests.security.lives import answers

PROGRAM = Path(__file__).with_name("stressed.py")
PATIENCE_S = 100
DAY_S = 86_400.0
SHORT_S = 3.0  # by then a cave is made, on a busy machine too
MOUNT = 'mount -t tmpfs -o size=64m,mode=711 none "$STATE" && exec "$@"'
#: What begins a program with a small disk of its own at $STATE, in a namespace that takes it along.
SMALL_DISK = ("unshare", "--mount", "sh", "-c", MOUNT, "sh")


def stressed(
    state_dir: Path, what: str, codes: list[str], *before: str, backend: str = "local", **env: str
) -> None:
    """A hub of that backend runs out of ``what``: a create is refused with ``codes``, and all else holds."""
    state = state_dir / f"stress-{secrets.token_hex(3)}"
    state.mkdir(mode=0o711)
    done = subprocess.run(
        [*before, sys.executable, str(PROGRAM), what, str(state), backend],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "STATE": str(state), **env},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert told == {
        "codes": codes,
        "answered": "answers\nagain\n",
        "note": "kept",
        "left": 0,
    }


def test_l5_out_of_descriptors(state_dir: Path) -> None:
    stressed(state_dir, "files", ["limit_exceeded"])


@pytest.mark.skipif(os.geteuid() != 0, reason="not run: only root can mount a small disk")
def test_l5_the_disk_is_full(state_dir: Path) -> None:
    stressed(state_dir, "disk", ["no_space"], *SMALL_DISK)
    stressed(state_dir, "newcomer", ["no_space"], *SMALL_DISK)


def set_clock(patch: pytest.MonkeyPatch, by_s: float) -> None:
    """Set this process's clock, as a person or a time server would."""
    real = time.time
    patch.setattr(time, "time", lambda: real() + by_s)


async def test_l5_a_clock_that_is_set_ends_no_cave(
    ghost: Ghost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day on, a day back: a cave lives as many seconds as it was given, and nothing of it is swept before."""
    cave = await ghost.create(CaveSpec(ephemeral=True, timeout_s=3600))
    shorts: set[str] = set()

    async def running() -> set[str]:
        return {info.id for info in await ghost.list() if info.state is State.RUNNING}

    for by_s in (DAY_S, -DAY_S):
        with monkeypatch.context() as patch:
            set_clock(patch, by_s)
            assert cave.id in await running()
            left = await (await ghost.backend()).leftovers(remove=False)
            assert not [one for one in left if cave.id in one]
            assert await answers(cave)
            short = await ghost.create(CaveSpec(ephemeral=True, timeout_s=SHORT_S))
            shorts.add(short.id)

    async def over() -> bool:
        return not shorts & await running()

    await until(over)
    assert await answers(cave)
    await cave.destroy()


async def test_l5_an_engine_that_is_away_when_a_pool_shrinks_ends_no_hub(state_dir: Path) -> None:
    asked = anyio.Event()

    class Away(LocalBackend):
        async def destroy(self, cave_id: str) -> None:
            if not asked.is_set():
                asked.set()
                raise BackendUnavailable("the engine is away for a moment")
            await super().destroy(cave_id)

    state = state_dir / "away"
    state.mkdir(mode=0o711)
    async with Ghost(backend=Away(state), pools=[PoolPlan(size=1, idle_s=0.1)]) as ghost:
        with anyio.fail_after(60):
            await ghost.warm()
            await asked.wait()
        cave = await ghost.create(CaveSpec(ephemeral=True))
        assert await answers(cave)
