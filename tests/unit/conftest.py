"""A real warden in a bubblewrap cave of its own, and the smallest client that can speak with it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghost_mcp.warden import wire

PACKAGE = Path(__file__).parents[2] / "ghost_mcp" / "warden"
MAIN = "from warden.program import main; main()"
WAIT_S = 30.0
TMP_BYTES = 4 << 20


class Refused(Exception):
    """The warden answered with an error."""

    def __init__(self, head: dict[str, Any]) -> None:
        super().__init__(f"{head.get('code')}: {head.get('message')}")
        self.code = str(head.get("code"))
        self.head = head


class Conversation:
    """One stream, seen from the hub. Every wait is bounded by the client's socket timeout.

    DATA is credited when it comes, except between ``hold()`` and ``release()``.
    """

    def __init__(self, client: Client, number: int) -> None:
        self.client = client
        self.id = number
        self.frames: deque[wire.Frame] = deque()
        self._held: int | None = None  # bytes not yet credited

    def next(self) -> wire.Frame:
        """The next DATA, EOF, NOTE, CLOSE or RESET of this stream."""
        while not self.frames:
            self.client.read()
        return self.frames.popleft()

    def take(self, frame: wire.Frame) -> None:
        self.frames.append(frame)
        if self._held is not None:
            self._held += len(frame.body)
        elif frame.kind == wire.DATA:
            self.client.send(self.client.wire.consumed(self.id, len(frame.body)))

    def hold(self) -> None:
        self._held = 0

    def release(self) -> None:
        held, self._held = self._held or 0, None
        self.client.send(self.client.wire.consumed(self.id, held))

    def fill(self) -> None:
        """Hold the stream, and return when its window is used up."""
        self.hold()
        before = sum(len(f.body) for f in self.frames)
        while before + (self._held or 0) < wire.WINDOW:
            self.client.read()

    def note(self) -> dict[str, Any]:
        frame = self.next()
        assert frame.kind == wire.NOTE, frame
        return frame.head

    def send(self, data: bytes, channel: int = 0) -> None:
        view = memoryview(data)
        while view:
            room = min(self.client.wire.credit(self.id), wire.MAX_DATA, len(view))
            if room == 0:
                if not self.client.wire.is_open(self.id):
                    return
                self.client.read()
                continue
            piece = bytes(view[:room])
            self.client.send(self.client.wire.send_data(self.id, piece, channel))
            view = view[room:]

    def eof(self, channel: int = 0) -> None:
        if self.client.wire.is_open(self.id):
            self.client.send(self.client.wire.send_eof(self.id, channel))

    def reset(self) -> None:
        self.client.send(self.client.wire.send_reset(self.id))

    def finish(self) -> tuple[dict[str, Any], bytes]:
        """Wait for the answer: its head, and all DATA with the body. Raises Refused."""
        pieces = []
        while (frame := self.next()).kind != wire.CLOSE:
            assert frame.kind != wire.RESET
            pieces.append(frame.body)
        if frame.head["ok"] is not True:
            raise Refused(frame.head)
        return frame.head, b"".join([*pieces, frame.body])


class Client:
    """A blocking hub. ``call`` for one answer, ``open`` for a conversation."""

    def __init__(self, path: Path) -> None:
        self.wire = wire.Connection(hub=True)
        self.hello: dict[str, Any] = {}
        self.accepted: deque[Conversation] = deque()
        self._streams: dict[int, Conversation] = {}
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(WAIT_S)
        self._sock.connect(str(path))
        self.send(self.wire.send_hello({}))
        while not self.hello:
            self.read()

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def read(self) -> None:
        data = self._sock.recv(1 << 18)
        if not data:
            raise ConnectionError("the warden closed the link")
        for frame in self.wire.receive(data):
            if frame.kind == wire.HELLO:
                self.hello = frame.head
            elif frame.kind == wire.OPEN:
                self.accepted.append(self._conversation(frame.stream))
            elif frame.stream in self._streams and frame.kind != wire.CREDIT:
                self._streams[frame.stream].take(frame)

    def _conversation(self, number: int) -> Conversation:
        found = self._streams[number] = Conversation(self, number)
        return found

    def open(self, op: str, body: bytes = b"", **head: Any) -> Conversation:
        number, data = self.wire.open({**head, "op": op}, body)
        self.send(data)
        return self._conversation(number)

    def call(self, op: str, body: bytes = b"", **head: Any) -> tuple[dict[str, Any], bytes]:
        return self.open(op, body, **head).finish()

    def lines(self, op: str, **head: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A call whose DATA is JSON lines."""
        answer, data = self.call(op, **head)
        return answer, [json.loads(line) for line in data.splitlines()]

    def run(self, line: str, **head: Any) -> tuple[int, bytes, bytes]:
        """A command line in a fresh process: exit code, standard output, standard error."""
        stream = self.open("exec", line=line, **head)
        output = {1: b"", 2: b""}
        while (frame := stream.next()).kind != wire.CLOSE:
            if frame.kind == wire.DATA:
                output[frame.channel] += frame.body
        if frame.head["ok"] is not True:
            raise Refused(frame.head)
        return frame.head["exit_code"], output[1], output[2]

    def close(self) -> None:
        self._sock.close()


