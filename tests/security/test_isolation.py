"""Isolation, group I: each border of a cave, tried from inside; what is seen of it, looked at from outside."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from ghost_mcp import Cave, CaveSpec, Ghost, GhostError
from ghost_mcp.backends.docker.engine import open_client
from ghost_mcp.backends.kubernetes.backend import KubernetesBackend
from ghost_mcp.backends.local import launch as launching
from ghost_mcp.backends.local.backend import LocalBackend
from ghost_mcp.backends.local.launch import PRELOAD

PROBE = (Path(__file__).parent / "probe.py").read_text()
SPACES = ("user", "pid", "mnt", "net", "ipc", "uts")
DEVICES = {
    *("core", "fd", "full", "null", "ptmx", "pts", "random", "shm"),
    *("stderr", "stdin", "stdout", "tty", "urandom", "zero", "console"),
}


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """A server on the host's loopback that no cave may reach."""
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        sock.setblocking(False)
        yield sock


@pytest.fixture(scope="module")
def canaries() -> Iterator[list[str]]:
    """Files of the host that no cave may see."""
    home = "/root" if os.geteuid() == 0 else Path.home()
    folder = Path(tempfile.mkdtemp(prefix=".ghost-canary-", dir=home))
    (folder / "secret").write_text("canary")
    yield [str(folder), str(folder / "secret")]
    shutil.rmtree(folder)


async def probe(cave: Cave, **given: Any) -> dict[str, Any]:
    settings = {
        "port": 9,
        "addresses": [],
        "abstract": "x",
        "paths": [],
        "interfaces": False,
        **given,
    }
    result = await cave.exec(["python3", "-c", PROBE], stdin=json.dumps(settings), timeout_s=60)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def warden_pid(cave: Cave) -> int:
    """The host's number of a cave's PID 1."""
    backend = cave._backend
    if isinstance(backend, LocalBackend):
        found = backend.state.find(cave.id).warden_pid()
    else:
        labels = [f"ghost.id={cave.id}"]
        if isinstance(backend, KubernetesBackend):
            pod = f"io.kubernetes.pod.name=ghost-{cave.id}"
            labels = [pod, "io.kubernetes.container.name=cave"]
        with closing(open_client()) as engine:
            (one,) = engine.containers(filters={"label": labels})
            found = engine.inspect_container(one["Id"])["State"]["Pid"]
    assert found is not None
    return int(found)


def host_processes(cave: Cave) -> list[dict[str, str]]:
    """/proc/PID/status and the namespaces of every process of the cave, found by the warden's pid namespace."""
    warden = warden_pid(cave)
    namespace = os.readlink(f"/proc/{warden}/ns/pid")
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/pid") == namespace:
                lines = Path(f"/proc/{entry}/status").read_text().splitlines()
                spaces = {kind: os.readlink(f"/proc/{entry}/ns/{kind}") for kind in SPACES}
                found.append(dict(line.split(":", 1) for line in lines) | spaces)
        except OSError:
            continue
    return found


def state_paths(cave: Cave) -> list[str]:
    """What a backend has of that cave in this machine's file system."""
    backend = cave._backend
    if isinstance(backend, LocalBackend):
        return [str(backend.state.path), str(backend.state.find(cave.id).path), "/sys/kernel"]
    return ["/var/lib/docker", "/var/lib/containerd"]


async def test_i1_identity(ghost: Ghost) -> None:
    """Every process of a cave: no root, a user of its own, no privilege, its own namespaces."""
    uids = set()
    for _ in range(2):
        cave = await ghost.create(CaveSpec(ephemeral=True))
        await cave.call("session", {"action": "create", "name": "s"})
        await cave.call("exec", {"line": "setsid sleep 60 & sleep 60", "keep": True, "wait_s": 0.2})
        with anyio.fail_after(30):
            while len(processes := host_processes(cave)) < 4:
                await anyio.sleep(0.05)
        for process in processes:
            uids_of = process["Uid"].split()
            assert "0" not in uids_of
            assert process["NoNewPrivs"].strip() == "1"
            assert process["Seccomp"].strip() == "2"
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(process[name], 16) == 0, (name, process)
            for kind in SPACES if cave.info.backend == "local" else SPACES[1:]:
                assert process[kind] != os.readlink(f"/proc/self/ns/{kind}"), kind
        uids.add(processes[0]["Uid"])
        await cave.destroy() if len(uids) == 2 else None
    if cave.info.assurance["user"].enforced:
        assert len(uids) == 2, "two caves share a host user"


