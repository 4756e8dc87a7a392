"""The table of results is of the tests there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.security.results import IDS, NONE, TABLE, keys_of, parse

ROOT = Path(__file__).parents[2]


def test_the_table_has_a_line_for_each_id_and_backend_that_is_tried() -> None:
    """Renewed by ``make security-results``; ``ARGS=--collect-only`` adds lines without running anything."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    tried = {key for line in done.stdout.splitlines() for key in keys_of(line)}
    lines = parse(TABLE.read_text())
    told = {key for key in lines if lines[key].outcome != NONE}
    assert told == tried, "renew it: make security-results ARGS=--collect-only"
    assert {name for name, _ in lines} == set(IDS)
    assert not [key for key in lines if lines[key].outcome.startswith("FAILED")]
