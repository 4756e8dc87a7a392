# Only this file decides when a converter process starts and what is said when one dies.
"""The warm converter: imports everything once, then forks a process for each connection to its socket.

Started in the foreground, it returns when the socket is ready and lives on in the background: what it forks
is ended with its connection. A fork costs some milliseconds; the imports cost most of a second.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import signal
import socket
from dataclasses import dataclass

from PIL import Image

from . import job, wire

HANG_UP = select.POLLRDHUP | select.POLLHUP | select.POLLERR


@dataclass(frozen=True, slots=True)
class Child:
    """A running conversion. ``answering`` is memory shared with it."""

    pid: int
    pidfd: int
    sock: socket.socket
    answering: mmap.mmap


def main(path: str) -> None:
    """Serve on a unix socket at ``path`` until the cave ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(16)
    if os.fork():
        os._exit(0)  # whoever started us knows now that we are ready
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    Image.preinit()  # else each child would import Pillow's parsers anew
    gc.collect()
    gc.freeze()  # the collector of a child would copy every page it looks at
    Zygote(listener).serve()


class Zygote:
    """The loop: connections, ends of children, connections that hang up."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._children: dict[int, Child] = {}  # by pidfd and by the descriptor of the connection

    def serve(self) -> None:
        while True:
            for fd, _ in self._poll.poll():
                child = self._children.get(fd)
                if fd == self._listener.fileno():
                    self._start()
                elif child is not None and fd == child.pidfd:
                    self._ended(child)
                elif child is not None:
                    self._poll.unregister(fd)
                    os.kill(child.pid, signal.SIGKILL)

    def _start(self) -> None:
        sock, _ = self._listener.accept()
        answering = mmap.mmap(-1, 1)
        try:
            pid = os.fork()
        except OSError:
            sock.close()  # no process to be had: this conversion fails, not the converter
            return
        if not pid:
            _convert(sock, answering)
        child = Child(pid, os.pidfd_open(pid), sock, answering)
        self._children[child.pidfd] = self._children[sock.fileno()] = child
        self._poll.register(child.pidfd, select.POLLIN)
        # Not for reading: what comes is the child's. The hub hangs up when it gives a conversion up.
        self._poll.register(sock, HANG_UP)

    def _ended(self, child: Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        for fd in (child.pidfd, child.sock.fileno()):
            del self._children[fd]
        self._poll.unregister(child.pidfd)
        try:
            self._poll.unregister(child.sock)
        except KeyError:
            pass  # it hung up
        os.close(child.pidfd)
        if not child.answering[0]:
            _report(child.sock, status)
        child.sock.close()
        child.answering.close()


def _convert(sock: socket.socket, answering: mmap.mmap) -> None:
    """The child's whole life. It keeps one descriptor: the other connections are not its business."""
    try:
        os.closerange(3, sock.fileno())
        os.closerange(sock.fileno() + 1, sock.fileno() + 1024)
        job.limit()
        job.run(sock, answering)
    except BaseException:  # noqa: BLE001  (a child never returns into the loop)
        os._exit(1)
    os._exit(0)


def _report(sock: socket.socket, status: int) -> None:
    """Say to the hub why its conversion ended without an answer."""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in (signal.SIGXCPU, signal.SIGALRM):
        code, why = "timed_out", "the conversion took too long and was ended"
    elif number == signal.SIGKILL:
        code, why = "limit_exceeded", "the conversion needed too much memory and was ended"
    else:
        name = signal.Signals(number).name if number else f"exit {os.WEXITSTATUS(status)}"
        code, why = "limit_exceeded", f"the converter crashed on this document ({name})"
    hint = "For a part of a long document use extract_text with pages."
    head = {"ok": False, "code": code, "message": why, "hint": hint, "size": 0}
    try:
        sock.sendall(wire.pack(head))
    except OSError:
        return  # nobody listens any more
