# Only this file watches over projects whose hub has gone. It runs as a process of its own, because a hub that is
# killed can do nothing more, and an engine ends neither a network nor somebody else's container by itself.
"""Ends the side services of a cave when the cave has ended, also when nobody else is left to do it.

The backend starts ``python -m ghost_mcp.backends.compose.janitor INSTANCE`` with its first ephemeral cave and
tells it of each cave that may need it. The janitor hears from the engine of each cave that ends. When the input closes,
however it does, it stays until nothing of an ended cave is left, and goes.
"""

from __future__ import annotations

import subprocess  # noqa: TID251  (it must outlive the event loop)
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ghost_mcp.backends.compose.projects import Projects
from ghost_mcp.backends.docker.container import INSTANCE
from ghost_mcp.backends.docker.engine import open_client
from ghost_mcp.backends.docker.finding import Finder

if TYPE_CHECKING:
    import docker

__all__ = ["Janitor"]

LINGER_S = 60.0  # a cave without its hub is gone in seconds
GOING_S = 10.0
REST_S = 0.5
ROUND_S = 30.0  # without a word from the engine, look nevertheless
DONE = "done"


class Janitor:
    """The backend's end of it."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = anyio.Lock()

    async def watch(self, cave_id: str) -> None:
        """Have it end what is beside this cave, should we not live to do it."""
        async with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._hang_up()
                self._process = await anyio.to_thread.run_sync(self._start)
            self._tell(cave_id)

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603  (our own program)
            [sys.executable, "-P", "-m", __name__, self._instance],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends the hub's group does not end it
            bufsize=0,
        )

    def _tell(self, word: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.write(f"{word}\n".encode())

    def _hang_up(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def aclose(self) -> None:
        """Let it go: what it was to watch has been ended."""
        process = self._process
        if process is not None:
            self._tell(DONE)
            self._hang_up()
            with anyio.move_on_after(GOING_S) as scope:
                await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            if scope.cancelled_caught:
                process.kill()
                process.wait()


class _Watch:
    """The janitor itself: what it was told, and what the engine says."""

    def __init__(self, engine: docker.APIClient, instance: str) -> None:
        self._engine = engine
        self._instance = instance
        self._projects = Projects(instance)
        self._finder = Finder(instance)
        self._woken = threading.Event()
        self._caves: set[str] = set()
        self._alone = self._done = False

    def run(self) -> None:
        for task in (self._listen, self._hear):
            threading.Thread(target=task, daemon=True).start()
        while not self._alone:
            self._woken.wait(ROUND_S)
            self._woken.clear()
            if not self._sweep() and not self._alone:
                self._woken.wait(REST_S)
        until = time.monotonic() + LINGER_S
        while not self._done and self._left() and time.monotonic() < until:
            with suppress(Exception):  # as below
                self._give_up()
            self._sweep()
            time.sleep(REST_S)

    def _give_up(self) -> None:
        """Remove what the hub has left half made: a container that never ran has no end of its own."""
        for cave_id in list(self._caves):
            for container in self._finder.abandoned(self._engine, cave_id):
                self._engine.remove_container(container, v=True, force=True)

    def _listen(self) -> None:
        """To the hub, to its end."""
        for line in sys.stdin.buffer:
            word = line.decode("ascii", "replace").strip()
            if word == DONE:
                self._done = True
            else:
                self._caves.add(word)
        self._alone = True
        self._woken.set()

    def _hear(self) -> None:
        """Of each cave that has ended."""
        asked = {
            "type": "container",
            "event": ["die", "destroy"],
            "label": f"{INSTANCE}={self._instance}",
        }
        while True:
            with suppress(Exception):  # the engine restarts: until it is back there are the rounds
                for _ in self._engine.events(decode=True, filters=asked):
                    self._woken.set()
            time.sleep(REST_S)

    def _sweep(self) -> bool:
        with suppress(Exception):  # as above
            return self._projects.sweep(self._engine)
        return False

    def _left(self) -> bool:
        """Whether there is something of the caves that were to be watched."""
        with suppress(Exception):  # as above
            return any(self._projects.present(self._engine, cave) for cave in list(self._caves))
        return True


if __name__ == "__main__":
    _Watch(open_client(), sys.argv[1]).run()
