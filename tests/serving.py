# Only this file knows how a test comes by a served hub: the real command, on a free port, in a state folder of its own.
"""``ghost serve`` as a process, and clients of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from ghost_hub.tokens import Tokens
from tests.security.canary import left_in

__all__ = ["Served", "serving"]

START_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A hub that serves. ``token`` is the one it made at its start: the local user's, with all scopes."""

    url: str
    token: str
    state: Path
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def make_token(self, owner: str = "", scope: str = "manage", **more: Any) -> str:
        return Tokens(str(self.state)).create(owner=owner, scope=scope, **more)[0]

    def client(self, token: str | None = None, **more: Any) -> httpx2.AsyncClient:
        """An HTTP client of an owner."""
        headers = {"Authorization": f"Bearer {token or self.token}"} | more.pop("headers", {})
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=60, **more)

    @contextmanager
    def with_cave(self, name: str) -> Iterator[httpx2.Client]:
        """A client of the local user's, who has a cave of that name during the block."""
        headers = {"Authorization": f"Bearer {self.token}"}
        with httpx2.Client(base_url=self.url, headers=headers, timeout=60) as http:
            http.post("/v1/caves", json={"name": name}).raise_for_status()
            yield http
            http.delete(f"/v1/caves/{name}").raise_for_status()


@contextmanager
def serving(*options: str, config: str = "", **env: str) -> Iterator[Served]:
    """Serve until the block ends; what it left running is an error of the test's."""
    state = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="ghost-serve-"))
    state.chmod(0o711)
    words = [*options, "--port", "0"]
    if config:
        (state / "hub.yaml").write_text(config)
        words += ["--config", str(state / "hub.yaml")]
    with (state / "stderr").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "ghost_mcp.cli", "serve", *words],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, "GHOST_STATE_DIR": str(state), **env},
        )
    try:
        yield _greeted(process, state)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(START_S)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            if "Traceback" in (heard := (state / "stderr").read_text()):
                print(f"the hub of {state} said:", heard[-8000:], sep="\n")
            left = left_in(state, without=("workspace", "run", "cache"))
            _end_caves(state)
            shutil.rmtree(state, ignore_errors=True)
            assert left == [], "a secret's value was written down"


def _end_caves(state: Path) -> None:
    """Local caves with a name live on without their hub, and all that runs in them: not beyond the test."""
    if any((state / "caves").glob("*")):
        argv = [sys.executable, "-m", "ghost_mcp.cli", "destroy", "--all", "--backend", "local"]
        env = {**os.environ, "GHOST_STATE_DIR": str(state)}
        subprocess.run(argv, env=env, check=False, capture_output=True, timeout=START_S)


def _greeted(process: subprocess.Popen[str], state: Path) -> Served:
    """What the hub says of itself when it starts, and then wait until it answers."""
    assert process.stdout is not None
    url = token = ""
    for line in process.stdout:
        if found := re.search(r"listens on (https?://\S+);", line):
            url = found[1]
        if found := re.search(r"once: (ghost_\S+)", line):
            token = found[1]
        if line.startswith(("More:", "Without", "It wants")):
            break
    else:
        raise RuntimeError((state / "stderr").read_text() or "ghost serve said nothing")
    # It listens already: the first answer comes when it is ready.
    with httpx2.Client(verify=False, timeout=START_S) as client:
        client.get(f"{url}/health").raise_for_status()
    return Served(url=url, token=token, state=state, process=process)
