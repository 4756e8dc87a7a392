"""The walls of a docker cave: what is tried on local caves, where it means the same, and what is docker's own."""

from __future__ import annotations

import random
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import docker
import pytest

from ghost_mcp import Cave, CaveSpec, Ghost, GhostError, State
from ghost_mcp.backends.docker import container
from ghost_mcp.backends.docker.backend import DockerBackend
from ghost_mcp.backends.docker.running import Containers
from ghost_mcp.errors import BackendUnavailable
from ghost_mcp.testing.basis import until
from tests.conftest import held
from tests.security.lives import answers, destroyed_by_many, made_in_a_thread
from tests.security.racing import races
from tests.security.results import LONG
from tests.security.shortages import without_files
from tests.security.test_files import (  # noqa: F401 - collected here
    canary,
    cut_off_writes,
    test_f1_names_that_only_look_like_traversal_are_names,
    test_f1_traversal,
    test_f1_what_is_no_path,
    test_f2_symlinks_lead_nowhere_outside,
    test_f3_a_path_that_changes_while_it_is_used,
    test_f4_archives_stay_in_their_folder,
    test_f5_odd_files,
    test_f6_fifty_editors_lose_nothing,
    test_modes_survive_an_overwrite_and_setuid_does_not,
)
from tests.security.test_isolation import (  # noqa: F401 - collected here
    canaries,
    listener,
    test_i1_identity,
    test_i2_no_sysctl_can_be_written,
    test_i3_syscalls_are_refused_and_programs_still_run,
    test_i4_nothing_of_the_host_is_seen,
    test_i4_the_wardens_own_memory_and_files_are_closed_to_programs,
    test_i5_no_network,
    test_i7_caves_do_not_see_each_other,
    test_the_cave_is_writable_where_people_expect_it,
)
from tests.security.test_resources import (  # noqa: F401 - collected here
    test_r1_fork_bomb,
    test_r2_memory_bomb,
    test_r3_disk_fill,
    test_r3_inode_fill,
    test_r4_cpu,
    test_r5_a_timeout_leaves_no_survivor,
    test_r6_output_flood,
)
from tests.security.test_stress import (  # noqa: F401 - collected here
    DAY_S,
    SMALL_DISK,
    set_clock,
    stressed,
    test_l5_a_clock_that_is_set_ends_no_cave,
)
from tests.serving import serving

pytestmark = pytest.mark.docker

SEED = 20261125
KILLS = 50 if LONG else 4
# A hub that is killed: makes ephemeral caves, works in them and destroys every other one, without end.
_HUB = """
import sys
import anyio
from ghost_mcp import CaveSpec, Ghost
from {module} import {kind}

async def work(ghost, number):
    while True:
        cave = await ghost.create(CaveSpec(ephemeral=True))
        print(cave.id, flush=True)
        await cave.exec("(setsid sleep 300 &); sleep 0.01")
        if number % 2:
            await cave.destroy()

async def main():
    backend = {kind}(image=sys.argv[1], instance=sys.argv[2])
    async with Ghost(backend=backend) as ghost, anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(work, ghost, number)

anyio.run(main)
"""


@pytest.fixture(scope="module")
def image(roomy_image: str) -> str:
    return roomy_image


@pytest.fixture(scope="module")
def beside() -> type[DockerBackend]:
    """Who makes the cave that the tests of a module share."""
    return DockerBackend


@pytest.fixture(scope="module")
def shared(image: str, beside: type[DockerBackend]) -> Iterator[str]:
    """The name of a cave for all tests that use one and leave it as it was: to make one takes a second or more."""
    name = f"shared-{secrets.token_hex(4)}"

    async def act(what: str) -> None:
        async with Ghost(backend=beside(image=image, instance="security")) as ghost:
            await (ghost.create(CaveSpec(name=name)) if what == "create" else ghost.destroy(name))

    anyio.run(act, "create")
    yield name
    anyio.run(act, "destroy")


@pytest.fixture
async def ghost(image: str) -> AsyncIterator[Ghost]:
    async with held(Ghost(backend=DockerBackend(image=image, instance="security"))) as opened:
        yield opened


@pytest.fixture
async def cave(ghost: Ghost, shared: str) -> AsyncIterator[Cave]:
    if (await ghost.get(shared)).info.state is not State.RUNNING:  # a test that failed has ended it
        await ghost.start(shared)
    found = await ghost.get(shared)
    yield found
    await found.exec("chmod -R u+rwX .; rm -rf -- * .[!.]* ..?*")


@pytest.fixture
def kind() -> type[DockerBackend]:
    """Whose caves are tried."""
    return DockerBackend


@pytest.fixture
def own() -> str:
    """An instance that nobody else uses."""
    return f"security-{secrets.token_hex(4)}"


def things(engine: docker.APIClient, kind: type[DockerBackend], own: str) -> list[str]:
    """All containers and volumes of that instance, whatever their state."""
    mine = {"label": f"{container.INSTANCE}={own}{kind._kind}"}
    shown = [one["Names"][0] for one in engine.containers(all=True, filters=mine)]
    return shown + [one["Name"] for one in engine.volumes(filters=mine)["Volumes"] or ()]


