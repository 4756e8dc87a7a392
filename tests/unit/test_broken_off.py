"""What was opened is closed, also when its end, or what should have taken it over, is broken off or fails."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import tempfile
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute

from ghost_mcp import CaveSpec, Ghost
from ghost_mcp.backends.docker.address import Tunnel
from ghost_mcp.backends.docker.backend import DockerBackend
from ghost_mcp.backends.fake import FakeBackend
from ghost_mcp.backends.local.backend import LocalBackend
from ghost_mcp.backends.tail import tail
from ghost_mcp.egress import dial
from ghost_mcp.egress.policy import Address
from ghost_mcp.errors import BackendUnavailable, CaveGone
from ghost_mcp.sockets import Wired
from ghost_mcp.spec import CaveInfo, NetworkPolicy
from ghost_mcp.warden import wire
from ghost_mcp.warden.link import Configured, Link

PATIENCE_S = 30


def closed(stream: Wired) -> bool:
    raw: socket.socket = stream.extra_attributes[SocketAttribute.raw_socket]()
    return raw.fileno() == -1


# --- links ---------------------------------------------------------------------------------------


async def test_who_waits_on_a_stream_hears_that_it_was_given_up_over_a_broken_link() -> None:
    ours, theirs = map(Wired, socket.socketpair())
    heard: list[str] = []
    with anyio.fail_after(PATIENCE_S):
        await theirs.send(wire.Connection(hub=False).send_hello({}))
        async with ours, theirs, anyio.create_task_group() as tasks:
            link = await Link.open(ours, tasks, name="x")

            async def wait() -> None:
                with pytest.raises(CaveGone) as caught:
                    await stream.note()
                heard.append(caught.value.message)

            with pytest.raises(CaveGone):
                async with link.stream("dial") as stream:
                    tasks.start_soon(wait)
                    await anyio.wait_all_tasks_blocked()
                    await ours.send_eof()  # what is sent now breaks; what is received does not
            await link.aclose()
    assert heard == ["the stream was given up"]


async def test_a_link_with_half_a_frame_in_it_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    near, far = Wired(ours), Wired(theirs)
    with anyio.fail_after(PATIENCE_S):
        await far.send(wire.Connection(hub=False).send_hello({}))
        async with far, anyio.create_task_group() as tasks:
            link = await Link.open(near, tasks, name="x")
            writing = asyncio.create_task(link.call("write", {}, bytes(100_000)))
            await anyio.wait_all_tasks_blocked()
            writing.cancel()
            await asyncio.wait([writing])
            assert not link.alive
            with pytest.raises(anyio.EndOfStream):
                while True:
                    await far.receive()
        assert closed(near)


async def test_a_link_that_nobody_can_read_any_more_is_closed() -> None:
    near, far = map(Wired, socket.socketpair())
    async with far:
        await far.send(wire.Connection(hub=False).send_hello({}))
        async with anyio.create_task_group() as tasks:
            pass
        with pytest.raises(RuntimeError):
            await Link.open(near, tasks, name="x")
    assert closed(near)


async def test_a_link_whose_network_cannot_be_served_is_closed(state_dir: Path) -> None:
    class Forgetful(LocalBackend):
        async def get(self, name: str) -> CaveInfo:
            raise BackendUnavailable("not now")

    network = NetworkPolicy(mode="allow", allow=("example.org:443",))
    async with Ghost(backend=Forgetful(state_dir)) as ghost:
        cave = await ghost.create(CaveSpec(ephemeral=True, network=network))
        with pytest.raises(BackendUnavailable):
            await ghost.link(cave.id)
        await anyio.wait_all_tasks_blocked()
        assert f"link of {cave.id}" not in {task.get_name() for task in asyncio.all_tasks()}


# --- the front door ------------------------------------------------------------------------------


async def test_a_ghost_closes_everything_also_what_comes_after_a_failure() -> None:
    done: list[str] = []
    making = asyncio.Event()

    class Kept:
        def __init__(self, name: str) -> None:
            self._name = name

        async def aclose(self) -> None:
            done.append(self._name)
            raise RuntimeError(self._name)

    class Slow(FakeBackend):
        pools = True

        async def prepare(self, template: CaveSpec) -> str:
            making.set()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    for _ in range(10):
                        await anyio.lowlevel.checkpoint()
                    done.append("a cave for the pool")
            raise AssertionError

        async def __aexit__(self, *exc: object) -> None:
            done.append("the backend")
            await super().__aexit__(*exc)

    with pytest.raises(RuntimeError):
        async with Ghost(backend=Slow(), pool_size=1) as ghost:
            ghost.keep.get("first", lambda: Kept("first"))
            ghost.keep.get("second", lambda: Kept("second"))
            await ghost.backend()
            await making.wait()
    assert done == ["second", "first", "a cave for the pool", "the backend"]


# --- backends ------------------------------------------------------------------------------------


async def test_a_docker_caves_connections_are_closed_while_the_call_is_cancelled() -> None:
    (relay, _), (lifeline, _) = kept = [list(map(Wired, socket.socketpair())) for _ in range(2)]
    backend = DockerBackend()
    backend._begun["x"] = Configured(relay, Link(relay, "x"))
    backend._lifelines["x"] = lifeline
    with anyio.CancelScope() as scope:
        scope.cancel()
        await backend._hang_up("x")
    assert closed(relay)
    assert closed(lifeline)
    for _, far in kept:
        await far.aclose()


async def test_the_lifelines_of_docker_caves_close_though_the_engine_is_away() -> None:
    class Away(DockerBackend):
        async def destroy(self, cave_id: str) -> None:
            raise BackendUnavailable("away")

    lifeline, far = map(Wired, socket.socketpair())
    backend = Away()
    backend._lifelines["x"] = lifeline
    await backend.__aexit__(None, None, None)
    assert closed(lifeline)
    await far.aclose()


def test_a_tunnel_that_cannot_listen_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ssh").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(OSError, match="too long"):
        Tunnel("ssh://engine")
    assert list(folder.iterdir()) == []
    gc.collect()  # a socket that is still open says so now


async def test_local_caves_are_let_go_of_though_one_cannot_be_destroyed(tmp_path: Path) -> None:
    class Stuck(LocalBackend):
        async def destroy(self, cave_id: str) -> None:
            tried.append(cave_id)
            raise BackendUnavailable("it does not end")

    tried: list[str] = []
    backend = Stuck(tmp_path)
    ends = [os.pipe() for _ in range(3)]
    backend._lifelines = {"one": ends[0][1], "two": ends[1][1]}
    backend._released = {"three": ends[2][1]}
    with pytest.raises(BackendUnavailable):
        await backend.__aexit__(None, None, None)
    assert sorted(tried) == ["one", "two"]
    for end, _ in ends:
        assert os.read(end, 1) == b""  # the other end is closed
        os.close(end)


async def test_no_log_is_open_between_its_pieces(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"word")
    pieces = tail(log, lambda: True)
    assert await anext(pieces) == b"word"
    there = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
    assert str(log) not in {os.readlink(fd) for fd in there if os.path.lexists(fd)}


# --- the way out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", range(12))
async def test_a_connection_that_was_won_for_nobody_is_closed(passes: int) -> None:
    """``passes``: how many turns of the loop the one who asked waits for it."""
    made: list[Wired] = []

    async def connected(addresses: list[Address], port: int) -> None:
        stream, _ = await dial._race(addresses, port, [])  # type: ignore[misc]
        made.append(stream)  # type: ignore[arg-type]

    with socket.create_server(("127.0.0.1", 0)) as listener:
        both = [dial.normal_host("127.0.0.1"), dial.normal_host("127.0.0.2")]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connected, both, listener.getsockname()[1])
            for _ in range(passes):
                await asyncio.sleep(0)
            tasks.cancel_scope.cancel()
    for stream in made:
        await stream.aclose()
    gc.collect()  # a socket that is still open says so now
