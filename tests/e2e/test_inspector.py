"""The official inspector, a client in another language, against ``ghost mcp`` over stdio, in both eras."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ghost_hub.catalog import published, toolsets

ROOT = Path(__file__).parents[2]
NODE = ROOT / ".cache/npm/bin/node"
INSPECTOR = ROOT / ".cache/npm/node_modules/.bin/mcp-inspector"
WAIT_S = 60

pytestmark = [
    pytest.mark.npm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (NODE.exists() and INSPECTOR.exists()),
        reason="not run: the npm packages are not installed (scripts/setup --test)",
    ),
]


class Inspector:
    """Runs it against one fresh server for each command, acting in the cave ``name``."""

    def __init__(self, state_dir: Path, era: str, name: str) -> None:
        self._environment = {**os.environ, "PATH": f"{NODE.parent}:{os.environ['PATH']}"}
        # Like most clients it hands a server next to nothing of its own environment.
        self._given = ("-e", f"GHOST_STATE_DIR={state_dir}")
        self._era = era
        self._server = [sys.executable, "-m", "ghost_mcp.cli", "mcp", "--cave", name]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(str(NODE), str(INSPECTOR), "--cli", *self._server),
                *("--transport", "stdio", "--protocol-era", self._era, *self._given, *words),
            ],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        done = self.run(
            *("--method", "tools/call", "--tool-name", tool, "--format", "json"),
            *("--tool-args-json", json.dumps(arguments)),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result.get("result", result)


@pytest.fixture(params=["legacy", "modern"])
def inspector(request: pytest.FixtureRequest, state_dir: Path) -> Any:
    """An inspector of one era, with a cave of its own. The cave lives between its servers."""
    name = f"seen-{request.param}"
    ghost = [sys.executable, "-m", "ghost_mcp.cli"]
    environment = {**os.environ, "GHOST_STATE_DIR": str(state_dir)}
    subprocess.run([*ghost, "create", name], env=environment, check=True, timeout=WAIT_S)
    yield Inspector(state_dir, request.param, name)
    subprocess.run([*ghost, "destroy", name], env=environment, check=True, timeout=WAIT_S)


def test_it_lists_and_calls(inspector: Inspector) -> None:
    listed = inspector.run("--method", "tools/list", "--strict", "--format", "json")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    found = json.loads(listed.stdout)
    names = [tool["name"] for tool in found.get("result", found)["tools"]]
    assert names == list(published(toolsets()))

    inspector.call("file_write", path="notes.txt", content="one\ntwo\n")
    read = inspector.call("file_read", path="notes.txt")
    assert read["structuredContent"]["content"] == "one\ntwo\n"
    done = inspector.call("shell_exec", command="wc -l < notes.txt; exit 3")
    assert (
        done["structuredContent"]["stdout"].strip(),
        done["structuredContent"]["exit_code"],
    ) == (
        "2",
        3,
    )


def test_an_error_is_an_error_to_it(inspector: Inspector) -> None:
    done = inspector.run(
        *("--method", "tools/call", "--tool-name", "file_read", "--format", "json"),
        *("--tool-args-json", '{"path": "none.txt"}'),
    )
    assert done.returncode != 0
    assert "no such file" in done.stdout + done.stderr
