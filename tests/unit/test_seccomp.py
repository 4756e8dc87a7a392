"""The shipped filters: that they are what the policy says, what they decide, and that real programs live with them."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ghost_mcp.backends.local.seccomp import filter_bytes
from ghost_mcp.errors import Unsupported

ROOT = Path(__file__).parents[2]
GENERATOR = ROOT / "configs" / "seccomp" / "generate.py"
POLICY = tomllib.loads((ROOT / "configs" / "seccomp" / "policy.toml").read_text())
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
AUDIT_ARCH_32 = {"x86_64": 0x40000003, "aarch64": 0x40000028}  # i386, 32-bit ARM
ALLOW, KILL_PROCESS, ACT_ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
MACHINES = sorted(AUDIT_ARCH)

LIBSECCOMP = ctypes.util.find_library("seccomp")
needs_libseccomp = pytest.mark.skipif(LIBSECCOMP is None, reason="not run: libseccomp is not here")
needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None or os.uname().machine not in MACHINES,
    reason="not run: bubblewrap on Linux x86_64 or aarch64 is not here",
)


def number(machine: str, name: str) -> int:
    assert LIBSECCOMP is not None
    resolve = ctypes.CDLL(LIBSECCOMP).seccomp_syscall_resolve_name_arch
    found: int = resolve(ctypes.c_uint32(AUDIT_ARCH[machine]), name.encode())
    return found


def decide(program: bytes, call: int, args: tuple[int, ...] = (), arch: int = 0) -> int:
    """What the kernel would answer: the classic BPF that libseccomp emits, executed."""
    values = (*args, *[0] * (6 - len(args)))
    data = struct.pack("=IIQ6Q", call & 0xFFFFFFFF, arch, 0, *(v & (1 << 64) - 1 for v in values))
    code = list(struct.iter_unpack("=HBBI", program))
    position = accumulator = 0
    while True:
        operation, yes, no, operand = code[position]
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x05:
            position += operand
        elif operation == 0x06:
            return operand
        elif operation in (0x15, 0x25, 0x35):
            true = {
                0x15: accumulator == operand,
                0x25: accumulator > operand,
                0x35: accumulator >= operand,
            }[operation]
            position += yes if true else no
        else:
            raise AssertionError(f"unexpected instruction {operation:#x}")


def refused(name: str) -> int:
    return ACT_ERRNO | int(getattr(errno, name))


def python_with_libseccomp() -> str | None:
    for python in (sys.executable, "/usr/bin/python3"):
        probe = "import importlib.util as u, tomllib; u.find_spec('seccomp') or u.find_spec('pyseccomp') or exit(1)"
        if (
            os.path.exists(python)
            and not subprocess.run([python, "-c", probe], check=False).returncode
        ):
            return python
    return None


def test_the_shipped_filters_are_what_the_policy_compiles_to(tmp_path: Path) -> None:
    python = python_with_libseccomp()
    if python is None:
        pytest.skip("not run: neither python3-seccomp nor pyseccomp is here")
    subprocess.run([python, str(GENERATOR), str(tmp_path)], check=True, capture_output=True)
    profile = ROOT / "ghost_mcp" / "backends" / "docker" / "seccomp.json"
    assert (tmp_path / profile.name).read_text() == profile.read_text()
    filters = sorted(tmp_path.glob("*.bpf"))
    assert [path.stem for path in filters] == MACHINES
    for path in filters:
        assert filter_bytes(path.stem) == path.read_bytes()


def test_default_is_this_machine_and_others_are_refused() -> None:
    if os.uname().machine in MACHINES:
        assert filter_bytes() == filter_bytes(os.uname().machine)
    assert filter_bytes("arm64") == filter_bytes("aarch64")
    with pytest.raises(Unsupported) as refusal:
        filter_bytes("../x86_64")
    assert refusal.value.code == "unsupported"
    assert "x86_64" in refusal.value.hint


@needs_libseccomp
@pytest.mark.parametrize("machine", MACHINES)
def test_exactly_the_listed_calls_are_refused(machine: str) -> None:
    program, arch = filter_bytes(machine), AUDIT_ARCH[machine]
    expected = {
        number(machine, name): refused(rule["errno"])
        for rule in POLICY["deny"]
        if machine in rule.get("only_on", [machine])
        for name in rule["syscalls"]
        if number(machine, name) >= 0
    }
    assert len(expected) > 45
    checked_by_argument = {number(machine, rule["syscall"]) for rule in POLICY["argument"]}
    for call in set(range(453)) - checked_by_argument:
        assert decide(program, call, arch=arch) == expected.get(call, ALLOW), call
    for call in (453, 467, 511, 100_000):
        assert decide(program, call, arch=arch) == refused("ENOSYS")


@needs_libseccomp
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "args", "answer"),
    [
        ("clone", (0x003D0F00,), None),  # a thread, as the C library makes it
        ("clone", (0x01200011,), None),  # fork
        ("clone", (0x10000011,), "EPERM"),  # user namespace
        (
            "clone",
            (0x003D0F00 | 0x00020000,),
            "EPERM",
        ),  # mount namespace, hidden among thread flags
        ("clone", (1 << 40 | 0x20000011,), "EPERM"),
        ("ioctl", (0, 0x5401), None),
        ("ioctl", (0, 0x5412), "EPERM"),  # TIOCSTI
        ("ioctl", (0, 0xFFFFFFFF_00005412), "EPERM"),  # the kernel looks at 32 bits only
        ("ioctl", (0, 0x541C), "EPERM"),
        ("ioctl", (0, 0x5423), "EPERM"),
        ("socket", (1, 1), None),
        ("socket", (2, 1), None),
        ("socket", (10, 2), None),
        ("socket", (0, 1), "EOPNOTSUPP"),
        ("socket", (16, 3), "EOPNOTSUPP"),  # NETLINK
        ("socket", (17, 3), "EOPNOTSUPP"),  # PACKET
        ("socket", (29, 3), "EOPNOTSUPP"),  # CAN
        ("socket", (38, 5), "EOPNOTSUPP"),  # ALG
        ("socket", (40, 1), "EOPNOTSUPP"),  # VSOCK
        ("socket", (1 << 32 | 17, 3), "EOPNOTSUPP"),
        ("socketpair", (1, 1), None),
        ("socketpair", (30, 1), "EPERM"),  # TIPC
        ("personality", (0xFFFFFFFF,), None),
        ("personality", (0x00040000,), "EPERM"),  # ADDR_NO_RANDOMIZE
        ("personality", (0x00400000,), "EPERM"),  # READ_IMPLIES_EXEC
    ],
)
def test_arguments_decide(
    machine: str, name: str, args: tuple[int, ...], answer: str | None
) -> None:
    verdict = decide(filter_bytes(machine), number(machine, name), args, AUDIT_ARCH[machine])
    assert verdict == (ALLOW if answer is None else refused(answer))


@pytest.mark.parametrize("machine", MACHINES)
def test_other_abis_are_killed(machine: str) -> None:
    program = filter_bytes(machine)
    for call in (1, 20, 39, 90):
        assert decide(program, call, arch=AUDIT_ARCH_32[machine]) == KILL_PROCESS
    if machine == "x86_64":
        for call in (0x40000000, 0x40000000 | 39, 0x40000000 | 520):
            assert decide(program, call, arch=AUDIT_ARCH[machine]) == KILL_PROCESS


# --- in a real sandbox ------------------------------------------------------------------------------

# What each call answers without a filter, to a program without capabilities; the arguments do no harm.
PROBES: dict[str, tuple[int, ...]] = {
    "unshare": (0,),
    "setns": (2**64 - 1, 0),
    "clone3": (0, 0),
    "mount": (0, 0, 0, 0, 0),
    "umount2": (0, 0),
    "ptrace": (16, 2**22, 0, 0),
    "process_vm_readv": (1, 0, 0, 0, 0, 0),
    "kcmp": (1, 1, 99, 0, 0),
    "pidfd_getfd": (2**64 - 1, 0, 0),
    "bpf": (2**64 - 1, 0, 0),
    "perf_event_open": (0, 0, 0, 0, 0),
    "userfaultfd": (1,),
    "io_uring_setup": (1, 0),
    "keyctl": (0, 2**64 - 3, 0),
    "add_key": (0, 0, 0, 0, 0),
    "request_key": (0, 0, 0, 0),
    "name_to_handle_at": (2**64 - 1, 0, 0, 0, 0),
    "adjtimex": (0,),
    "personality": (0x0040000,),
    "quotactl_fd": (2**64 - 1, 0, 0, 0),
}
# Refused without a filter as well, for want of capabilities: the filter's own answer shows in `decide` above.
PRIVILEGED = (
    "pivot_root", "open_tree", "move_mount", "fsopen", "fsmount", "mount_setattr", "open_by_handle_at",
    "kexec_load", "init_module", "finit_module", "delete_module", "swapon", "swapoff", "reboot", "acct",
    "syslog", "settimeofday", "clock_settime",
)  # fmt: skip
PROBE_PROGRAM = """
import ctypes, errno, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
answers = {}
for name, number, args in json.load(sys.stdin):
    ctypes.set_errno(0)
    libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(arg) for arg in args))
    answers[name] = errno.errorcode.get(ctypes.get_errno(), "0")