async def test_i2_no_sysctl_can_be_written(cave: Cave) -> None:
    assert (await probe(cave))["writable"] == []


async def test_i3_syscalls_are_refused_and_programs_still_run(cave: Cave) -> None:
    found = await probe(cave)
    assert {
        name: how for name, how in found["syscalls"].items() if how not in ("EPERM", "ENOSYS")
    } == {}
    assert found["tiocsti"] in ("EPERM", "EIO")
    allowed = {name for name, how in found["sockets"].items() if how == "ok"}
    assert allowed == {"unix", "inet", "inet6"}
    threads = "import threading,subprocess; t=threading.Thread(target=print,args=('thread',)); t.start(); t.join(); subprocess.run(['true'],check=True)"
    assert (await cave.exec(["python3", "-c", threads])).stdout == "thread\n"


async def test_i3_large_programs_live_with_the_filter(cave: Cave) -> None:
    assert (await cave.exec(["node", "-e", "console.log(1+1)"])).stdout == "2\n"
    assert "Chromium" in (await cave.exec(["chromium", "--version"])).stdout


async def test_i4_nothing_of_the_host_is_seen(
    ghost: Ghost, cave: Cave, canaries: list[str]
) -> None:
    other = await ghost.create(CaveSpec(ephemeral=True))
    paths = [
        *canaries,
        f"/proc/{warden_pid(other)}/root",
        *state_paths(other),
        *("/root", "/var/lib/ghost", "/etc/shadow", "/boot"),
        *(
            "/var/run/docker.sock",
            "/run/docker.sock",
            "/run/containerd",
            "/run/dbus",
            "/home/" + "root",
        ),
        sys.prefix if not sys.prefix.startswith("/usr") else "/root",
    ]
    with anyio.fail_after(60):  # of the connections of tests before, the last ends may be to come
        while len((found := await probe(cave, paths=paths))["pids"]) > 4:
            await anyio.sleep(0.2)
    assert {path for path, there in found["seen"].items() if there} == set()
    with suppress(FileNotFoundError):
        host = Path("/etc/machine-id").read_text()
        assert (await cave.exec("cat /etc/machine-id")).stdout != host
    assert set(found["dev"]) <= DEVICES | ({"mqueue"} if cave.info.backend != "local" else set())
    assert set(found["fds"]) - {3} <= {0, 1, 2}  # 3 is the listing itself
    assert found.get("wrote", []) == []
    environment = (await cave.exec("env")).stdout
    assert "GHOST_STATE" not in environment
    assert not any(
        name in environment for name in os.environ if name.startswith(("AWS", "GITHUB", "SSH"))
    )


async def test_i4_the_wardens_own_memory_and_files_are_closed_to_programs(cave: Cave) -> None:
    tried = await cave.exec(
        "cat /proc/1/environ; ls /proc/1/fd; cat /proc/1/mem | head -c 1; echo x >/proc/1/comm"
    )
    assert tried.stdout == ""
    assert tried.stderr.count("Permission denied") >= 3


