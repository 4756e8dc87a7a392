# Only this file says in what backends may differ, and how the suite comes by a cave.
"""The declared differences of a backend under test, and the suite's ways to a backend, a Ghost and a cave."""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.errors import CaveGone, GhostError
from ghost_mcp.ghost import Ghost
from ghost_mcp.spec import CaveSpec

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from ghost_mcp.backends.base import Backend
    from ghost_mcp.cave import Cave
    from ghost_mcp.spec import CaveInfo

__all__ = ["PATIENCE_S", "Basis", "connected", "ended", "until"]

# The bound of every wait. It is no promise of speed: a crowded machine is slow, and a hang is a failure.
PATIENCE_S = 60.0

# Prints yes when a process has the word that stands on standard input among its arguments.
_FIND = """
import os, sys
word, found = sys.stdin.read().encode(), False
for entry in os.listdir("/proc"):
    if entry.isdigit():
        try:
            found |= word in open("/proc/%s/cmdline" % entry, "rb").read().split(b"\\0")
        except OSError:
            continue
print("yes" if found else "no")
"""


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds that no event tells of."""
    with anyio.fail_after(PATIENCE_S):
        while not await holds():
            await anyio.sleep(0.05)


async def ended(stream: ByteStream) -> None:
    """Wait until a cave's stream ends."""
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        while True:
            await stream.receive()


@asynccontextmanager
async def connected(backend: Backend, cave_id: str) -> AsyncIterator[ByteStream]:
    stream = await backend.connect(cave_id)
    try:
        yield stream
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()


class Basis:
    """Differences first, then the suite's own tools."""

    _owner = ""

    #: A cave outlives the process that made it, and other processes see it. Otherwise define no elsewhere().
    persistent: bool = True
    #: stop(pause=True) freezes a cave. Otherwise it raises Unsupported.
    can_pause: bool = True
    #: The fields of Usage that this engine tells of a running cave.
    measures: frozenset[str] = frozenset({"memory_bytes", "pids"})
    #: Settings of a CaveSpec that this engine refuses, each by itself.
    refused: tuple[Mapping[str, Any], ...] = ()
    #: How a Python script, given as one more argument, is run in the caves under test.
    python: tuple[str, ...] = ("python3", "-c")
    #: Lifetimes under test are so many times longer: where reaching a cave takes a good part of a second.
    slowness: float = 1.0

    def make(self) -> Backend:
        """A backend that nobody has entered. All that one test makes see the same caves."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What every CaveSpec of the suite needs here, for example an image."""
        return {}

    def elsewhere(self) -> str:
        """Python source that defines ``make()`` in another process, for a backend that is persistent."""
        raise NotImplementedError

    async def crash(self, info: CaveInfo) -> None:
        """Kill the cave's warden from outside, without a word to the backend; here: from inside."""
        async with Ghost(backend=self.make()) as ghost:
            cave = await ghost.get(info.id)
            try:
                await cave.exec(["sh", "-c", "kill -TERM $PPID"])
            except CaveGone:
                return

    async def engine_shows(self, info: CaveInfo) -> str:
        """All that the engine itself shows or stores of a cave, apart from the cave's own files."""
        return ""

    async def leftovers(self, cave_id: str) -> list[str]:
        """What the engine still has of a cave that is gone, by name."""
        return []

    # --- the suite's own -------------------------------------------------------------------------

    async def nothing_left(self, cave_id: str) -> None:
        """Wait until the engine has nothing of a cave: one that removes what has ended does so a moment later."""

        async def nothing() -> bool:
            return await self.leftovers(cave_id) == []

        await until(nothing)

    def spec(self, **changes: Any) -> CaveSpec:
        """A spec of this test's own: what it leaves behind is found by its owner."""
        if not self._owner:
            self._owner = f"contract-{secrets.token_hex(4)}"
        return CaveSpec.from_dict({**self.settings(), "owner": self._owner, **changes})

    async def ours(self, backend: Backend) -> list[CaveInfo]:
        """What the backend lists of this test's caves."""
        owner = self.spec().owner
        return await backend.list(owner)

    @asynccontextmanager
    async def backend(self) -> AsyncIterator[Backend]:
        """An entered backend; at the end this test's caves are destroyed."""
        async with self.make() as backend:
            try:
                yield backend
            finally:
                with anyio.CancelScope(shield=True):
                    for info in await self.ours(backend):
                        await backend.destroy(info.id)

    @asynccontextmanager
    async def view(self, cave_id: str) -> AsyncIterator[Cave]:
        """A cave as another Ghost sees it, through a backend object of its own."""
        async with Ghost(backend=self.make()) as ghost:
            yield await ghost.get(cave_id)

    @asynccontextmanager
    async def cave(self, **changes: Any) -> AsyncIterator[Cave]:
        """A fresh cave, destroyed at the end."""
        async with Ghost(backend=self.make()) as ghost:
            cave = await ghost.create(self.spec(**changes))
            try:
                yield cave
            finally:
                with anyio.CancelScope(shield=True):
                    await cave.destroy()

    async def script(self, cave: Cave, source: str, *arguments: str, **how: Any) -> str:
        """Run a Python script in the cave; returns what it prints."""
        done = await cave.exec([*self.python, source, *arguments], **how)
        assert done.exit_code == 0, done.stderr
        return done.stdout.strip()

    @staticmethod
    def nap() -> str:
        """A number of seconds, for ``sleep``, that no other process has among its arguments."""
        return f"{random.randrange(10**4, 10**5)}.{secrets.randbelow(10**9):09}"  # noqa: S311

    async def runs(self, cave: Cave, word: str) -> bool:
        """Whether a process in the cave has that word as an argument."""
        return await self.script(cave, _FIND, stdin=word) == "yes"

    async def boot(self, cave_id: str) -> float:
        """Names one run of a cave's warden: a restart changes it."""
        async with self.view(cave_id) as cave:
            link = await cave.ghost.link(cave_id)
            return float(link.hello["boot"])

    async def state_of(self, backend: Backend, cave_id: str) -> str:
        """The cave's state, or ``gone``."""
        try:
            return str((await backend.get(cave_id)).state)
        except GhostError as exc:
            assert exc.code == "cave_not_found"
            return "gone"
