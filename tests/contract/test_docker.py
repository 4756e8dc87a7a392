"""Caves of a Docker engine keep the contract, in an image that has little, and in one that has nothing."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest
from anyio.abc import UNIXSocketStream
from docker.errors import APIError

from ghost_mcp import CaveSpec, Ghost
from ghost_mcp.backends.base import Backend
from ghost_mcp.backends.docker import container as made_of
from ghost_mcp.backends.docker import images, running
from ghost_mcp.backends.docker.backend import DockerBackend
from ghost_mcp.backends.docker.engine import Upgraded
from ghost_mcp.backends.docker.images import DRESSED
from ghost_mcp.backends.docker.makers import MAKER, died, this_process
from ghost_mcp.backends.docker.stream import ExecStream
from ghost_mcp.errors import (
    BackendUnavailable,
    CaveGone,
    CaveNotFound,
    InvalidArgument,
    ProtocolFailure,
    Unsupported,
)
from ghost_mcp.spec import CaveInfo
from ghost_mcp.testing import BackendContract
from ghost_mcp.testing.basis import PATIENCE_S, connected, until
from ghost_mcp.warden import runtime
from ghost_mcp.warden.link import Link

# What a program of the cave may do, and whether the warden hears it.
_PROBE = """
import os, socket
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
print([status[name].strip() for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")])
for path in ("/new", "/bin/new", "/.ghost/new", "/etc/new", "/proc/sys/kernel/core_pattern"):
    try:
        open(path, "w")
        print("opened", path)
    except OSError:
        pass
print([line.split(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]])
client = socket.socket(socket.AF_UNIX)
client.connect("/run/ghost/warden.sock")
print(client.recv(100))
"""


# A hub with a cave, or one in its pool; it says so and stays until it is killed.
_HUB = """
import asyncio, sys
from pathlib import Path
from ghost_mcp import CaveSpec, Ghost, PoolPlan
from ghost_mcp.backends.docker.backend import DockerBackend

async def main():
    backend = DockerBackend(image={image!r}, instance={instance!r}, cache=Path({cache!r}))
    plans = [PoolPlan(size=1, refill_s=0)] if sys.argv[1] != "made" else []
    async with Ghost(backend=backend, pools=plans) as ghost:
        await ghost.warm()
        if sys.argv[1] != "pooled":
            cave = await ghost.create(CaveSpec(ephemeral=True))
            await cave.exec("setsid sleep 1000 >/dev/null 2>&1 &")
            await ghost.warm()  # what is made but does not run yet has no warden that could end it
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.docker
class TestDocker(BackendContract):
    # The images here have no Python; the warden's own will do.
    python = tuple(runtime.argv()[:-1])
    measures = frozenset({"memory_bytes", "memory_peak_bytes", "cpu_s", "pids"})
    refused = (
        {"image": "no-such-image:ever"},
        {"image": "Not A Reference"},
        {"workspace": "no/folder"},
        {"mounts": {"/data": "/no/such/file"}},
        {"gpus": "device=no-such"},
        {"env": {"KEY": "x"}, "secrets": ["KEY"]},
    )

    @pytest.fixture(autouse=True)
    def _engine(self, engine: docker.APIClient, small_image: str, state_dir: Path) -> None:
        self.engine, self.image, self.cache = engine, small_image, state_dir / "cache" / "docker"
        self.instance = f"test-{secrets.token_hex(4)}"

    def settings(self) -> dict[str, Any]:
        return {"image": self.image}

    def make(self) -> Backend:
        return DockerBackend(instance=self.instance, cache=self.cache)

    def elsewhere(self) -> str:
        return (
            "from pathlib import Path\n"
            "from ghost_mcp.backends.docker.backend import DockerBackend\n"
            f"cache = Path({str(self.cache)!r})\n"
            f"def make(): return DockerBackend(instance={self.instance!r}, cache=cache)\n"
        )

    def container(self, info: CaveInfo) -> str:
        return f"ghost-{self.instance}-{info.full_name.replace('/', '.')}"

    async def crash(self, info: CaveInfo) -> None:
        self.engine.kill(self.container(info))

    async def engine_shows(self, info: CaveInfo) -> str:
        return json.dumps(self.engine.inspect_container(self.container(info)))

    async def leftovers(self, cave_id: str) -> list[str]:
        labelled = {"label": f"ghost.id={cave_id}"}
        shown = self.engine.containers(all=True, filters=labelled)
        volumes = self.engine.volumes(filters=labelled)["Volumes"] or []
        return [found["Names"][0] for found in shown] + [volume["Name"] for volume in volumes]

    async def test_the_walls(self) -> None:
        async with self.cave() as cave:
            caps, interfaces, heard = (await self.script(cave, _PROBE)).splitlines()
            assert caps == str(["0" * 16, "0" * 16, "1", "2"])
            assert interfaces == "['lo']"
            assert heard == "b''"  # the warden hears no program of the cave
            seen = self.engine.inspect_container(self.container(cave.info))
            assert seen["Config"]["User"] == "1000:1000"
            walls = seen["HostConfig"]
            assert (walls["ReadonlyRootfs"], walls["Privileged"]) == (True, False)
            assert walls["MemorySwap"] == walls["Memory"] == cave.info.spec.limits.memory_bytes
            assert seen["NetworkSettings"]["Ports"] in ({}, None)

    async def test_links_that_are_closed_leave_nothing_running(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            for _ in range(3):
                async with self.view(info.id) as cave:
                    await cave.exec(["true"])
            async with connected(backend, info.id):  # the one that it was configured over
                pass

            async def only_the_warden() -> bool:
                return (await backend.usage(info.id)).pids == 1

            await until(only_the_warden)

    async def test_gpus_are_the_engines_to_give(self) -> None:
        asked = {"all": (-1, None), "2": (2, None), "device=0,GPU-7": (0, ["0", "GPU-7"])}
        for gpus, (count, ids) in asked.items():
            walls = made_of.walls(CaveSpec(gpus=gpus), "volume", self.instance)
            (request,) = self.engine.create_host_config(**walls)["DeviceRequests"]
            assert (request["Count"], request["DeviceIDs"] or None) == (count, ids)
            assert request["Capabilities"] == [["gpu"]]
        async with self.backend() as backend:
            spec = self.spec(gpus="device=no-such")
            with pytest.raises(Unsupported, match="device") as caught:
                await backend.create(spec)
            assert "gpus" in caught.value.hint
            await self.nothing_left(spec.id)

    async def test_an_empty_image_will_do(self, empty_image: str) -> None:
        async with self.cave(image=empty_image) as cave:
            await cave.write("a/file.txt", "hello", parents=True)
            assert await self.script(cave, "print(open('a/file.txt').read())") == "hello"
            found, _ = await cave.records("search", {"path": ".", "pattern": "hell"})
            assert [hit["path"] for hit in found] == ["a/file.txt"]

    async def test_without_an_image_the_hint_says_so(self) -> None:
        async with self.backend() as backend:
            with pytest.raises(InvalidArgument) as caught:
                await backend.create(self.spec(image=None))
            assert "image" in caught.value.hint

    async def test_an_image_s_name_is_no_other_address_of_the_engine(self) -> None:
        """A container would be found by it, and so whether another owner has a cave of some name."""
        async with self.cave() as cave, self.backend() as backend:
            here = self.container(cave.info)
            for name in (here, f"{here}-gone"):
                with pytest.raises(InvalidArgument, match="not an image reference"):
                    await backend.create(self.spec(image=f"x/../../containers/{name}"))

    async def test_a_mount_is_seen_and_cannot_be_written(self, state_dir: Path) -> None:
        given = state_dir / secrets.token_hex(4)
        given.mkdir(mode=0o777)
        (given / "given.txt").write_text("from outside")
        async with self.cave(mounts={"/given": str(given)}) as cave:
            assert (await cave.read("/given/given.txt")).data == b"from outside"
            assert (await cave.exec("echo x >/given/new")).exit_code != 0


@pytest.mark.docker
class TestLeftBehind:
    """What the engine has when nobody is there to tidy up."""

    @pytest.fixture(autouse=True)
    def _engine(self, engine: docker.APIClient, small_image: str, state_dir: Path) -> None:
        self.engine, self.image, self.cache = engine, small_image, state_dir / "cache" / "docker"
        self.instance = f"test-{secrets.token_hex(4)}"

    def make(self) -> DockerBackend:
        return DockerBackend(image=self.image, instance=self.instance, cache=self.cache)

    def there(self) -> list[str]:
        """Containers and volumes of this test."""
        mine = {"label": f"ghost.instance={self.instance}"}
        containers = self.engine.containers(all=True, filters=mine)
        volumes = self.engine.volumes(filters=mine)["Volumes"] or []
        return [one["Names"][0] for one in containers] + [one["Name"] for one in volumes]

    @pytest.mark.parametrize("how", ["made", "pooled", "claimed"])
    async def test_a_hub_that_is_killed_leaves_no_container_and_no_volume(self, how: str) -> None:
        program = _HUB.format(image=self.image, instance=self.instance, cache=str(self.cache))
        async with await anyio.open_process([sys.executable, "-c", program, how]) as hub:
            assert hub.stdout is not None
            with anyio.fail_after(PATIENCE_S):
                assert b"ready" in await hub.stdout.receive()
            assert self.there() != []
            hub.kill()
        with anyio.fail_after(PATIENCE_S):
            while self.there():
                await anyio.sleep(0.1)

    async def test_an_ephemeral_cave_is_gone_at_its_deadline_without_any_hub(self) -> None:
        async with self.make() as backend:
            await backend.create(CaveSpec(ephemeral=True, timeout_s=3.0))
            with anyio.fail_after(PATIENCE_S):
                while self.there():  # only the engine is asked
                    await anyio.sleep(0.1)

    async def test_what_was_never_finished_is_swept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with self.make() as backend:
            made = await backend.create(CaveSpec())
            ours = self.engine.inspect_container(f"ghost-{self.instance}-{made.name}")
            for stage in ("making", "pool"):
                cave_id = secrets.token_hex(8)
                labels = {**ours["Config"]["Labels"], "ghost.id": cave_id}
                name = f"ghost_{stage}_{cave_id}"
                self.engine.create_container(self.image, ["none"], name=name, labels=labels)
            assert [info.id for info in await backend.list()] == [made.id]
            assert len(self.there()) == 5  # somebody may be at it
            monkeypatch.setattr(backend, "_making_s", -2.0)
            left = [name for name in await backend.leftovers(remove=False) if name[:6] == "ghost_"]
            assert len(left) == 2  # images and runtimes of others are told too
            await backend.list()
            assert len(self.there()) == 3
            await backend.destroy(made.id)
        assert self.there() == []

    async def test_what_one_who_died_has_half_made_is_swept_at_once(self) -> None:
        """Its container, and the locks on what it was to bring into the engine."""
        async with self.make() as backend:
            made = await backend.create(CaveSpec(ephemeral=True))
            ours = self.engine.inspect_container(f"ghost-{self.instance}-{made.name}")
            labels = {**ours["Config"]["Labels"], MAKER: _one_who_died()}
            spec = CaveSpec(ephemeral=True)
            for cave_id in (spec.id, secrets.token_hex(8)):
                half = {**labels, "ghost.id": cave_id}
                name = f"ghost_making_{cave_id}"
                self.engine.create_container(self.image, ["none"], name=name, labels=half)
            with anyio.fail_after(PATIENCE_S):  # before its time would be over
                await backend.create(spec)
            assert len(await backend.list()) == 2
            assert len(self.there()) == 6  # each with its volumes
            for one in (made, spec):
                await backend.destroy(one.id)
        assert self.there() == []

    @pytest.mark.parametrize("which", ["runtime", "image"])
    async def test_the_lock_of_one_who_died_holds_nobody_up(
        self, which: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = self.engine.inspect_image(self.image)["Id"]
        for dressed in self.engine.images(filters={"label": f"{DRESSED}={plain}"}):
            self.engine.remove_image(dressed["Id"], force=True)
        self.cache.mkdir(parents=True, exist_ok=True)
        folder = runtime.build_runtime(self.cache)
        locks = {
            "runtime": f"ghost-{folder.name}-filling",
            "image": f"ghost_dressing_{plain.removeprefix('sha256:')[:32]}",
        }
        monkeypatch.setattr(images, "_said_whole", lambda volume, engine: False)
        self.engine.create_container(
            self.image, ["none"], name=locks[which], labels={MAKER: _one_who_died()}
        )
        async with self.make() as backend:
            with anyio.fail_after(PATIENCE_S):
                info = await backend.create(CaveSpec(ephemeral=True))
            await backend.destroy(info.id)

    async def test_a_runtime_removed_by_hand_is_brought_again(self) -> None:
        async with self.make() as backend:
            info = await backend.create(CaveSpec(ephemeral=True))
            volume = await backend.images.runtime(self.image)
            await backend.destroy(info.id)
            with contextlib.suppress(APIError):  # another run has caves that use it
                self.engine.remove_volume(volume)
            again = await backend.create(CaveSpec(ephemeral=True))
            await backend.destroy(again.id)

    async def test_a_container_removed_by_hand_is_noticed(self) -> None:
        async with Ghost(backend=self.make()) as ghost:
            cave = await ghost.create(CaveSpec())
            assert (await cave.exec(["true"])).exit_code == 0
            self.engine.remove_container(
                f"ghost-{self.instance}-{cave.info.name}", v=True, force=True
            )
            with pytest.raises((CaveGone, CaveNotFound)):
                await cave.exec(["true"])
            with pytest.raises(CaveNotFound):
                await cave.exec(["true"])
            assert await ghost.list() == []
            await cave.destroy()
        assert self.there() == []

    async def test_an_image_removed_by_hand_is_made_again(self) -> None:
        async with self.make() as backend:
            first = await backend.create(CaveSpec(ephemeral=True))
            await backend.destroy(first.id)
            plain = self.engine.inspect_image(self.image)["Id"]
            for dressed in self.engine.images(filters={"label": f"ghost.dressed={plain}"}):
                self.engine.remove_image(dressed["Id"], force=True)
            again = await backend.create(CaveSpec(ephemeral=True))
            await backend.destroy(again.id)


def _one_who_died() -> str:
    """A process that has been there, as a maker."""
    make = "from ghost_mcp.backends.docker.makers import this_process; print(this_process())"
    done = subprocess.run([sys.executable, "-c", make], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_maker_is_told_dead_only_when_that_is_certain() -> None:
    mine, dead = this_process(), _one_who_died()
    place, _, pid, started = dead.rsplit("/", 3)
    assert (died(mine), died(dead)) == (False, True)
    # Another machine or container, another writer, or nobody's word.
    for other in (f"elsewhere/{_}/{pid}/{started}", f"{place}/pid:[1]/{pid}/{started}", "x", ""):
        assert not died(other)
    assert died(f"{mine.rpartition('/')[0]}/1")  # the number is another process's now


@pytest.mark.docker
class TestOpening:
    """What an engine writes where a relay's output would be is its own word, and no warden's."""

    @pytest.fixture(autouse=True)
    def _engine(self, engine: docker.APIClient, small_image: str, state_dir: Path) -> None:
        self.engine, self.image, self.cache = engine, small_image, state_dir / "cache" / "docker"

    @contextlib.asynccontextmanager
    async def made(self) -> AsyncIterator[tuple[DockerBackend, CaveInfo, str]]:
        instance = f"test-{secrets.token_hex(4)}"
        async with DockerBackend(image=self.image, instance=instance, cache=self.cache) as backend:
            info = await backend.create(CaveSpec(ephemeral=True))
            async with connected(backend, info.id):  # the next opening is a new one
                pass
            yield backend, info, f"ghost-{instance}-{info.name}"

    async def test_of_a_cave_that_ends_meanwhile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with self.made() as (backend, info, container):
            upgrade = backend._engine.upgrade

            async def late(path: str, body: Mapping[str, Any] | None = None) -> Upgraded:
                self.engine.kill(container)
                return await upgrade(path, body)

            monkeypatch.setattr(backend._engine, "upgrade", late)
            with pytest.raises(CaveGone):
                await backend.connect(info.id)

    async def test_of_a_cave_in_which_nothing_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with self.made() as (backend, info, _):
            monkeypatch.setattr(running, "RELAY", (["/no/such/program"], "1001:1001"))
            with pytest.raises(BackendUnavailable, match="no such file"):
                await backend.connect(info.id)

    async def test_a_relay_that_speaks_no_protocol_is_the_caves_fault(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = ["echo", "container is not running"]
        async with self.made() as (backend, info, _):
            monkeypatch.setattr(running, "RELAY", (said, "1001:1001"))
            async with connected(backend, info.id) as stream, anyio.create_task_group() as tasks:
                with pytest.raises(ProtocolFailure, match="bad frame"):
                    await Link.open(stream, tasks, name=info.name)


async def test_an_engine_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    with pytest.raises(BackendUnavailable) as caught:
        await DockerBackend().__aenter__()
    assert "DOCKER_HOST" in caught.value.hint


async def test_an_exec_stream_is_read_in_whatever_pieces_it_comes() -> None:
    ours, theirs = socket.socketpair()
    pieces = [(1, b"one"), (2, b"a warning\n"), (1, b""), (1, b"x" * 70_000), (2, b"last words\n")]
    raw = b"".join(struct.pack(">BxxxL", kind, len(data)) + data for kind, data in pieces)
    ours.setblocking(False)
    stream = ExecStream(await UNIXSocketStream.from_socket(ours), raw[:5])
    with theirs:
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                for at in range(5, len(raw), 4999):
                    await anyio.to_thread.run_sync(theirs.sendall, raw[at : at + 4999])
                theirs.shutdown(socket.SHUT_WR)

            tasks.start_soon(send)
            await stream.begin()
            received = b""
            with pytest.raises(anyio.EndOfStream):
                while True:
                    received += await stream.receive(1000)
        assert received == b"one" + b"x" * 70_000
        assert stream.last_words == "last words"
        await stream.aclose()
        assert theirs.recv(1) == b""