async def gone(engine: docker.APIClient, kind: type[DockerBackend], own: str) -> None:
    async def nothing() -> bool:
        return not await anyio.to_thread.run_sync(things, engine, kind, own)

    await until(nothing)


@pytest.mark.parametrize("bad", ["not json", '{"defaultAction":"SCMP_ACT_NONSENSE"}'])
async def test_i6_a_filter_that_does_not_load_stops_the_cave(
    engine: docker.APIClient,
    image: str,
    kind: type[DockerBackend],
    own: str,
    monkeypatch: pytest.MonkeyPatch,
    bad: str,
) -> None:
    monkeypatch.setattr(container, "_filter", lambda: bad)
    async with Ghost(backend=kind(image=image, instance=own)) as ghost:
        with pytest.raises(GhostError, match="seccomp"):
            await ghost.create(CaveSpec(ephemeral=True))
    assert things(engine, kind, own) == []


async def test_l1_kill_9_of_the_hub(
    engine: docker.APIClient, image: str, kind: type[DockerBackend], own: str
) -> None:
    """At random moments, among creating, running and destroying: the engine has nothing left of it."""
    dice = random.Random(SEED)
    program = _HUB.format(module=kind.__module__, kind=kind.__name__)
    for _ in range(
        KILLS if kind is DockerBackend else KILLS // 2
    ):  # compose takes seconds where docker takes one
        async with await anyio.open_process([sys.executable, "-c", program, image, own]) as hub:
            assert hub.stdout is not None
            with anyio.fail_after(60):
                await hub.stdout.receive()
            await anyio.sleep(dice.uniform(0.05, 1.5))
            hub.send_signal(signal.SIGKILL)
            await hub.wait()
    # One that was made and never started goes when somebody looks; the engine may be at it until then.
    async with Ghost(backend=kind(image=image, instance=own)) as ghost:
        backend = await ghost.backend()

        async def nothing_after_a_sweep() -> bool:
            await backend.leftovers(remove=True)
            return not await anyio.to_thread.run_sync(things, engine, kind, own)

        await until(nothing_after_a_sweep)


async def test_l2_after_a_kill_what_is_listed_is_there_and_what_was_written_too(
    engine: docker.APIClient, image: str, kind: type[DockerBackend], own: str
) -> None:
    make = (
        f"import anyio, os\nfrom ghost_mcp import CaveSpec, Ghost\n"
        f"from {kind.__module__} import {kind.__name__} as Kind\n"
        "async def main():\n"
        f"    async with Ghost(backend=Kind(image={image!r}, instance={own!r})) as ghost:\n"
        "        cave = await ghost.create(CaveSpec(name='keeper'))\n"
        "        await ghost.create(CaveSpec(ephemeral=True))\n"
        "        await cave.write('note', b'kept')\n"
        "        os.kill(os.getpid(), 9)\n"
        "anyio.run(main)\n"
    )
    await anyio.run_process([sys.executable, "-c", make], check=False)
    async with Ghost(backend=kind(image=image, instance=own)) as ghost:

        async def only_what_is_kept() -> bool:
            return [info.name for info in await ghost.list()] == ["keeper"]

        await until(only_what_is_kept)
        cave = await ghost.get("keeper")
        assert (await cave.read("note")).data == b"kept"
        await cave.destroy()
    await gone(engine, kind, own)


async def test_l3_destroy_is_idempotent(
    engine: docker.APIClient, image: str, kind: type[DockerBackend], own: str
) -> None:
    async with Ghost(backend=kind(image=image, instance=own)) as ghost:
        victim = await destroyed_by_many(ghost)
        left = things(engine, kind, own)
        assert [name for name in left if victim.info.name in name or victim.id in name] == []
    await gone(engine, kind, own)


async def test_l4_races(
    engine: docker.APIClient, image: str, kind: type[DockerBackend], own: str
) -> None:
    """Random interleavings of create, exec and destroy end with nothing left."""
    few = kind is not DockerBackend  # a project takes seconds where a container takes one
    async with Ghost(backend=kind(image=image, instance=own)) as ghost:
        await races(ghost, seed=SEED, racers=4 if few else 10, steps=6, names=2 if few else 3)
    await gone(engine, kind, own)


@pytest.mark.parametrize(
    ("by", "step"),
    [
        (Containers, "make"),
        (Containers, "lifeline"),
        (Containers, "start"),
        (Containers, "relay"),
        (DockerBackend, "_publish"),
    ],
)
async def test_l4_a_fault_at_each_step_of_creating_leaves_nothing(
    engine: docker.APIClient,
    image: str,
    kind: type[DockerBackend],
    own: str,
    monkeypatch: pytest.MonkeyPatch,
    by: type,
    step: str,
) -> None:
    async def fault(*_: object, **__: object) -> None:
        raise BackendUnavailable("a fault of this test")

    async with Ghost(backend=kind(image=image, instance=own)) as ghost:
        with monkeypatch.context() as patch:
            patch.setattr(by, step, fault)
            with pytest.raises(BackendUnavailable, match="a fault"):
                await ghost.create(CaveSpec(name="faulty", ephemeral=True))
        await gone(engine, kind, own)
        again = await ghost.create(CaveSpec(name="faulty", ephemeral=True))
        assert (await again.exec(["true"])).exit_code == 0


