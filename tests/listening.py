# Only this file knows what listens on the host because of a test.
"""Ports that a test, and what it started, listen on outside of caves. Others on this machine do not count."""

from __future__ import annotations

import os
from contextlib import suppress

import psutil

__all__ = ["listening"]


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
