# Stands where Playwright's driver expects a browser. Hands the two ends of its DevTools pipe to Ghost and waits.
"""``bridge.py NAME``: pass descriptors 3 and 4 to the abstract unix socket NAME; end when that closes.

A program of its own, started with ``-I -S``: only built-in modules, so that it starts in milliseconds.
"""

import _socket
import os
import sys


def main(name: str) -> None:
    line = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    line.connect(f"\0{name}")
    ends = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (3, 4))
    line.sendmsg([b"\0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, ends)])
    os.close(3)
    os.close(4)
    line.recv(1)


if __name__ == "__main__":
    main(sys.argv[1])