async def test_l6_a_cave_made_in_a_thread_that_ends_lives_on(
    engine: docker.APIClient, image: str, kind: type[DockerBackend], own: str
) -> None:
    await made_in_a_thread(lambda: Ghost(backend=kind(image=image, instance=own)))
    await gone(engine, kind, own)


async def test_f6_a_write_that_is_cut_off_is_whole_or_was_never(
    engine: docker.APIClient, image: str, kind: type[DockerBackend], own: str
) -> None:
    async with Ghost(backend=kind(image=image, instance=own)) as ghost:
        cave = await ghost.create(CaveSpec(name="f6"))
        name = container.cave_name(f"{own}{kind._kind}", "f6")
        await cut_off_writes(
            cave, partial(anyio.to_thread.run_sync, engine.kill, name), rounds=40 if LONG else 4
        )
        await cave.destroy()
    await gone(engine, kind, own)


async def test_l5_a_hub_that_can_open_no_more_files_says_so_and_goes_on_when_it_can(
    engine: docker.APIClient, image: str, kind: type[DockerBackend], own: str
) -> None:
    async with Ghost(backend=kind(image=image, instance=own)) as ghost:
        await without_files(ghost)
    await gone(engine, kind, own)


async def test_l5_a_hub_whose_disk_is_full_brings_nothing_into_the_engine_and_says_so(
    engine: docker.APIClient, image: str, kind: type[DockerBackend], own: str, state_dir: Path
) -> None:
    """Of a cave nothing is on the hub's disk; of the runtime, on its way into the engine, there is."""
    hub = {"backend": kind.name, "GHOST_IMAGE": image, "GHOST_INSTANCE": own}
    short = partial(stressed, state_dir, "newcomer", ["no_space"], *SMALL_DISK, **hub)
    await anyio.to_thread.run_sync(short)
    await gone(engine, kind, own)


async def test_l5_a_hub_whose_clock_is_set_sweeps_nothing_that_another_makes(
    image: str, kind: type[DockerBackend], own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no cave yet: that it was given up, only its age tells."""
    begun, seen = anyio.Event(), anyio.Event()
    configure = DockerBackend._configure

    async def held_up(*args: Any) -> Any:
        begun.set()
        await seen.wait()
        return await configure(*args)

    monkeypatch.setattr(DockerBackend, "_configure", held_up)
    one, two = [Ghost(backend=kind(image=image, instance=own)) for _ in range(2)]
    async with one as ghost, two as other:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ghost.create, CaveSpec(name="begun"))
            await begun.wait()
            try:
                for by_s in (DAY_S, -DAY_S):
                    with monkeypatch.context() as patch:
                        set_clock(patch, by_s)
                        assert await other.list() == []  # and what was given up is swept
            finally:
                seen.set()
        assert await answers(await other.get("begun"))
        await ghost.destroy("begun")


async def test_l6_calls_under_way_are_answered_when_the_hub_is_told_to_end(
    engine: docker.APIClient, image: str, kind: type[DockerBackend], own: str
) -> None:
    """The cave that its callers share is kept, as it is when there is no hub for a while."""
    answers: list[str] = []
    settings = {"GHOST_BACKEND": kind.name, "GHOST_IMAGE": image, "GHOST_INSTANCE": own}
    with serving(**settings) as hub:
        async with hub.client() as http, anyio.create_task_group() as tasks:

            async def call(command: str) -> None:
                answer = await http.post("/v1/shell/exec", json={"command": command})
                answers.append(answer.json()["stdout"])

            await call("echo ready")
            for number in range(2):
                tasks.start_soon(call, f"sleep 3; echo {number}")

            async def running() -> bool:
                return "ghost_calls_running 2.0" in (await http.get("/metrics")).text

            await until(running)
            hub.process.terminate()
        await anyio.to_thread.run_sync(hub.process.wait, 30)
    assert sorted(answers) == ["0\n", "1\n", "ready\n"]
    async with Ghost(backend=kind(image=image, instance=own)) as ghost:
        (kept,) = await ghost.list()
        assert kept.state is State.RUNNING
        await ghost.destroy(kept.id)
    await gone(engine, kind, own)


async def test_of_a_cave_that_ended_by_itself_its_hub_holds_no_socket(
    engine: docker.APIClient, image: str, kind: type[DockerBackend], own: str
) -> None:
    """Neither its lifeline nor the stream over which it was configured, which nobody came to use."""
    async with Ghost(backend=kind(image=image, instance=own)) as ghost:
        backend = await ghost.backend()
        assert isinstance(backend, DockerBackend)
        kept = await ghost.create(CaveSpec(ephemeral=True))
        await ghost.create(CaveSpec(ephemeral=True, timeout_s=1))

        async def closed() -> bool:
            await ghost.list()
            return set(backend._lifelines) == set(backend._begun) == {kept.id}

        await until(closed)
        assert await answers(kept)
    await gone(engine, kind, own)
