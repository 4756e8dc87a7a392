"""The limit driver on this machine's real cgroups, whichever version it finds."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from ghost_mcp.backends.local import hierarchies
from ghost_mcp.backends.local.cgroups import CgroupDriver, detect
from ghost_mcp.errors import BackendUnavailable, InvalidArgument, LimitExceeded, Unsupported
from ghost_mcp.spec import Limits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="not run: cgroups are Linux's")

MIB = 1 << 20
NONE = Limits(memory_bytes=None, pids=None, cpus=None)
JOIN = 'while [ "$1" != -- ]; do echo 0 >"$1" || exit 41; shift; done; shift; exec "$@"'
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def driver() -> CgroupDriver:
    found = detect()
    if not {"memory", "pids", "cpu"} <= set(found.bases):
        pytest.skip("not run: the cgroup controllers memory, pids and cpu are not delegated here")
    return found


@pytest.fixture
def cave_id(driver: CgroupDriver) -> Iterator[str]:
    name = f"test-{secrets.token_hex(6)}"
    yield name
    assert driver.kill(name)
    deadline = time.monotonic() + 30
    while not driver.remove(name):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert name not in driver.list()
    driver.tidy()


@pytest.fixture
def start(driver: CgroupDriver, cave_id: str) -> Iterator[Start]:
    """Starts a Python program inside a cave's groups, as a launcher does."""
    running: list[subprocess.Popen[str]] = []

    def begin(limits: Limits, program: str) -> subprocess.Popen[str]:
        doors = driver.create(cave_id, limits)
        argv = ["sh", "-c", JOIN, "sh", *doors, "--", sys.executable, "-S", "-c", program]
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield begin
    driver.kill(cave_id)
    for process in running:
        with process:
            process.wait(30)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def says_something(process: subprocess.Popen[str], within_s: float) -> bool:
    """Is there output to come? What has been written before is taken away first by the caller."""
    assert process.stdout is not None
    return bool(select.select([process.stdout.fileno()], [], [], within_s)[0])


def test_memory_is_limited_and_counted(driver: CgroupDriver, cave_id: str, start: Start) -> None:
    process = start(Limits(memory_bytes=64 * MIB), "b'x' * (300 << 20)")
    assert process.wait(30) == -signal.SIGKILL
    usage = driver.usage(cave_id)
    assert usage["oom_kills"] >= 1
    assert 60 * MIB < usage["memory_peak_bytes"] <= 64 * MIB


def test_processes_are_limited_and_counted(
    driver: CgroupDriver, cave_id: str, start: Start
) -> None:
    program = """
import os
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            os.read(0, 1)
            os._exit(0)
        made += 1
except BlockingIOError:
    print(made, flush=True)
os.read(0, 1)
"""
    process = start(Limits(pids=20), program)
    assert line(process) == "19"
    assert driver.usage(cave_id)["pids"] == 20


def test_cpu_is_limited_and_counted(driver: CgroupDriver, cave_id: str, start: Start) -> None:
    program = """
import time
end = time.monotonic() + 2
while time.monotonic() < end: pass
print(time.process_time(), flush=True)
input()
"""
    process = start(Limits(cpus=0.2), program)
    used_s = float(line(process))
    assert 0.05 < used_s < 0.6
    assert driver.usage(cave_id)["cpu_s"] == pytest.approx(used_s, abs=0.15)


def test_a_frozen_cave_stands_still(driver: CgroupDriver, cave_id: str, start: Start) -> None:
    program = """
import os, time
if os.fork() == 0: os.setsid()
while True:
    os.write(1, b"tick\\n")
    time.sleep(0.001)
"""
    process = start(Limits(), program)
    assert line(process) == "tick"
    assert not driver.frozen(cave_id)
    driver.freeze(cave_id)
    assert driver.frozen(cave_id)
    assert process.stdout is not None
    while says_something(process, 0.05):  # what the pipe still holds
        os.read(process.stdout.fileno(), 1 << 20)
    assert not says_something(process, 0.3)
    assert process.poll() is None
    driver.thaw(cave_id)
    assert not driver.frozen(cave_id)
    assert says_something(process, 30)


