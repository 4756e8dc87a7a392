"""The warden's event loop, and what looks with it whether a socket answers: without a cave."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghost_mcp.warden.loop import READ, Loop
from ghost_mcp.warden.probing import Probe

WAIT_S = 30.0


class Told(Loop):
    """Keeps what its callbacks raised, and ends by itself when nothing else ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception] = []
        self.after(WAIT_S, lambda: self.end(1))

    def callback_failed(self, exc: Exception) -> None:
        self.failures.append(exc)

    def end(self, code: int = 0) -> None:
        self.exit_code = code


@pytest.fixture
def loop() -> Iterator[Told]:
    """It takes signals over, as the warden is to: they are given back."""
    handler, wakeup = signal.getsignal(signal.SIGCHLD), signal.set_wakeup_fd(-1)
    try:
        yield Told()
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGCHLD, handler)


def test_timers_come_in_their_order_and_a_cancelled_one_never(loop: Told) -> None:
    came: list[str] = []
    loop.after(0.02, lambda: came.append("later"))
    loop.after(0.0, lambda: came.append("now"))
    loop.after(0.01, lambda: came.append("cancelled")).cancel()
    loop.after(0.03, loop.end)
    loop.run()
    assert (came, loop.exit_code) == (["now", "later"], 0)


def test_a_callback_that_fails_is_told_and_called_no_more(loop: Told) -> None:
    """Its descriptor stays readable: unless it were let go, the loop would spin over it for ever."""
    reads, writes = os.pipe()
    os.write(writes, b"x")

    def fails(events: int) -> None:
        loop.after(0.01, loop.end)
        raise ValueError("not foreseen")

    loop.watch(reads, READ, fails)
    loop.run()
    assert [str(exc) for exc in loop.failures] == ["not foreseen"]
    assert loop.exit_code == 0


def test_a_child_is_reaped_and_its_end_told(loop: Told) -> None:
    statuses: list[int] = []

    def ended(status: int) -> None:
        statuses.append(os.waitstatus_to_exitcode(status))
        loop.end()

    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {})
    loop.on_exit(pid, ended)
    loop.run()
    assert (statuses, loop.exit_code) == ([7], 0)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


def answered(loop: Told, target: int | str, *, ask: bytes = b"", expect: bytes = b"") -> bool:
    """What one look at a socket tells."""
    said: list[bool] = []

    def tell(answer: bool) -> None:
        said.append(answer)
        loop.end()

    Probe(loop, target, tell, ask=ask, expect=expect)
    assert said == []  # never before the caller has the probe
    loop.run()
    assert loop.exit_code == 0
    return said[0]


@pytest.mark.parametrize(("says", "wanted"), [(b"pong\n", True), (b"no\n", False), (b"", False)])
def test_a_probe_asks_and_compares_how_the_answer_begins(
    loop: Told, tmp_path: Path, says: bytes, wanted: bool
) -> None:
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as client:
                if client.recv(100) == b"ping\n":
                    client.sendall(says)

        server = threading.Thread(target=serve)
        server.start()
        assert answered(loop, path, ask=b"ping\n", expect=b"pong") is wanted
        server.join(WAIT_S)


def test_a_probe_of_a_port_that_only_listens_is_answered_if_nothing_is_expected(loop: Told) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert answered(loop, listener.getsockname()[1])


def test_a_probe_of_nobody_is_not_answered(loop: Told, tmp_path: Path) -> None:
    assert not answered(loop, str(tmp_path / "none"))
