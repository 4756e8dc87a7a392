"""The walls of a cave in a cluster: what is tried on the other caves, where it means the same, and a cluster's own.

Most of it shares one cave, since a pod takes seconds. The cluster of these tests enforces no NetworkPolicy: I5 says so.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import docker
import pytest
import yaml

from ghost_mcp import Cave, CaveSpec, Ghost, GhostError, Limits
from ghost_mcp.backends.docker import backend as docker_backend
from ghost_mcp.backends.kubernetes import manifests
from ghost_mcp.backends.kubernetes.backend import KubernetesBackend
from ghost_mcp.backends.kubernetes.finding import core
from ghost_mcp.backends.kubernetes.settings import Settings
from ghost_mcp.backends.kubernetes.starting import Starter
from ghost_mcp.errors import BackendUnavailable, CaveGone
from ghost_mcp.testing.basis import until
from tests import engine_images
from tests.clusters import own_settings
from tests.conftest import held
from tests.security import test_isolation
from tests.security.lives import destroyed_by_many, made_in_a_thread
from tests.security.racing import races
from tests.security.shortages import without_files
from tests.security.test_files import (  # noqa: F401 - collected here
    canary,
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
    PROBE,
    canaries,
    probe,
    test_i1_identity,
    test_i2_no_sysctl_can_be_written,
    test_i4_nothing_of_the_host_is_seen,
    test_i4_the_wardens_own_memory_and_files_are_closed_to_programs,
)
from tests.security.test_resources import (  # noqa: F401 - collected here
    BOMBS,
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

pytestmark = pytest.mark.kubernetes
POLICIES = Path(__file__).parents[2] / "configs/kubernetes/base/caves.yaml"
PROFILES = Path("/var/lib/kubelet/seccomp")
FILTER = Path(docker_backend.__file__).with_name("seccomp.json")
SEED = 20261129
_HUB = """
import os, anyio
from ghost_mcp import CaveSpec, Ghost
from ghost_mcp.backends.kubernetes.backend import KubernetesBackend
from ghost_mcp.backends.kubernetes.settings import Settings