def test_kill_reaches_the_frozen_and_the_forking(
    driver: CgroupDriver, cave_id: str, start: Start
) -> None:
    program = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("here", flush=True)
while True:
    try:
        if os.fork() == 0:
            os.setsid()
            if os.fork(): os._exit(0)
    except BlockingIOError:
        os.waitpid(-1, os.WNOHANG) if os.getppid() != 1 else None
"""
    process = start(Limits(pids=40), program)
    assert line(process) == "here"
    driver.freeze(cave_id)
    assert driver.kill(cave_id)
    assert hierarchies.pids_in(driver._groups(cave_id)[0]) == []
    assert driver.kill(cave_id)
    process.wait(30)


def test_limits_change_while_the_cave_lives(
    driver: CgroupDriver, cave_id: str, start: Start
) -> None:
    program = """
import os, time
for _ in range(3):
    if os.fork() == 0: break
os.write(1, b"ready\\n")
kept = b"x" * (100 << 20)
os.write(1, b"filled\\n")
input()
"""
    limits = Limits(memory_bytes=512 * MIB, pids=50)
    process = start(limits, program)
    assert sorted(line(process) for _ in range(8)) == ["filled"] * 4 + ["ready"] * 4
    assert driver.assurance(limits)["cpu"][0] is False
    driver.update(cave_id, Limits(memory_bytes=1024 * MIB, pids=60, cpus=0.5))
    group = driver._group("cpu", cave_id)
    assert len(hierarchies.pids_in(group)) == 4  # they were moved when the cpu limit came
    file = "cpu.max" if driver.version == 2 else "cpu.cfs_quota_us"
    assert hierarchies.read(f"{group}/{file}").split()[0] == "50000"
    assert hierarchies.read(f"{driver._group('pids', cave_id)}/pids.max") == "60\n"
    if driver.version == 1:
        with pytest.raises(LimitExceeded) as refusal:
            driver.update(cave_id, Limits(memory_bytes=64 * MIB, pids=60, cpus=0.5))
        assert refusal.value.code == "limit_exceeded"
        memory = driver._group("memory", cave_id)
        assert hierarchies.read(f"{memory}/memory.limit_in_bytes") == f"{1024 * MIB}\n"
        assert hierarchies.read(f"{memory}/memory.memsw.limit_in_bytes") == f"{1024 * MIB}\n"
    driver.update(cave_id, NONE)
    assert hierarchies.read(f"{group}/{file}").split()[0] in ("-1", "max")
    assert hierarchies.read(f"{driver._group('pids', cave_id)}/pids.max") == "max\n"


def test_a_group_that_was_left_is_as_good_as_new(driver: CgroupDriver, cave_id: str) -> None:
    driver.create(cave_id, Limits(memory_bytes=64 * MIB, pids=20, cpus=0.5))
    assert driver.kill(cave_id)
    driver.create(cave_id, NONE)
    assert hierarchies.read(f"{driver._group('pids', cave_id)}/pids.max") == "max\n"
    file = "memory.max" if driver.version == 2 else "memory.limit_in_bytes"
    limit = hierarchies.read(f"{driver._group('memory', cave_id)}/{file}").strip()
    assert limit == "max" or int(limit) > 1 << 60


def test_groups_come_and_go(driver: CgroupDriver, cave_id: str, start: Start) -> None:
    process = start(Limits(), "print('here', flush=True); input()")
    assert line(process) == "here"
    assert driver.create(cave_id, Limits()) == driver.create(cave_id, Limits())
    assert cave_id in driver.list()
    assert not driver.remove(cave_id)
    elsewhere = CgroupDriver.from_dict(driver.as_dict())
    assert elsewhere.usage(cave_id)["pids"] >= 1
    driver.tidy()
    assert cave_id in driver.list()
    assert elsewhere.kill(cave_id)
    process.wait(30)


def test_swap_is_bounded_with_memory(driver: CgroupDriver, cave_id: str) -> None:
    driver.create(cave_id, Limits(memory_bytes=64 * MIB))
    group = driver._group("memory", cave_id)
    enforced, how = driver.assurance(Limits())["memory"]
    assert enforced
    assert how.startswith(f"cgroup v{driver.version}")
    if driver.version == 2:
        assert hierarchies.read(f"{group}/memory.swap.max") == "0\n"
    elif "swap included" in how:
        assert hierarchies.read(f"{group}/memory.memsw.limit_in_bytes") == f"{64 * MIB}\n"
    else:
        assert not os.path.exists(f"{group}/memory.memsw.limit_in_bytes")


def test_unknown_caves_and_bad_ids(driver: CgroupDriver) -> None:
    unknown = f"test-{secrets.token_hex(6)}"
    assert driver.remove(unknown)
    assert driver.kill(unknown)
    assert not driver.frozen(unknown)
    driver.thaw(unknown)
    assert driver.usage(unknown)["pids"] is None
    for bad in ("", "..", "a/b", "x" * 65, "a\0"):
        with pytest.raises(InvalidArgument):
            driver.create(bad, Limits())


def test_a_lost_base_is_an_error_and_leaves_nothing(driver: CgroupDriver, cave_id: str) -> None:
    gone = {role: [base.version, "/sys/fs/cgroup/no/such"] for role, base in driver.bases.items()}
    with pytest.raises(BackendUnavailable):
        CgroupDriver.from_dict(gone).create(cave_id, Limits())


def test_without_any_controller_nothing_is_claimed() -> None:
    nothing = CgroupDriver({})
    assert nothing.create("abc", Limits()) == ()
    nothing.update("abc", Limits())
    assert {enforced for enforced, _ in nothing.assurance(Limits(cpus=1)).values()} == {False}
    assert set(nothing.usage("abc").values()) == {None}
    assert nothing.kill("abc")
    assert nothing.remove("abc")
    assert nothing.list() == ()
    assert not nothing.frozen("abc")
    with pytest.raises(Unsupported):
        nothing.freeze("abc")


# --- where groups lie: the texts of other machines ----------------------------------------------------

SYSTEMD = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/ghost.service\n"
HYBRID = "4:memory:/job/a\n3:cpu,cpuacct:/job/b\n2:name=systemd:/\n0::/\n"


def test_own_groups_are_read_from_both_layouts() -> None:
    assert dict(hierarchies.own_groups(SYSTEMD)) == {"": SYSTEMD[3:].strip()}
    hybrid = dict(hierarchies.own_groups(HYBRID))
    assert (hybrid["memory"], hybrid["cpuacct"], hybrid[""]) == ("/job/a", "/job/b", "/")


@pytest.mark.parametrize(
    ("own", "root", "expected"),
    [
        ("/job/a", "/", "job/a"),
        ("/", "/", ""),
        ("/docker/0123", "/docker/0123", ""),  # a container that sees its own part only
        ("/docker/0123/x", "/docker/0123", "x"),
        ("/docker/01234", "/docker/0123", None),
        ("/../outside", "/", None),  # a process outside its cgroup namespace's root
        ("/job/missing", "/", None),
        ("", "/", None),
    ],
)
def test_the_folder_of_our_group(
    tmp_path: os.PathLike[str], own: str, root: str, expected: str | None
) -> None:
    for path in ("job/a", "x"):
        os.makedirs(os.path.join(tmp_path, path))
    text = (
        f"36 31 0:32 {root} {tmp_path} rw,relatime shared:9 - cgroup cgroup rw,memory\n"
        f"22 1 0:21 / /sys rw - sysfs sysfs rw\n"
    )
    mounts = list(hierarchies.cgroup_mounts(text))
    assert len(mounts) == 1
    found = hierarchies.folder_of(own, mounts, "cgroup", "memory")
    assert found == (None if expected is None else os.path.join(tmp_path, expected).rstrip("/"))
    assert hierarchies.folder_of(own, mounts, "cgroup", "pids") is None
    assert hierarchies.folder_of(own, mounts, "cgroup2") is None