async def test_i5_no_network(cave: Cave, listener: socket.socket) -> None:
    """Neither the host's loopback nor its addresses, metadata services, abstract sockets or DNS."""
    port = listener.getsockname()[1]
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as hidden:
        name = f"ghost-test-{secrets.token_hex(8)}"
        hidden.bind(f"\0{name}")
        hidden.listen(1)
        own = (
            {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
            if _resolvable()
            else set()
        )
        addresses = [
            "127.0.0.1",
            "127.0.0.2",
            "0.0.0.0",
            "::1",
            "169.254.169.254",
            "fd00:ec2::254",
            "10.0.2.2",
            *own,
        ]
        found = await probe(cave, port=port, addresses=[str(a) for a in addresses], abstract=name)
    assert "ok" not in found["reach"].values(), found["reach"]
    assert found["abstract"] == "ECONNREFUSED"
    assert found["dns"] != "ok"
    with pytest.raises(BlockingIOError):
        listener.accept()


def _resolvable() -> bool:
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return False
    return True


def _stub(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


@pytest.mark.parametrize("how", ["missing", "refuses", "ignores"])
async def test_i6_fails_closed(state_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Without a working bubblewrap nothing runs, and the error says what to do."""
    folder = state_dir / f"stub-{how}"
    folder.mkdir(mode=0o755, exist_ok=True)
    mark = state_dir / "ran-unsandboxed"
    if how == "refuses":
        _stub(folder, "bwrap", 'echo "bwrap: No permissions to create new namespace" >&2; exit 1')
    if how == "ignores":  # a bubblewrap that starts nothing and says nothing
        _stub(folder, "bwrap", "exit 0")
    monkeypatch.setattr(launching, "require_bwrap", launching.require_bwrap.__wrapped__)
    real = shutil.which
    monkeypatch.setattr(
        shutil,
        "which",
        lambda name, path=None: (
            (str(folder / "bwrap") if how != "missing" else None) if name == "bwrap" else real(name)
        ),
    )
    monkeypatch.setattr("ghost_mcp.backends.local.backend.require_bwrap", launching.require_bwrap)
    with pytest.raises(GhostError) as caught:
        async with Ghost(backend="local", state_dir=state_dir) as ghost:
            cave = await ghost.create(CaveSpec(ephemeral=True))
            await cave.exec(["touch", str(mark)])
    assert caught.value.code == "backend_unavailable"
    assert caught.value.hint
    if how == "refuses":
        assert "No permissions" in caught.value.message
    assert not mark.exists()


async def test_i6_a_filter_that_does_not_load_stops_the_cave(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "filter_bytes", lambda: b"\xff" * 64)
    with pytest.raises(GhostError, match="did not start"):
        async with Ghost(backend="local", state_dir=state_dir) as ghost:
            await ghost.create(CaveSpec(ephemeral=True))


async def test_i7_caves_do_not_see_each_other(ghost: Ghost, cave: Cave) -> None:
    """Same port in both: each client meets its own server; no process, file or socket is shared."""
    other = await ghost.create(CaveSpec(ephemeral=True))
    try:
        for one, text in ((cave, "first"), (other, "second")):
            await one.write("index.html", text)
            await one.call(
                "exec",
                {
                    "line": "exec python3 -m http.server 8000 --bind 127.0.0.1",
                    "keep": True,
                    "wait_s": 0,
                },
            )
            await one.exec(
                "for i in $(seq 600); do (echo >/dev/tcp/127.0.0.1/8000) 2>/dev/null && break; sleep .05; done"
            )
        for one, text in ((cave, "first"), (other, "second")):
            asked = await one.exec(
                "exec 3<>/dev/tcp/127.0.0.1/8000; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
            )
            assert asked.stdout.endswith(text)
        names = (await cave.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")).stdout
        assert names.count("http.server") == 1
        await cave.exec("kill -9 -1")  # everything the first cave can see
        assert (await other.exec(["echo", "alive"])).stdout == "alive\n"
        assert (await cave.exec(["echo", "alive"])).stdout == "alive\n"
    finally:
        await other.destroy()


async def test_the_cave_is_writable_where_people_expect_it(cave: Cave) -> None:
    done = await cave.exec(
        "touch /workspace/a /tmp/b ~/c /var/tmp/d /dev/shm/e && mkdir -p ~/.local/bin && echo done"
    )
    assert done.stdout == "done\n", done.stderr


def test_no_option_reaches_the_sandbox_from_a_tool_call() -> None:
    """The only door to a cave's making is CaveSpec. What opens a border in it (folders, a project) no tool passes."""
    fields = set(CaveSpec.__dataclass_fields__)
    assert fields == {
        *(
            "id",
            "name",
            "backend",
            "image",
            "env",
            "secrets",
            "limits",
            "timeout_s",
            "idle_timeout_s",
        ),
        *("network", "workspace", "mounts", "labels", "owner", "ephemeral", "project", "gpus"),
        "given",  # values of secrets, on their way
    }


async def test_a_root_tree_as_image_is_all_the_system_a_cave_sees(
    ghost: Ghost, state_dir: Path
) -> None:
    """Even an empty one: files work, and the host's programs are not there."""
    root = state_dir / "empty-root"
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc" / "motto").write_text("mine")
    cave = await ghost.create(CaveSpec(ephemeral=True, image=str(root)))
    try:
        await cave.write("note", b"kept")
        assert (await cave.read("note")).data == b"kept"
        assert (await cave.read("/etc/motto")).data == b"mine"
        assert (
            b"networkInterfaces" in (await cave.read(PRELOAD)).data
        )  # a program of Node's needs it
        records, _ = await cave.records("list", {"path": "/", "hidden": True})
        assert "usr" not in {record["path"] for record in records}
        with pytest.raises(GhostError) as caught:
            await cave.exec("ls")
        assert caught.value.code == "program_not_found"
    finally:
        await cave.destroy()
    with pytest.raises(GhostError, match="not a root tree"):
        await ghost.create(CaveSpec(ephemeral=True, image="ubuntu:22.04"))