def alone(warden: Client) -> None:
    """Return when the warden is its cave's only process."""
    populated(warden, 1)


def populated(warden: Client, count: int) -> None:
    """Return when so many processes are in the cave: one that was ended is there until it is waited for."""
    deadline = time.monotonic() + WAIT_S
    while (there := warden.call("stats")[0]["pids"]) != count:
        assert time.monotonic() < deadline, there


class Cave:
    """The process, and the host's view of its /workspace."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run" / "warden"
        self.workspace = folder / "workspace"
        for made in (self.path.parent, self.workspace):
            made.mkdir()
        self.log = folder / "log"
        with socket.socket(socket.AF_UNIX) as listener, self.log.open("wb") as log:
            listener.bind(str(self.path))
            listener.listen()
            lifeline, self._lifeline = os.pipe()
            fd = listener.fileno()
            argv = [*self._bwrap(), sys.executable, "-S", "-B", "-c", MAIN]
            argv += ["--listen-fd", str(fd), "--lifeline-fd", str(lifeline)]
            self.process = subprocess.Popen(
                argv, pass_fds=(fd, lifeline), stdin=subprocess.DEVNULL, stderr=log
            )
            os.close(lifeline)

    def _bwrap(self) -> list[str]:
        argv = ["bwrap", "--unshare-all", "--as-pid-1", "--uid", "1000", "--gid", "1000"]
        argv += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/home/cave"]
        argv += ["--size", str(TMP_BYTES), "--tmpfs", "/tmp"]
        for name in ("usr", "bin", "sbin", "lib", "lib64", "etc"):
            argv += ["--ro-bind-try", f"/{name}", f"/{name}"]
        for prefix in {sys.base_prefix, sys.prefix} - {"/usr"}:
            argv += ["--ro-bind", prefix, prefix]
        argv += ["--ro-bind", str(PACKAGE), "/.ghost/warden"]
        argv += ["--bind", str(self.path.parent), "/run/ghost"]
        argv += ["--bind", str(self.workspace), "/workspace", "--chdir", "/workspace", "--clearenv"]
        argv += ["--setenv", "PYTHONPATH", "/.ghost", "--setenv", "HOME", "/home/cave"]
        return [*argv, "--setenv", "PATH", "/usr/bin:/bin"]

    def end(self) -> None:
        os.close(self._lifeline)
        assert self.process.wait(WAIT_S) == 0


@pytest.fixture
def cave(tmp_path: Path) -> Iterator[Cave]:
    """A running warden. Its end is part of every test: it ends with its lifeline, and had no crash."""
    if shutil.which("bwrap") is None:
        pytest.skip("not run: bubblewrap is not here")
    running = Cave(tmp_path)
    try:
        yield running
    finally:
        running.end()
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def warden(cave: Cave) -> Iterator[Client]:
    """A link to the warden."""
    client = Client(cave.path)
    yield client
    client.close()