pid = libc.syscall(ctypes.c_long(int(sys.argv[1])), ctypes.c_ulong(0x10000011), 0, 0, 0, 0)
if pid == 0:
    os._exit(0)
answers["clone(NEWUSER)"] = "EPERM" if pid < 0 else "0"
for family in ("AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG", "AF_INET", "AF_INET6", "AF_UNIX"):
    kind = socket.SOCK_RAW if family in ("AF_NETLINK", "AF_PACKET") else socket.SOCK_STREAM
    kind = socket.SOCK_SEQPACKET if family == "AF_ALG" else kind
    try:
        socket.socket(getattr(socket, family), kind).close()
        answers[family] = "0"
    except OSError as exc:
        answers[family] = errno.errorcode[exc.errno]
print(json.dumps(answers))
"""


def bwrap(
    command: list[str], *, filtered: bool = True, text: str = "", timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    read, write = os.pipe()
    os.write(write, filter_bytes())
    os.close(write)
    try:
        return subprocess.run(
            [
                "bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session",
                "--cap-drop", "ALL", "--uid", "1000", "--gid", "1000", "--clearenv",
                "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp",
                "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib",
                "--symlink", "usr/lib64", "/lib64", "--ro-bind", "/etc", "/etc",
                "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
                *(["--seccomp", str(read)] if filtered else []),
                "--", *command,
            ],
            check=False,
            input=text,
            text=True,
            capture_output=True,
            timeout=timeout_s,
            pass_fds=[read],
        )  # fmt: skip
    finally:
        os.close(read)


def probe(*, filtered: bool) -> dict[str, str]:
    machine = os.uname().machine
    calls = [(name, number(machine, name), args) for name, args in PROBES.items()]
    calls += [(name, number(machine, name), (0, 0, 0, 0, 0)) for name in PRIVILEGED]
    clone = str(number(machine, "clone"))
    done = bwrap(
        ["/usr/bin/python3", "-c", PROBE_PROGRAM, clone], filtered=filtered, text=json.dumps(calls)
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, str] = json.loads(done.stdout)
    return answers


@needs_bwrap
@needs_libseccomp
def test_the_kernel_refuses_in_a_sandbox() -> None:
    answers = probe(filtered=True)
    assert {answers[name] for name in ("AF_INET", "AF_INET6", "AF_UNIX")} == {"0"}
    assert answers["clone3"] == "ENOSYS"
    families = {"AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"}
    assert {answers[name] for name in families} == {"ENOTSUP"}  # as Python names EOPNOTSUPP
    free = {"AF_INET", "AF_INET6", "AF_UNIX", "clone3", *families}
    assert {n: answer for n, answer in answers.items() if n not in free and answer != "EPERM"} == {}


@needs_bwrap
@needs_libseccomp
def test_without_the_filter_the_same_probes_get_through() -> None:
    """The control: what the test above sees comes from the filter, not from missing capabilities."""
    answers = probe(filtered=False)
    # A host's own settings may close these four to everyone.
    closed = {"bpf", "perf_event_open", "userfaultfd", "io_uring_setup"}
    by_filter = {*PROBES, "clone(NEWUSER)", "AF_NETLINK"} - closed
    assert {name for name in by_filter if answers[name] in ("EPERM", "ENOSYS", "ENOTSUP")} == set()


@needs_bwrap
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="not run: x32 is an ABI of x86_64")
def test_an_x32_call_ends_the_process() -> None:
    getpid = (
        "import ctypes; ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 | 39)); print('alive')"
    )
    done = bwrap(["/usr/bin/python3", "-c", getpid])
    assert done.stdout == ""
    assert done.returncode == 128 + signal.SIGSYS


@needs_bwrap
def test_python_works() -> None:
    program = """
