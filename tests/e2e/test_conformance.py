"""The official conformance suite against Ghost's serving layer, in both eras of the protocol.

The suite speaks HTTP only and asks for fixtures by name, so it meets the fixture server beside this file:
its tools run through the same code as Ghost's own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NODE = ROOT / ".cache/npm/bin/node"
SUITE = ROOT / ".cache/npm/node_modules/.bin/conformance"
EXPECTED = Path(__file__).with_name("conformance-expected-failures.yml")
WAIT_S = 110
# How many checks pass at least: a suite that checked nothing would fail nothing.
PASSED = {"2025-11-25": 55, "2026-07-28": 110}

pytestmark = [
    pytest.mark.npm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (NODE.exists() and SUITE.exists()),
        reason="not run: the npm packages are not installed (scripts/setup --test)",
    ),
]


@pytest.fixture
def url(state_dir: Path) -> Iterator[str]:
    """The address of a running fixture server."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.fixture_server"],
        env={**os.environ, "GHOST_STATE_DIR": str(state_dir)},
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait(20)


@pytest.mark.parametrize("version", list(PASSED))
def test_only_what_is_not_offered_fails(url: str, version: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(str(NODE), str(SUITE), "server", "--url", url, "--suite", "all"),
            *("--spec-version", version, "--expected-failures", str(EXPECTED)),
            *("--output-dir", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    summary = done.stdout[done.stdout.find("=== SUMMARY") :]
    assert done.returncode == 0, summary + done.stderr[-3000:]
    total = re.search(r"Total: (\d+) passed", summary)
    assert total is not None
    assert int(total[1]) >= PASSED[version], summary
