# The command line is tried as its users meet it: as a process of its own, in a state folder of the tests.
"""``ghost`` as a function, and a cave that was made with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from pathlib import Path

GHOST = [sys.executable, "-m", "ghost_mcp.cli"]
PATIENCE_S = 60


class Cli(Protocol):
    def __call__(
        self, *words: str, given: bytes = b"", code: int | None = None, **environment: str
    ) -> subprocess.CompletedProcess[bytes]: ...


@pytest.fixture(scope="module")
def environment(state_dir: Path) -> dict[str, str]:
    """What a ghost process of these tests sees."""
    return {**os.environ, "GHOST_STATE_DIR": str(state_dir)}


@pytest.fixture(scope="module")
def cli(environment: dict[str, str]) -> Cli:
    """Runs ``ghost WORDS`` to its end; with ``code`` that must be its exit code."""

    def run(
        *words: str, given: bytes = b"", code: int | None = 0, **more: str
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*GHOST, *words],
            input=given,
            capture_output=True,
            env={**environment, **more},
            timeout=PATIENCE_S,
            check=False,
        )
        assert code is None or done.returncode == code, (done.stdout, done.stderr)
        assert b"Traceback (most recent call last)" not in done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def named(cli: Cli, request: pytest.FixtureRequest) -> Iterator[str]:
    """A cave of this module's tests."""
    name = request.module.__name__.rpartition(".")[2].replace("_", "-").removeprefix("test-")
    cli("create", name)
    yield name
    cli("destroy", name)


def document(done: subprocess.CompletedProcess[bytes]) -> Any:
    """The one JSON document on stdout; stderr is empty."""
    assert done.stderr == b""
    return json.loads(done.stdout)