import os, socket, subprocess, threading
results = []
threads = [threading.Thread(target=results.append, args=(n,)) for n in range(20)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(results) == 20
pid = os.fork()
if pid == 0: os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert subprocess.run(["sh", "-c", "echo $((6 * 7)) | cat"], capture_output=True).stdout == b"42\\n"
import multiprocessing, pty
with multiprocessing.Pool(2) as pool: assert pool.map(abs, [-1, -2]) == [1, 2]
os.close(pty.openpty()[0])
assert socket.getaddrinfo("localhost", 80)[0][4][0] in ("127.0.0.1", "::1")
server = socket.create_server(("127.0.0.1", 0)); socket.create_connection(server.getsockname())
print("fine")
"""
    done = bwrap(["/usr/bin/python3", "-c", program])
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


@needs_bwrap
@pytest.mark.skipif(not os.path.exists("/usr/bin/node"), reason="not run: node is not here")
def test_node_works() -> None:
    program = """
const fs = require("fs"), {Worker} = require("worker_threads");
const {execFileSync} = require("child_process");
if (execFileSync("echo", ["child"]).toString() !== "child\\n") process.exit(3);
fs.promises.readFile("/etc/services").then(() =>
  new Worker("require('worker_threads').parentPort.postMessage('worker')", {eval: true})
    .on("message", (text) => console.log(text)));
"""
    done = bwrap(["/usr/bin/node", "-e", program])
    assert (done.stdout, done.returncode) == ("worker\n", 0), done.stderr


@needs_bwrap
@pytest.mark.skipif(shutil.which("chromium") is None, reason="not run: chromium is not here")
def test_chromium_renders_a_page() -> None:
    assert bwrap(["chromium", "--version"]).stdout.startswith("Chromium ")
    page = "data:text/html,<script>document.write(6*7)</script>"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir=/tmp/profile"]
    done = bwrap(["chromium", *flags, "--dump-dom", page])
    assert "<body>42</body>" in done.stdout, done.stderr
