"""Caves of a Docker engine keep the contract, in an image that has little, and in one that has nothing."""

from __future__ import annotations

import json
import secrets
import socket
import struct
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest

from ghost_mcp.backends.base import Backend
from ghost_mcp.backends.docker.backend import DockerBackend
from ghost_mcp.backends.docker.stream import ExecStream
from ghost_mcp.errors import BackendUnavailable, InvalidArgument
from ghost_mcp.spec import CaveInfo
from ghost_mcp.testing import BackendContract
from ghost_mcp.testing.basis import until
from ghost_mcp.warden import runtime

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
print(sorted(name for _, name in socket.if_nameindex()))
client = socket.socket(socket.AF_UNIX)
client.connect("/run/ghost/warden.sock")
print(client.recv(100))
"""


@pytest.mark.docker
class TestDocker(BackendContract):
    # The images here have no Python; the warden's own will do.
    python = tuple(runtime.argv()[:-1])
    measures = frozenset({"memory_bytes", "memory_peak_bytes", "cpu_s", "pids"})
    refused = (
        {"image": "no-such-image:ever"},
        {"image": "Not A Reference"},
        {"network": {"mode": "open"}},
        {"workspace": "/tmp"},
        {"mounts": {"/data": "/no/such/file"}},
        {"limits": {"disk_bytes": 1 << 30}},
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
        shown = self.engine.containers(all=True, filters={"label": f"ghost.id={cave_id}"})
        volumes = self.engine.volumes()["Volumes"] or []
        names = [volume["Name"] for volume in volumes if cave_id in volume["Name"]]
        return [container["Id"] for container in shown] + names

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

            async def only_the_warden() -> bool:
                return (await backend.usage(info.id)).pids == 1

            await until(only_the_warden)

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

    async def test_a_mount_is_seen_and_cannot_be_written(self, state_dir: Path) -> None:
        given = state_dir / secrets.token_hex(4)
        given.mkdir(mode=0o777)
        (given / "given.txt").write_text("from outside")
        async with self.cave(mounts={"/given": str(given)}) as cave:
            assert (await cave.read("/given/given.txt")).data == b"from outside"
            assert (await cave.exec("echo x >/given/new")).exit_code != 0


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
    stream = await ExecStream.over(ours, raw[:5])
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