async def main():
    async with Ghost(backend=KubernetesBackend(Settings.from_dict({settings!r}))) as ghost:
        kept = await ghost.create(CaveSpec(name="keeper"))
        await kept.write("note", b"kept")
        cave = await ghost.create(CaveSpec(ephemeral=True))
        await cave.exec("(setsid sleep 300 &); sleep 0.01")
        print(cave.id, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.fixture(scope="module")
def image(engine: docker.APIClient) -> Iterator[str]:
    yield from engine_images.roomy(engine)


@pytest.fixture(scope="module")
def settings(image: str, brought: str) -> Settings:
    return own_settings("security", image, brought)


@pytest.fixture(scope="module")
def shared(settings: Settings) -> Iterator[str]:
    """A cave that outlives the tests that use it."""

    async def make() -> str:
        async with Ghost(backend=KubernetesBackend(settings)) as ghost:
            return (await ghost.create(CaveSpec(name=settings.instance))).id

    async def end() -> None:
        async with KubernetesBackend(settings) as backend:
            await backend.destroy(made)

    made = asyncio.run(make())
    yield made
    asyncio.run(end())


@pytest.fixture
async def ghost(settings: Settings) -> AsyncIterator[Ghost]:
    async with held(Ghost(backend=KubernetesBackend(settings))) as opened:
        yield opened


@pytest.fixture
async def cave(ghost: Ghost, shared: str) -> Cave:
    found = await ghost.get(shared)
    await found.exec("rm -rf /workspace/* /workspace/.[!.]* ~/* /tmp/*")  # of the test before
    return found


@pytest.fixture
def own(settings: Settings) -> Settings:
    """An instance that nobody else uses."""
    return replace(settings, instance=f"security-{secrets.token_hex(4)}")


def _given(own: Settings) -> dict[str, Any]:
    """As an operator would write them down."""
    return {key: value for key, value in asdict(own).items() if value is not None}


async def gone(own: Settings) -> None:
    """Wait until the cluster has nothing of that instance, but what is just going."""
    async with KubernetesBackend(own) as backend:

        async def nothing() -> bool:
            await backend.list()  # sweeps what was ephemeral
            kinds = ("pods", "configmaps", "persistentvolumeclaims")
            there = [one for kind in kinds for one in await backend._finder.every(kind)]
            return all("deletionTimestamp" in one["metadata"] for one in there)

        await until(nothing)


async def test_i3_syscalls_that_lead_out_are_refused(
    cave: Cave, record_property: Callable[[str, object], None]
) -> None:
    """What the runtime's default profile lets through is the operator's to close (``seccomp: Localhost``): it is told."""
    found = await probe(cave)
    through = {name for name, how in found["syscalls"].items() if how not in ("EPERM", "ENOSYS")}
    sockets = {name for name, how in found["sockets"].items() if how == "ok"}
    told = ", ".join(sorted(through | sockets))
    record_property("figure", f"RuntimeDefault lets through: {told}")
    # Ptrace reaches what is of the cave's own user and namespace; io_uring is the kernel's to bound.
    assert through <= {"ptrace", "io_uring_setup"}
    assert found["tiocsti"] in ("EPERM", "EIO")
    assert sockets <= {"unix", "inet", "inet6", "vsock", "netlink"}


@pytest.fixture
def profile() -> Iterator[str]:
    """Ghost's own filter, where the node's kubelet takes it from, by its name there."""
    cache = Path(os.environ.get("GHOST_TEST_CLUSTER_CACHE", "/var/cache/ghost-test-cluster"))
    if not os.access(cache / "data/kubelet", os.W_OK):
        pytest.skip("not run: the node is another machine")
    file = PROFILES / f"ghost-test-{secrets.token_hex(4)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(FILTER, file)
    yield file.name
    file.unlink()
    with suppress(OSError):  # a kubelet of this machine's own has more there
        PROFILES.rmdir()
        PROFILES.parent.rmdir()


async def test_i3_with_ghosts_own_filter_all_that_leads_out_is_refused(
    own: Settings, profile: str
) -> None:
    seccomp = {"type": "Localhost", "localhostProfile": profile}
    async with Ghost(backend=KubernetesBackend(replace(own, seccomp=seccomp))) as ghost:
        made = await ghost.create(CaveSpec(ephemeral=True))
        await test_isolation.test_i3_syscalls_are_refused_and_programs_still_run(made)


async def test_i5_no_network_where_policies_are_enforced(
    cave: Cave, record_property: Callable[[str, object], None]
) -> None:
    """The policy denies every pod of the namespace all traffic; a cave says that nobody vouches for its enforcement."""
    (policy,) = (
        thing
        for thing in yaml.safe_load_all(POLICIES.read_text())
        if thing["kind"] == "NetworkPolicy"
    )
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert not cave.info.assurance["network"].enforced
    assert "nothing tells" in cave.info.assurance["network"].how
    record_property("figure", "the policy and what is said of it: this cluster enforces none")


async def test_i7_caves_do_not_see_each_other(ghost: Ghost, cave: Cave) -> None:
    """No process, file or socket is shared. One that kills all it can hurts its own connection, and no other's."""
    other = await ghost.create(CaveSpec(ephemeral=True))
    await other.write("note", b"the other's")
    async with other.process(["sleep", "71.0717"]) as program:
        names = (await cave.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")).stdout
        assert "71.0717" not in names.replace("cat /proc", "")
        assert (await cave.exec("ls /workspace /tmp /dev/shm /run/ghost")).stdout.count("note") == 0
        with suppress(CaveGone):  # its relay is a process of the pod
            await cave.exec("kill -9 -1")
        assert program.poll() is None
    assert (await other.exec(["echo", "alive"])).stdout == "alive\n"
    assert (await cave.exec(["echo", "alive"])).stdout == "alive\n"
    await other.destroy()


async def test_i4_a_pod_has_no_identity_in_the_cluster(cave: Cave) -> None:
    tried = await cave.exec("ls /var/run/secrets /run/secrets")
    assert tried.stdout == ""


async def test_r3_no_file_of_the_node_can_be_filled(cave: Cave) -> None:
    """The kubelet's file for last words is out of reach: it is on the node's disk, and in nobody's account."""
    tried = await cave.exec(
        "ls /dev/termination-log; ls /.ghost/sealed; echo x >/.ghost/sealed/log"
    )
    assert tried.stdout == ""
    assert tried.stderr.count("Permission denied") == 2
    mounts = (await cave.exec("cat /proc/self/mountinfo")).stdout.splitlines()
    files = {
        line.split()[4] for line in mounts if " - tmpfs " not in line and " - proc " not in line
    }
    told = {"/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/.ghost/sealed/log"}
    writable = [name for name in told & files if name != "/.ghost/sealed/log"]
    assert (
        await cave.exec(f"for f in {' '.join(writable)}; do test -w $f && echo $f; done")
    ).stdout == ""


@pytest.mark.parametrize("where", BOMBS)
async def test_r2_memory_bomb(ghost: Ghost, cave: Cave, where: str) -> None:
    """Four times the limit: the program dies, or what is no program's memory takes the cave along; no other one."""
    bombed = await ghost.create(
        CaveSpec(ephemeral=True, limits=Limits(memory_bytes=128 << 20, tmp_bytes=512 << 20))
    )
    try:
        result = await bombed.exec(["python3", "-c", BOMBS[where]], timeout_s=60)
        assert result.exit_code == 137
    except CaveGone:
        assert where != "heap"
    assert (await cave.exec(["echo", "alive"])).stdout == "alive\n"
    await bombed.destroy()


@pytest.mark.parametrize(
    "wrong",
    [
        {"seccomp": {"type": "Localhost", "localhostProfile": "no/such.json"}},
        {"runtime_class": "no-such-runtime"},
    ],
    ids=["seccomp", "runtime"],
)
async def test_i6_a_wall_that_cannot_be_had_stops_the_cave(
    own: Settings, wrong: dict[str, Any]
) -> None:
    async with Ghost(backend=KubernetesBackend(replace(own, **wrong))) as ghost:
        with pytest.raises(GhostError):
            await ghost.create(CaveSpec(ephemeral=True))
    await gone(own)


async def test_l1_l2_kill_9_of_the_hub(own: Settings) -> None:
    """What was ephemeral ends by itself, what is kept is there with its files.

    What a hub was just making when it was killed: ``test_what_a_killed_hub_has_half_made_is_swept``.
    """
    program = _HUB.format(settings=_given(own))
    async with await anyio.open_process([sys.executable, "-c", program]) as hub:
        assert hub.stdout is not None
        with anyio.fail_after(60):
            await hub.stdout.receive()
        hub.send_signal(signal.SIGKILL)
        await hub.wait()
    async with Ghost(backend=KubernetesBackend(own)) as ghost:

        async def only_what_is_kept() -> bool:
            return [info.name for info in await ghost.list()] == ["keeper"]

        await until(only_what_is_kept)
        cave = await ghost.get("keeper")
        assert (await cave.read("note")).data == b"kept"
        await cave.destroy()
    await gone(own)


async def test_l3_destroy_is_idempotent(own: Settings) -> None:
    async with Ghost(backend=KubernetesBackend(own)) as ghost:
        await destroyed_by_many(ghost)
    await gone(own)


async def test_l4_races(own: Settings) -> None:
    """Random interleavings of create, exec and destroy end with nothing left."""
    async with Ghost(backend=KubernetesBackend(own)) as ghost:
        await races(ghost, seed=SEED, racers=4, steps=5, names=2)
    await gone(own)


@pytest.mark.parametrize("step", ["running", "link", "hold"])
async def test_l4_a_fault_at_each_step_of_creating_leaves_nothing(
    own: Settings, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fault(*_: object, **__: object) -> None:
        raise BackendUnavailable("a fault of this test")

    async with Ghost(backend=KubernetesBackend(own)) as ghost:
        with monkeypatch.context() as patch:
            patch.setattr(Starter, step, fault)
            with pytest.raises(BackendUnavailable, match="a fault"):
                await ghost.create(CaveSpec(name="faulty", ephemeral=True))
        await gone(own)


async def test_l6_a_cave_made_in_a_thread_that_ends_lives_on(own: Settings) -> None:
    await made_in_a_thread(lambda: Ghost(backend=KubernetesBackend(own)))
    await gone(own)


async def test_r1_fork_bomb(cave: Cave) -> None:
    """Not let loose where nothing stops it but the memory: it may keep its node busy for minutes with its own end."""
    told = cave.info.assurance["pids"]
    assert not told.enforced
    assert "podPidsLimit" in told.how
    pytest.skip(
        "not run: the kubelet bounds processes, for all pods alike; that a cave says so was seen"
    )


async def test_l5_a_hub_that_can_open_no_more_files_says_so_and_goes_on_when_it_can(
    own: Settings,
) -> None:
    async with Ghost(backend=KubernetesBackend(own)) as ghost:
        await without_files(ghost)
    await gone(own)


@pytest.mark.skipif(os.geteuid() != 0, reason="not run: only root can mount a small disk")
async def test_l5_a_hub_whose_disk_is_full_goes_on(own: Settings, state_dir: Path) -> None:
    """It keeps nothing of a cluster's caves on its own disk."""
    config = state_dir / f"{own.instance}.yaml"
    config.write_text(yaml.safe_dump(_given(own)))
    run = partial(stressed, backend="kubernetes", GHOST_KUBERNETES_CONFIG=str(config))
    await anyio.to_thread.run_sync(partial(run, state_dir, "disk", [], *SMALL_DISK))
    await gone(own)


@pytest.mark.parametrize("by_s", [DAY_S, -DAY_S], ids=["on", "back"])
async def test_l5_a_hub_whose_clock_is_wrong_sweeps_nothing_that_another_makes(
    own: Settings, monkeypatch: pytest.MonkeyPatch, by_s: float
) -> None:
    begun = CaveSpec(name="begun")
    async with KubernetesBackend(own) as backend:
        path = f"{core(own.namespace)}/persistentvolumeclaims"
        await backend.cluster.ask("POST", path, manifests.volume(begun, own))
        try:
            set_clock(monkeypatch, by_s)
            assert await backend.leftovers(remove=True) == []
        finally:
            await backend.destroy(begun.id)
    await gone(own)
