# Tests use real caves. Only this file knows how a test comes by one.
"""Fixtures for every test: a state folder, an open Ghost on it, a fresh cave."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings

from ghost_mcp import Cave, CaveSpec, Ghost
from tests.security.canary import left_in
from tests.serving import Served, serving

T = TypeVar("T")

# A machine that is shared is slow at times: what takes an example long is no fault of the example.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@asynccontextmanager
async def held(manager: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave ``manager`` in one task of its own.

    pytest-asyncio runs the two halves of a fixture in two tasks, which the cancel scopes of anyio refuse.
    """
    entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    leaving = asyncio.Event()

    async def hold() -> None:
        try:
            async with manager as value:
                entered.set_result(value)
                await leaving.wait()
        except BaseException as exc:
            if entered.done():
                raise
            entered.set_exception(exc)

    task = asyncio.create_task(hold())
    try:
        yield await entered
    finally:
        leaving.set()
        await task


@pytest.fixture(scope="session", autouse=True)
def no_secret_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the very end: no canary is in any file that the tests have left in their folders. State folders, which end
    before, are looked through by those who remove them."""
    yield
    left = left_in(tmp_path_factory.getbasetemp(), without=("workspace", "run"))
    assert left == [], "a secret's value was written down"


@pytest.fixture(scope="session")
def state_dir() -> Iterator[Path]:
    """The local backend's folder for these tests. A cave's own user must be able to pass through it."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="ghost-test-"))
    os.chmod(folder, 0o711)
    yield folder
    # What a cave's programs wrote into its own tree is theirs; the cache is this machine's own Python.
    left = left_in(folder, without=("workspace", "run", "cache"))
    shutil.rmtree(folder)
    assert left == [], "a secret's value was written down"


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """``ghost serve`` as a process, once for all tests that need one."""
    with serving() as hub:
        yield hub


@pytest.fixture
async def ghost(state_dir: Path) -> AsyncIterator[Ghost]:
    """An open Ghost on the local backend."""
    async with held(Ghost(backend="local", state_dir=state_dir)) as opened:
        yield opened


@pytest.fixture
async def cave(ghost: Ghost) -> AsyncIterator[Cave]:
    """A fresh ephemeral cave, destroyed at the end."""
    made = await ghost.create(CaveSpec(ephemeral=True))
    yield made
    await made.destroy()
