"""A hub under stress, group L: what runs out is told, others go on, and so does the hub when there is room again."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("stressed.py")
PATIENCE_S = 100


def stressed(state_dir: Path, what: str, code: str, *before: str) -> None:
    state = state_dir / f"stress-{secrets.token_hex(3)}"
    state.mkdir(mode=0o711)
    done = subprocess.run(
        [*before, sys.executable, str(PROGRAM), what, str(state)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "STATE": str(state)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert told == {
        "codes": [code],
        "answered": "answers\nagain\n",
        "note": "kept",
        "left": 0,
    }


def test_l5_out_of_descriptors(state_dir: Path) -> None:
    stressed(state_dir, "files", "limit_exceeded")


@pytest.mark.skipif(os.geteuid() != 0, reason="not run: only root can mount a small disk")
def test_l5_the_disk_is_full(state_dir: Path) -> None:
    """On a small disk of the test's own, in a namespace that takes it along."""
    mount = 'mount -t tmpfs -o size=64m,mode=711 none "$STATE" && exec "$@"'
    stressed(state_dir, "disk", "no_space", "unshare", "--mount", "sh", "-c", mount, "sh")
