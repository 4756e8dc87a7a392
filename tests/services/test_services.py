"""Services of a real cave: a user's own, declared in a file, through the library and over HTTP."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from ghost_mcp import Cave, CaveSpec, Ghost
from ghost_mcp.backends.local.backend import LocalBackend
from ghost_mcp.errors import BackendUnavailable, InvalidArgument, NotFound, Unsupported
from ghost_mcp.services.kernels import Kernels
from tests.serving import Served, serving

# Answers each connection with its process number; "end" ends it, "child" leaves a program behind.
PROGRAM = """
import os, socket, subprocess, sys
address = os.environ.get("GHOST_SOCKET") or ("127.0.0.1", int(os.environ["GHOST_PORT"]))
listener = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(address)
listener.listen()
print("listening", flush=True)
while True:
    client, _ = listener.accept()
    with client:
        client.sendall(b"I am %d\\n" % os.getpid())
        word = client.recv(16)
        if word == b"end":
            sys.exit(7)
        if word == b"child":
            client.sendall(b"%d\\n" % subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
"""
DECLARED = f"""
services:
  mine:
    about: a service of a test
    command: |
      exec python3 -c '{PROGRAM.replace(chr(10), chr(10) + "      ")}'
    expect: "I am "
    programs: [python3]
    OPTIONS
  broken:
    command: echo it cannot be >&2; exit 3
  deaf:
    command: exec sleep 60
    ready_s: 0.3
  elsewhere:
    command: exec no-such-program
    programs: [sh, no-such-program, /no/such/file]
    images: [ghost-full]
    packages: "apt-get install it"
"""

Declare = Callable[[str], None]


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Declare:
    """Declare the services of this test, with options for ``mine``. Each has a file of its own."""

    def write(options: str = "") -> None:
        path = tmp_path / f"{secrets.token_hex(4)}.yaml"
        path.write_text(DECLARED.replace("OPTIONS", options))
        monkeypatch.setenv("GHOST_SERVICES", str(path))

    write()
    return write


async def ask(cave: Cave, word: bytes = b"") -> bytes:
    """What the service says when it is dialled."""
    async with cave.service("mine").dial() as stream:
        said = await stream.receive()
        await stream.send(word or b"bye")
        try:
            while True:
                said += await stream.receive()
        except anyio.EndOfStream:
            return said


async def shown(cave: Cave) -> list[dict[str, Any]]:
    """What `ghost info` shows of the cave's services."""
    backend = cave._backend
    assert isinstance(backend, LocalBackend)
    argv = [sys.executable, "-m", "ghost_mcp.cli", "info", cave.id, "--json"]
    env = {**os.environ, "GHOST_STATE_DIR": str(backend.state.path)}
    done = await anyio.run_process(argv, env=env)
    found: list[dict[str, Any]] = json.loads(done.stdout)["services"]
    return found


@pytest.mark.parametrize("options", ["", "port: 7777"])
async def test_it_starts_on_first_use_and_stops(cave: Cave, declare: Declare, options: str) -> None:
    declare(options)
    service = cave.service("mine")
    before = await service.status()
    assert (before.state, before.processes) == ("stopped", 0)
    first = await ask(cave)
    assert first.startswith(b"I am ")
    assert await ask(cave) == first
    now = await service.status()
    assert (now.state, now.processes, now.restarts) == ("ready", 1, 0)
    assert now.memory_bytes > 1 << 20
    assert "listening" in await service.log()
    assert [(one["name"], one["state"]) for one in await shown(cave)] == [("mine", "ready")]
    assert next(iter(await cave.services())).name == "mine"
    await service.stop()
    await service.stop()
    assert (await service.status()).state == "stopped"
    assert await shown(cave) == []
    assert (await cave.exec("pgrep -x python3 || true")).stdout == ""


async def test_who_waits_for_it_is_told_whoever_starts_it(
    cave: Cave, ghost: Ghost, declare: Declare, state_dir: Path
) -> None:
    service = cave.service("mine")
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(service.until_ready)
            with anyio.move_on_after(0.2) as patience:
                await service.until_ready()
            assert patience.cancelled_caught  # nobody has started it
            assert (await service.status()).state == "stopped"
            async with Ghost(backend="local", state_dir=state_dir) as other:
                await (await other.get(cave.id)).service("mine").start()
        await service.until_ready()
    assert (await service.status()).uses == 0


async def test_many_starters_of_two_hubs_start_it_once(
    cave: Cave, ghost: Ghost, declare: Declare, state_dir: Path
) -> None:
    said: list[bytes] = []

    async def one(of: Cave) -> None:
        said.append(await ask(of))

    async with Ghost(backend="local", state_dir=state_dir) as other:
        same = await other.get(cave.id)
        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(one, same if number % 2 else cave)
    assert len(said) == 12
    assert len(set(said)) == 1


async def test_it_is_restarted_with_nothing_left_of_the_last(cave: Cave, declare: Declare) -> None:
    first, child = (await ask(cave, b"child")).split(b"\n")[:2]
    await ask(cave, b"end")
    with anyio.fail_after(60):
        while not (await cave.service("mine").status()).restarts:  # it takes a moment to die
            await anyio.sleep(0.02)
        again = await ask(cave)
    assert again.split(b"\n")[0] != first
    assert (await cave.service("mine").status()).restarts == 1
    assert (await cave.exec(f"kill -0 {int(child)}")).exit_code != 0


async def test_it_stops_when_idle_and_not_while_it_is_used(cave: Cave, declare: Declare) -> None:
    declare("idle_s: 0.4")
    service = cave.service("mine")
    async with service.using():
        await anyio.sleep(0.8)
        assert (await service.status()).state == "ready"
    async with service.dial() as stream:
        await stream.receive()
        await anyio.sleep(0.8)
        assert (await service.status()).uses == 1
    with anyio.fail_after(60):
        while (await service.status()).state != "stopped":
            await anyio.sleep(0.05)


async def test_what_does_not_come_up_says_why(cave: Cave, declare: Declare) -> None:
    with pytest.raises(BackendUnavailable, match="exit code 3") as failed:
        await cave.service("broken").start()
    assert failed.value.code == "service_failed"
    assert "it cannot be" in failed.value.hint
    assert (await cave.service("broken").status()).state == "failed"
    with pytest.raises(BackendUnavailable, match=r"did not answer within 0\.3 s"):
        await cave.service("deaf").start()


async def test_what_the_cave_lacks_is_told_with_the_way_out(cave: Cave, declare: Declare) -> None:
    with pytest.raises(Unsupported, match="no no-such-program, /no/such/file") as refused:
        await cave.service("elsewhere").start()
    assert "ghost image build full" in refused.value.hint
    assert "apt-get install it" in refused.value.hint
    assert (await cave.service("elsewhere").status()).state == "missing"
    with pytest.raises(NotFound, match="no service is named 'nothing'"):
        cave.service("nothing")


@pytest.mark.parametrize(
    "text",
    [
        "services: [1]",
        "services: {Bad Name: {command: x}}",
        "services: {a: {command: x, unknown: 1}}",
        "services: {a: 1}",
        "services: {a: {command: x}}\nmore: 1",
        "\0",
    ],
)
async def test_a_wrong_file_is_refused(
    cave: Cave, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "services.yaml"
    path.write_text(text)
    monkeypatch.setenv("GHOST_SERVICES", str(path))
    with pytest.raises(InvalidArgument):
        cave.service("vnc")


@pytest.mark.parametrize(
    "head",
    [
        {"action": "start", "name": "../x", "argv": ["true"]},
        {"action": "start", "name": "x"},
        {"action": "start", "name": "x", "argv": ["true"], "port": "1"},
        {"action": "start", "name": "x", "argv": ["true"], "ready_s": "soon"},
        {"action": "start", "name": "x", "argv": ["no-such-program"]},
        {"action": "dance", "name": "x"},
    ],
)
async def test_the_warden_refuses_what_is_no_service(cave: Cave, head: dict[str, Any]) -> None:
    with pytest.raises((InvalidArgument, NotFound)):
        await cave.call("service", head)
    assert (await cave.call("services"))[0]["services"] == []


async def test_over_http(tmp_path: Path) -> None:
    path = tmp_path / "services.yaml"
    path.write_text(DECLARED.replace("OPTIONS", ""))
    with serving(GHOST_SERVICES=str(path)) as hub:
        await _over_http(hub)


async def _over_http(hub: Served) -> None:
    async with hub.client() as http:
        await http.post("/v1/caves", json={"name": "served"})
        listed = (await http.get("/v1/caves/served/services")).json()["services"]
        assert {one["name"]: one["state"] for one in listed}["mine"] == "stopped"
        started = await http.post("/v1/caves/served/services/mine/start")
        assert started.json()["state"] == "ready"
        stopped = await http.post("/v1/caves/served/services/mine/stop")
        assert stopped.json()["state"] == "stopped"
        lacking = await http.post("/v1/jupyter/execute", json={"code": "1", "cave": "served"})
        if lacking.status_code != 200:  # a machine without Jupyter
            assert lacking.json()["code"] == "service_missing"
            assert "pip install jupyter_client" in lacking.json()["hint"]
        unknown = await http.post("/v1/caves/served/services/nothing/start")
        assert unknown.status_code == 404
        other = hub.make_token(owner="somebody")
        async with hub.client(other) as stranger:
            assert (await stranger.get("/v1/caves/served/services")).status_code == 404
        await http.delete("/v1/caves/served")


KERNEL = """
import json, os, socket
server = socket.socket(socket.AF_UNIX)
server.bind(os.environ["GHOST_SOCKET"])
server.listen()
key = os.environ["API_KEY"]
while True:
    asking, _ = server.accept()
    with asking, asking.makefile("rwb") as lines:
        for line in lines:
            told = {"ok": True, "outputs": [{"type": "stream", "text": key}]}
            if json.loads(line)["op"] != "execute":
                told = {"ok": False, "code": "not_found", "message": "no " + key, "hint": key}
            lines.write(json.dumps(told).encode() + b"\\n")
            lines.flush()
"""


async def test_what_a_kernel_says_is_masked(
    ghost: Ghost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel is dialled, as what is not masked is; what it says is an answer all the same."""
    path = tmp_path / "services.yaml"
    kernels = {"command": f"exec python3 -c '{KERNEL}'", "programs": ["python3"]}
    path.write_text(json.dumps({"services": {"kernels": kernels}}))
    monkeypatch.setenv("GHOST_SERVICES", str(path))
    value = secrets.token_urlsafe(24)
    spec = CaveSpec(ephemeral=True).with_secret("API_KEY", value)
    async with await ghost.create(spec) as cave:
        asked = Kernels(cave)
        done = await asked.execute("print(key)")
        assert done["outputs"][0]["text"].startswith("[secret API_KEY]")
        with pytest.raises(NotFound) as refused:
            await asked.sessions()
        assert value not in json.dumps([done, refused.value.as_dict()])
