"""A hub that runs out of something: says what a call then answers, and whether it goes on when there is room again.

``python stressed.py files|disk|newcomer STATE BACKEND``; one line of JSON. An engine's caves take nothing of its own:
few are made. A newcomer is another hub, which comes when the disk is full and has everything still to bring.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path

import anyio

from ghost_mcp import CaveSpec, Ghost, GhostError

SPARE = 14  # descriptors that are left
MANY, FEW = 40, 1


@contextmanager
def no_files(_: Path) -> Iterator[None]:
    """Nearly all descriptors are taken."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (260, 4096))
    taken: list[int] = []
    with suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    for _ in range(SPARE):
        os.close(taken.pop())
    yield
    for fd in taken:
        os.close(fd)


@contextmanager
def no_disk(state: Path) -> Iterator[None]:
    """The state folder's disk is full."""
    with (state / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    (state / "filler").unlink()


@asynccontextmanager
async def newcomer(backend: str, state: Path) -> AsyncIterator[Ghost]:
    os.environ["GHOST_STATE_DIR"] = str(state / "newcomer")
    async with Ghost(backend=backend, state_dir=state / "newcomer") as ghost:
        yield ghost


async def main() -> None:
    shortage = no_files if sys.argv[1] == "files" else no_disk
    state, backend = Path(sys.argv[2]), sys.argv[3]
    codes: list[str] = []
    os.environ["GHOST_STATE_DIR"] = str(state)
    async with Ghost(backend=backend, state_dir=state) as ghost:
        kept = await ghost.create(CaveSpec(name="kept", ephemeral=True))
        await kept.write("note", "kept")
        with shortage(state):
            new = sys.argv[1] == "newcomer"
            async with newcomer(backend, state) if new else nullcontext(ghost) as trying:
                for _ in range(MANY if backend == "local" else FEW):
                    try:
                        await trying.create(CaveSpec(ephemeral=True))
                    except GhostError as exc:
                        codes.append(exc.code)
                        break
            answered = (await kept.exec("echo answers")).stdout
            with suppress(GhostError):
                await kept.write("more", "x" * 100_000)
        for info in await ghost.list():
            if info.name != "kept":
                await ghost.destroy(info.id)
        async with await ghost.create(CaveSpec(ephemeral=True)) as again:
            answered += (await again.exec("echo again")).stdout
        note = (await kept.read("note")).data.decode()
        await kept.destroy()
        left = len(await ghost.list()) + len(list(state.glob("caves/*")))
    print(json.dumps({"codes": codes, "answered": answered, "note": note, "left": left}))


anyio.run(main)
