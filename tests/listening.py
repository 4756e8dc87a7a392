# Only this file knows what listens on the host because of a test.
"""Ports that a test, and what it started, listen on outside of caves. Others on this machine do not count."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress
from pathlib import Path

import psutil

__all__ = ["free_port", "listening"]

FIRST = 20_000


def free_port() -> int:
    """A port of loopback that nobody has, for who cannot choose one: below those that connections are given by chance."""
    chance = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", random.randrange(FIRST, max(chance, FIRST + 1000))))
            return int(tried.getsockname()[1])
    raise RuntimeError("no free port was found")


def listening() -> set[tuple[str, int]]:
    """Addresses and ports, TCP of both families, in this process's network namespace."""
    me = psutil.Process()
    home = os.stat("/proc/self/ns/net").st_ino
    found = set()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, FileNotFoundError):
            if os.stat(f"/proc/{process.pid}/ns/net").st_ino != home:
                continue  # a cave's own
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    found.add((str(one.laddr.ip), int(one.laddr.port)))
    return found
