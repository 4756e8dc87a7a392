# Runs inside a cave, with the warden's own Python, and tries to cross its walls. It decides nothing.
"""Prints one JSON object: what each attempt met. Given on the command line: a JSON object of what to try."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import sys
from typing import Any

NEWUSER = 0x10000000
# name: number on x86_64, number on aarch64, arguments that a kernel without a filter would take or find invalid
SYSCALLS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "unshare": (272, 97, (NEWUSER,)),
    "mount": (165, 40, (0, 0, 0, 0, 0)),
    "setns": (308, 268, (0, 0)),
    "ptrace": (101, 117, (0, 0, 0, 0)),
    "bpf": (321, 280, (0, 0, 0)),
    "keyctl": (250, 219, (0, 0, 0, 0, 0)),
    "io_uring_setup": (425, 425, (1, 0)),
    "userfaultfd": (323, 282, (0,)),
    "perf_event_open": (298, 241, (0, 0, -1, -1, 0)),
    "open_by_handle_at": (304, 265, (0, 0, 0)),
    "clone3": (435, 435, (0, 0)),
}
READ_ONLY = ("/", "/usr", "/etc", "/dev", "/proc/sys/kernel", "/.ghost")


def name_of(number: int | None) -> str:
    return errno.errorcode.get(number or 0, str(number))


def syscalls() -> dict[str, str]:
    """Each call's error, or ``allowed``."""
    libc = ctypes.CDLL(None, use_errno=True)
    column = 1 if os.uname().machine == "aarch64" else 0
    met = {}
    for name, entry in SYSCALLS.items():
        ctypes.set_errno(0)
        failed = libc.syscall(entry[column], *(ctypes.c_long(value) for value in entry[2])) == -1
        met[name] = name_of(ctypes.get_errno()) if failed else "allowed"
    return met


def writable(*tops: str) -> list[str]:
    """Files below that open for writing."""
    found = []
    for top in tops:
        for folder, _, names in os.walk(top):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    os.close(os.open(path, os.O_WRONLY))
                    found.append(path)
                except OSError:
                    continue
    return found


def created(folders: tuple[str, ...]) -> list[str]:
    """Folders in which a file could be made."""
    found = []
    for folder in folders:
        path = os.path.join(folder, "ghost-probe")
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            os.unlink(path)
            found.append(folder)
        except OSError:
            continue
    return found


def reach(family: int, address: Any) -> str:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(0.5)
        try:
            sock.connect(address)
        except OSError as exc:
            return name_of(exc.errno)
    return "reached"


def interfaces() -> list[str]:
    with open("/proc/net/dev", encoding="ascii") as file:
        return [line.split(":")[0].strip() for line in file if ":" in line]


def status() -> dict[str, str]:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def main() -> None:
    given = json.loads(sys.argv[1])
    print(
        json.dumps(
            {
                "status": status(),
                "syscalls": syscalls(),
                "writable": writable("/proc/sys", "/sys"),
                "created": created(READ_ONLY),
                "seen": [path for path in given["paths"] if os.path.lexists(path)],
                "environment": sorted(set(given["variables"]) & set(os.environ)),
                "reach": {
                    **{a: reach(socket.AF_INET, (a, given["port"])) for a in given["addresses"]},
                    "an abstract socket": reach(socket.AF_UNIX, "\0" + given["abstract"]),
                },
                "interfaces": interfaces(),
                "devices": sorted(os.listdir("/dev")),
                "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
                "namespaces": {n: os.readlink(f"/proc/self/ns/{n}") for n in given["namespaces"]},
            }
        )
    )


if __name__ == "__main__":
    main()
