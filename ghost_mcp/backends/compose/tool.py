# Only this file runs the compose tool. The file goes through its standard input: nothing of it is in an argument,
# in the environment or on a disk, and what is in our own environment is not put into the file.
"""``docker compose``, or ``docker-compose``, whichever is there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio

from ghost_mcp.errors import BackendUnavailable, InvalidArgument, LimitExceeded, TimedOut

__all__ = ["UP_S", "Tool"]

UP_S = 900.0  # it may fetch and build images
PROBE_S = 20.0
SAID_BYTES = 64 << 10
# What the tool needs to reach the same engine as we do.
PASSED = ("PATH", "HOME", "SSH_AUTH_SOCK", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "TMPDIR")
# The engine has room for about thirty networks unless it was given more: see default-address-pools.
FULL = ("non-overlapping IPv4", "fully subnetted")


class Tool:
    """The tool of this machine, found when it is first needed."""

    def __init__(self) -> None:
        self._command: tuple[str, ...] = ()

    async def command(self) -> tuple[str, ...]:
        """How it is called. Raises BackendUnavailable when there is none."""
        if not self._command:
            self._command = await self._find()
        return self._command

    async def _find(self) -> tuple[str, ...]:
        if shutil.which("docker") and await _succeeds("docker", "compose", "version"):
            return ("docker", "compose")
        if shutil.which("docker-compose"):
            return ("docker-compose",)
        raise BackendUnavailable(
            "neither docker compose nor docker-compose is here",
            hint="Install one of them, for example: apt-get install docker-compose",
        )

    async def up(
        self, project: str, file: Mapping[str, Any], services: Sequence[str], folder: str | None
    ) -> None:
        """Make the project's networks and volumes and start these services. Raises what the tool says."""
        with tempfile.TemporaryDirectory(prefix="ghost-compose-") as empty:
            where = ["--project-directory", folder or empty, "-p", project, "-f", "-"]
            command = [*await self.command(), *where, "up", "-d", "--no-recreate", *services]
            await _run(command, json.dumps(file).encode())


async def _succeeds(*command: str) -> bool:
    with suppress(OSError), anyio.move_on_after(PROBE_S):
        return (await anyio.run_process(command, check=False, env=_environment())).returncode == 0
    return False


async def _run(command: Sequence[str], given: bytes) -> None:
    try:
        with anyio.fail_after(UP_S):
            done = await anyio.run_process(
                command, input=given, check=False, env=_environment(), start_new_session=True
            )
    except TimeoutError:
        raise TimedOut(f"the side services are not up after {UP_S:.0f} s") from None
    except OSError as exc:
        raise BackendUnavailable(f"cannot run {command[0]}: {exc.strerror}") from exc
    if done.returncode != 0:
        said = done.stderr[-SAID_BYTES:].decode("utf-8", "replace").strip()
        if any(sign in said for sign in FULL):
            raise LimitExceeded(
                "the engine has no more networks",
                hint="Destroy a cave, or give the engine more default-address-pools.",
            )
        raise InvalidArgument(f"the side services did not start: {said[-600:]}")


def _environment() -> dict[str, str]:
    own = {name: os.environ[name] for name in PASSED if name in os.environ}
    return own | {name: value for name, value in os.environ.items() if name.startswith("DOCKER_")}
