"""Caves with side services keep the contract; the services are reached, kept in, and gone with their cave."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ghost_mcp.backends.base import Backend
from ghost_mcp.backends.compose import document as compose
from ghost_mcp.backends.compose.backend import ComposeBackend
from ghost_mcp.backends.compose.reading import read
from ghost_mcp.backends.compose.tool import Tool
from ghost_mcp.cave import Cave
from ghost_mcp.errors import BackendUnavailable, InvalidArgument, NotFound, Unsupported
from ghost_mcp.ghost import Ghost
from ghost_mcp.spec import CaveInfo, CaveSpec, NetworkPolicy, Project
from ghost_mcp.testing.basis import until
from ghost_mcp.warden import runtime
from tests.contract import test_docker as of_docker

# Says hello to whoever comes.
_SERVER = """
import socket, sys
server = socket.create_server(("0.0.0.0", 5432))
print("listening", flush=True)
while True:
    client = server.accept()[0]
    client.sendall(b"hello from db")
    client.close()
"""

# Asks a host for what it says on a port.
_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as client:
    print(client.recv(100).decode())
"""

# Tries the ways out: addresses at a port, and a name. Prints those that answered.
_WAY_OUT = """
import os, socket, struct, sys
where = sys.argv[2:]
for line in open("/proc/net/route").read().splitlines()[1:]:
    gateway = int(line.split()[2], 16)
    if gateway:
        where.append(socket.inet_ntoa(struct.pack("<L", gateway)))
def reach(address):
    address = socket.gethostbyname(address)
    try:  # an old engine gives a route to a gateway that is not there: what is sent must not arrive
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"sent", (address, int(sys.argv[1])))
    except OSError:
        pass
    socket.create_connection((address, int(sys.argv[1])), 2).close()
    print("reached", address, flush=True)
def resolve(name):
    print("resolved", socket.gethostbyname(name), flush=True)
tries = [(reach, address) for address in where] + [(resolve, "example.com")]
for act, what in tries:  # each in a process of its own: what is not there takes seconds
    if os.fork() == 0:
        try:
            act(what)
        except OSError:
            pass
        os._exit(0)
for _ in tries:
    os.wait()
"""

# Makes an ephemeral cave and says its id, then waits to be killed.
_HUB = """
import anyio, json, sys
from pathlib import Path
from ghost_mcp import CaveSpec, Ghost
from ghost_mcp.backends.compose.backend import ComposeBackend

async def main():
    instance, cache, spec = sys.argv[1:]
    async with Ghost(backend=ComposeBackend(instance=instance, cache=Path(cache))) as ghost:
        cave = await ghost.create(CaveSpec.from_dict(json.loads(spec)))
        print(cave.id, flush=True)
        await anyio.sleep(600)

anyio.run(main)
"""

# Tests of the suite, by words of their names, that leave something beside a cave if it is not done well.
BESIDE = (
    *(
        "destroy",
        "paused_cave",
        "when_the_maker",
        "leaving_the_backend",
        "cancelled_create",
        "swept",
    ),
    *(
        "what_cannot_be_enforced",
        "at_once_with_the_same",
        "by_itself_at_its_deadline",
        "stop_ends_programs",
    ),
    *(
        "same_id_is_the_same",
        "every_boundary",
        "network_when_called",
        "taken_name_is_a_conflict_and",
    ),
)

_NAP: dict[str, Any] = {"command": ["sleep", "3600"], "stop_signal": "SIGKILL"}


@pytest.mark.docker
class TestCompose(of_docker.TestDocker):
    """All that holds for docker caves, with a service beside each."""

    refused = (
        *of_docker.TestDocker.refused,
        {"project": {"file": {"services": {"db": {"image": 3}}}}},
        {"project": {"file": {"services": {"db": {"image": "no-such-image-of-ours:ever"}}}}},
        {"project": {"file": {"services": {"cave": {"privileged": True}}}}},
        {"project": {"file": {"services": {"cave": {"volumes": ["/:/host"]}}}}},
    )

    def project(self, **services: Any) -> dict[str, Any]:
        return {"file": {"services": {n: {"image": self.image, **s} for n, s in services.items()}}}

    @pytest.fixture(autouse=True)
    def _beside(self, request: pytest.FixtureRequest) -> None:
        # Files, calls and the proxy go over the link, whatever is beside the cave, and what is asked of it is answered
        # by its container. What makes, keeps and leaves a cave that has a service is tried with one: to bring it up
        # takes a second or two.
        test = request.function.__name__
        own = request.function.__module__ == __name__
        self.alone = not own and not any(word in test for word in BESIDE)

    def settings(self) -> dict[str, Any]:
        beside = {} if self.alone else {"project": self.project(side=_NAP)}
        return {"image": self.image, **beside}

    def make(self) -> Backend:
        return ComposeBackend(instance=self.instance, cache=self.cache)

    def elsewhere(self) -> str:
        return (
            "from pathlib import Path\n"
            "from ghost_mcp.backends.compose.backend import ComposeBackend\n"
            f"cache = Path({str(self.cache)!r})\n"
            f"def make(): return ComposeBackend(instance={self.instance!r}, cache=cache)\n"
        )

    def container(self, info: CaveInfo) -> str:
        return f"ghost-{self.instance}.compose-{info.full_name.replace('/', '.')}"

    async def leftovers(self, cave_id: str) -> list[str]:
        asked = {"label": f"com.docker.compose.project={compose.project_name(cave_id)}"}
        return [
            *await super().leftovers(cave_id),
            *(one["Names"][0] for one in self.engine.containers(all=True, filters=asked)),
            *(one["Name"] for one in self.engine.networks(filters=asked)),
            *(one["Name"] for one in self.engine.volumes(filters=asked)["Volumes"] or ()),
        ]

    def states(self, info: CaveInfo) -> set[str]:
        """Those of the side services."""
        asked = {"label": f"{compose.OF}={info.id}"}
        return {one["State"] for one in self.engine.containers(all=True, filters=asked)}

    async def with_database(self) -> dict[str, Any]:
        """A service that listens, run by the warden's own Python from a volume that is not the project's."""
        async with ComposeBackend(instance=self.instance, cache=self.cache) as backend:
            volume = await backend.images.runtime(self.image)
        database = {
            "image": self.image,
            "entrypoint": [*runtime.argv()[:-1], _SERVER],
            "volumes": ["runtime:/.ghost:ro", "data:/data"],
            "environment": {"PYTHONHOME": "/.ghost/py"},
        }
        return {
            "file": {
                "version": "3.8",
                "services": {"db": database},
                "volumes": {"runtime": {"external": True, "name": volume}, "data": None},
            }
        }

    async def test_the_walls(self) -> None:
        """A cave of a project is the docker cave it would be without one, in the project's network."""
        with_one, alone = [
            self.engine.inspect_container(self.container(info))
            for info in [await self._held(project) for project in (self.project(side=_NAP), None)]
        ]
        kept = {"NetworkMode", "Dns", "DnsOptions", "Mounts"}
        walls = [
            {key: value for key, value in one["HostConfig"].items() if key not in kept}
            for one in (with_one, alone)
        ]
        assert walls[0] == walls[1]
        assert walls[0]["CapDrop"] == ["ALL"]
        for key in ("User", "Env", "Entrypoint", "Cmd", "Healthcheck"):
            assert with_one["Config"].get(key) == alone["Config"].get(key)
        assert alone["HostConfig"]["NetworkMode"] == "none"
        await self._let_go()

    async def _held(self, project: dict[str, Any] | None) -> CaveInfo:
        async with self.make() as backend:
            return await backend.create(self.spec(project=project))

    async def _let_go(self) -> None:
        async with self.make() as backend:
            for info in await self.ours(backend):
                await backend.destroy(info.id)

    async def test_a_side_service_is_reached_by_name_and_there_is_no_way_out(self) -> None:
        database = await self.with_database()
        with _listening() as (port, addresses, datagrams):
            network = NetworkPolicy(mode="allow", allow=("a.example",))
            async with self.cave(project=database, network=network) as cave:

                async def listens() -> bool:
                    return b"listening" in b"".join([p async for p in cave.logs(service="db")])

                await until(listens)
                assert await self.script(cave, _CLIENT, "db", "5432") == "hello from db"
                told = (await cave.exec("echo $no_proxy")).stdout.strip().split(",")
                assert told[-2:] == ["cave", "db"]  # what speaks HTTP reaches it too
                async with cave.dial(5432, service="db") as stream:
                    assert await stream.receive() == b"hello from db"
                with pytest.raises(NotFound) as caught:
                    async with cave.dial(1, service="nothing"):
                        pass
                assert "db" in caught.value.hint
                assert await self.script(cave, _WAY_OUT, str(port), *addresses) == ""
                with pytest.raises(BlockingIOError):
                    datagrams.recv(100)
                assert cave.info.assurance["network"].enforced
                cave_id = cave.id
        await self.nothing_left(cave_id)
        names = [v["Name"] for v in self.engine.volumes()["Volumes"]]
        assert any(name.startswith("ghost-runtime-") for name in names)  # it was another's

    async def test_caves_do_not_reach_each_others_services(self) -> None:
        async with (
            self.cave(project=await self.with_database()) as one,
            self.cave(project=self.project(other=_NAP)) as two,
        ):
            backend = self.make()
            async with backend:
                address = await backend.address(one.id, "db")
            await until(lambda: self._answers(one, address))
            assert await self.script(two, _WAY_OUT, "5432", address, "db") == ""

    async def _answers(self, cave: Cave, address: str) -> bool:
        return (await cave.exec([*self.python, _CLIENT, address, "5432"])).exit_code == 0

    async def test_side_services_stop_and_pause_with_the_cave(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            assert self.states(info) == {"running"}
            await backend.stop(info.id, pause=True)
            assert self.states(info) == {"paused"}
            await backend.start(info.id)
            assert self.states(info) == {"running"}
            await backend.stop(info.id)
            assert self.states(info) == {"exited"}
            await backend.start(info.id)
            assert self.states(info) == {"running"}
            self.engine.kill(self.container(info))
            await backend.list()
            assert self.states(info) == {"exited"}  # no cave, no service beside it

    async def test_the_service_of_a_file_that_becomes_the_cave(self) -> None:
        file = {
            "services": {
                "web": {
                    "image": self.image,
                    "environment": ["GREETING=hello", "COUNT=3"],
                    "command": "never run",
                    "ports": ["80:80"],
                    "depends_on": {"db": {"condition": "service_healthy"}},
                    "networks": ["back"],
                },
                "db": {
                    **_NAP,
                    "image": self.image,
                    "depends_on": ["web"],
                    "networks": ["back"],
                    "healthcheck": {"test": ["CMD", "true"], "interval": "1s"},
                },
            },
            "networks": {"back": {}},
        }
        project = {"file": file, "service": "web"}
        async with self.cave(image=None, project=project, env={"COUNT": "4"}) as cave:
            said = await cave.exec("echo $GREETING $COUNT")
            assert said.stdout == "hello 4\n"
            seen = self.engine.inspect_container(self.container(cave.info))
            assert not seen["NetworkSettings"]["Ports"]
            assert list(seen["NetworkSettings"]["Networks"]) == [f"ghost_{cave.id}_back"]
            assert (
                seen["Config"]["Image"] != self.image
            )  # a cave's folders and user are laid over it

    async def test_nothing_is_left_when_the_hub_is_killed(self) -> None:
        spec = self.spec(ephemeral=True, project=self.project(side=_NAP))
        with self._hub(spec) as hub:
            assert hub.stdout is not None
            said = await asyncio.to_thread(hub.stdout.readline)
            assert said.strip() == spec.id
            assert await self.leftovers(spec.id) != []
        await self.nothing_left(spec.id)

    async def test_nothing_is_left_when_the_hub_is_killed_before_the_cave_starts(self) -> None:
        """The container is there then, and has no program that could end it."""
        ill = {**_NAP, "healthcheck": {"test": ["CMD", "no"], "interval": "1s", "retries": 999}}
        waits = {"depends_on": {"side": {"condition": "service_healthy"}}}
        spec = self.spec(ephemeral=True, project=self.project(side=ill, cave=waits))
        asked = {"label": f"{compose.OF}={spec.id}", "status": "running"}

        async def side_runs() -> bool:
            return bool(self.engine.containers(filters=asked))

        with self._hub(spec):
            await until(side_runs)
        await self.nothing_left(spec.id)

    @contextmanager
    def _hub(self, spec: CaveSpec) -> Iterator[subprocess.Popen[str]]:
        """A process that makes this cave; killed at the end of the block."""
        arguments = [self.instance, str(self.cache), json.dumps(spec.as_dict())]
        with subprocess.Popen(
            [sys.executable, "-c", _HUB, *arguments], stdout=subprocess.PIPE, text=True
        ) as hub:
            try:
                yield hub
            finally:
                hub.kill()

    async def test_a_cave_removed_by_hand_takes_its_services_with_it(self) -> None:
        async with self.backend() as backend:
            info = await backend.create(self.spec())
            self.engine.remove_container(self.container(info), v=True, force=True)
            assert await self.ours(backend) == []
            await self.nothing_left(info.id)

    async def test_secrets_are_in_no_file_and_nothing_of_ours_is_put_into_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        value = secrets.token_hex(16)
        monkeypatch.setenv("GHOST_TEST_VALUE", value)
        side = {**_NAP, "environment": {"LEAK": "${GHOST_TEST_VALUE}"}}
        async with self.backend() as backend:
            spec = self.spec(project=self.project(side=side), secrets=["KEY"])
            info = await backend.create(spec, secrets={"KEY": value.encode()})
            asked = {"label": f"com.docker.compose.project=ghost_{info.id}"}
            for one in self.engine.containers(all=True, filters=asked):
                assert value not in json.dumps(self.engine.inspect_container(one["Id"]))

    async def test_services_whose_cave_waits_for_what_fails(self) -> None:
        file = self.project(
            side={"command": ["sh", "-c", "exit 3"]},
            cave={"depends_on": {"side": {"condition": "service_completed_successfully"}}},
        )
        async with self.backend() as backend:
            spec = self.spec(project=file)
            with pytest.raises(BackendUnavailable, match="failed"):
                await backend.create(spec)
            await self.nothing_left(spec.id)

    async def test_from_the_command_line(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("GHOST_INSTANCE", self.instance)
        monkeypatch.setenv("GHOST_BACKEND", "compose")
        talks = {"command": ["sh", "-c", "echo said by db; exec sleep 3600"]}
        project = self.project(web={"command": "never run"}, db=talks)
        (tmp_path / "compose.yaml").write_text(json.dumps(project["file"]))
        made = ["create", "shop", "--file", str(tmp_path / "compose.yaml"), "--service", "web"]
        assert "created shop" in await asyncio.to_thread(_ghost, *made)

        async def said() -> bool:  # its program may not have got there yet
            logs = await asyncio.to_thread(_ghost, "logs", "shop", "--service", "db")
            return "said by db" in logs

        await until(said)
        shown = json.loads(await asyncio.to_thread(_ghost, "info", "shop", "--json"))
        assert shown["spec"]["project"]["service"] == "web"
        assert "destroyed shop" in await asyncio.to_thread(_ghost, "destroy", "shop")
        await self.nothing_left(shown["id"])


def _ghost(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ghost_mcp.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def _listening() -> Iterator[tuple[int, list[str], socket.socket]]:
    """A port of this machine that answers on every address it has, and what comes to it without a connection."""
    with (
        socket.create_server(("0.0.0.0", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        port = server.getsockname()[1]
        datagrams.bind(("0.0.0.0", port))
        datagrams.setblocking(False)
        found = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True)
        yield port, [one for one in found.stdout.split() if ":" not in one], datagrams


LOOSER: tuple[dict[str, Any], ...] = (
    {"privileged": True},
    {"cap_add": ["SYS_ADMIN"]},
    {"devices": ["/dev/kvm"]},
    {"volumes": ["/:/host"]},
    {"volumes_from": ["db"]},
    {"network_mode": "host"},
    {"pid": "host"},
    {"ipc": "host"},
    {"userns_mode": "host"},
    {"security_opt": ["seccomp:unconfined"]},
    {"cgroup_parent": "/"},
    {"sysctls": {"net.ipv4.ip_forward": 1}},
    {"extra_hosts": ["host:host-gateway"]},
    {"env_file": "/etc/passwd"},
    {"secrets": ["x"]},
    {"group_add": ["0"]},
    {"build": "."},
    {"dns": ["1.1.1.1"]},
    {"runtime": "other"},
    {"environment": {"X": "${HOME}"}},
    {"environment": ["HOME"]},
    {"image": "${IMAGE}"},
    {"networks": {"default": {"aliases": ["db"]}}},
    {"networks": ["nowhere"]},
    {"depends_on": ["nobody"]},
)


@pytest.mark.parametrize("loose", LOOSER, ids=lambda loose: next(iter(loose)))
def test_what_would_loosen_the_cave_is_refused(loose: dict[str, Any]) -> None:
    project = Project(file={"services": {"cave": loose, "db": {"image": "x"}}})
    with pytest.raises(InvalidArgument) as caught:
        compose.check(project)
    assert "cave" in str(caught.value)


@pytest.mark.parametrize(
    "network",
    [{"external": True}, {"name": "bridge"}, {"driver": "host"}, {"driver_opts": {"a": "b"}}],
    ids=lambda network: next(iter(network)),
)
def test_a_cave_joins_no_network_of_others(network: dict[str, Any]) -> None:
    with pytest.raises((InvalidArgument, Unsupported)):
        compose.check(Project(file={"networks": {"default": network}}))


@pytest.mark.parametrize("key", ["network_mode", "pid", "ipc"])
def test_no_service_shares_a_namespace_with_the_cave(key: str) -> None:
    with pytest.raises(InvalidArgument):
        compose.check(Project(file={"services": {"db": {"image": "x", key: "service:cave"}}}))


def test_side_services_keep_what_was_written() -> None:
    written = {"image": "x", "privileged": True, "volumes": ["/:/host"], "labels": ["a=b", "c"]}
    file = {"version": "3", "services": {"db": written}, "x-more": {"kept": 1}}
    spec = CaveSpec(project=Project(file=file), image="i$mage")
    made = compose.document(spec, Project(file=file), "default")
    labels = {"a": "b", "c": "", compose.PROJECT: "default", compose.OF: spec.id}
    assert made["services"]["db"] == {**written, "labels": labels}
    assert made["services"]["cave"]["image"] == "i$$mage"
    assert made["networks"]["default"]["internal"] is True


def test_neighbours_need_no_proxy() -> None:
    """Those of the networks that the cave has joined, by all their names; no other, and nothing that is no name."""
    nets = {"inner": {"aliases": ["store", "b,*"]}, "outer": {"aliases": ["far"]}}
    services: dict[str, Any] = {
        "cave": {"networks": ["inner"]},
        "db": {"image": "x", "networks": nets, "container_name": "db-1"},
        "other": {"image": "x", "networks": ["outer"]},
        "none": {"image": "x", "network_mode": "none"},
        "plain": {"image": "x"},
    }
    file = {"services": services, "networks": {"inner": {}, "outer": {}}}
    assert compose.beside(Project(file=file)) == ["cave", "db", "db-1", "store"]
    assert compose.beside(Project(file={"services": {"db": {"image": "x"}}})) == ["cave", "db"]


def test_the_example_is_a_compose_file() -> None:
    project = read("configs/compose/shop.yaml", "web")
    compose.check(project)
    assert compose.image(project) == "debian:12"
    assert compose.awaited(project) == {"db": "service_healthy"}
    assert set(project.sides) == {"db"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("services: [", "no YAML"),
        ("- a list", "no compose file"),
        ("!!python/object/apply:os.system [id]", "no YAML"),
        ("x-a: &a [" + "x," * 200 + "]\nx-b: &b [" + "*a," * 200 + "]\n", "values"),
        ("x: " + "y" * (300 << 10), "larger"),
    ],
    ids=["broken", "list", "object", "aliases", "large"],
)
def test_hostile_compose_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "compose.yaml").write_text(text)
    with pytest.raises(InvalidArgument, match=message):
        read(str(tmp_path / "compose.yaml"), "cave")


def test_a_project_survives_its_journey_through_json() -> None:
    project = Project(file={"services": {"db": {"image": "x"}}}, service="web", folder="/srv")
    spec = CaveSpec(project=project)
    assert CaveSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


@pytest.mark.parametrize("bad", [{"service": "../x"}, {"folder": "rel"}, {"file": {"a": object()}}])
def test_what_is_no_project_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Project(**bad)


async def test_other_backends_say_who_can(state_dir: Path) -> None:
    async with Ghost(backend="local", state_dir=state_dir) as ghost:
        with pytest.raises(Unsupported) as caught:
            await ghost.create(project={"file": {}})
        assert "compose" in caught.value.hint


async def test_without_a_tool_the_hint_says_which(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable) as caught:
        await Tool().command()
    assert "docker-compose" in caught.value.hint
