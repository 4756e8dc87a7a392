"""``ghost doctor``: it passes where Ghost works, and its self-test fails where no wall is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ghost_mcp.cli import walls

from .conftest import Cli, document


def test_here_everything_required_holds(cli: Cli) -> None:
    told = document(cli("doctor", "--json"))
    assert told["ok"] is True
    names = {check["name"]: check for check in told["checks"]}
    for name in (
        *("bubblewrap", "user namespaces", "seccomp filter", "limits", "state folder", "disk"),
        *("python3", "chromium", "rg", "node", "docker"),
        *("a cave starts", "identity", "no privileges", "system calls", "namespaces"),
        *("kernel settings", "read-only system", "host files", "network", "devices"),
        *("processes", "its end"),
    ):
        assert name in names
    assert all(check["ok"] for check in told["checks"] if check["required"])
    shown = cli("doctor").stdout.decode()
    assert all(name in shown for name in names)
    assert "FAIL" not in shown


def test_it_leaves_nothing_behind(cli: Cli, state_dir: Path, tmp_path: Path) -> None:
    state = state_dir / "doctor"
    state.mkdir(0o711)
    there = {"GHOST_STATE_DIR": str(state), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    cli("doctor", **there)
    assert list(tmp_path.iterdir()) == []
    assert [list((state / name).iterdir()) for name in ("caves", "names", "pool")] == [[], [], []]


def test_without_bubblewrap_it_says_the_fix(cli: Cli, tmp_path: Path) -> None:
    """An own PATH is not enough, for Ghost looks in /usr/bin too: so the program is hidden from it."""
    hidden = tmp_path / "empty"
    hidden.touch()
    program = 'mount --bind "$0" /usr/bin/bwrap && exec "$@"'
    argv = ["unshare", "--mount", "--map-root-user", "sh", "-c", program, str(hidden)]
    done = subprocess.run(
        [*argv, sys.executable, "-m", "ghost_mcp.cli", "doctor", "--json"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    missing = next(check for check in told["checks"] if check["name"] == "bubblewrap")
    assert (told["ok"], missing["ok"]) == (False, False)
    assert "apt-get install bubblewrap" in missing["fix"]


def test_the_probe_sees_what_is_open() -> None:
    """Outside of any cave, as an ordinary user, the same probe crosses nearly everything."""
    ordinary = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    with walls._bait() as bait:
        argv = ["/usr/bin/python3", "-I", "-c", walls.PROBE.read_text()]
        done = subprocess.run(
            [*(ordinary if os.geteuid() == 0 else []), *argv, json.dumps(dict(bait.given))],
            capture_output=True,
            check=True,
            timeout=60,
        )
        found = {f.name: f for f in walls._judge(json.loads(done.stdout), reached=bait.reached())}
    crossed = {name for name, finding in found.items() if not finding.ok}
    assert {"no privileges", "system calls", "namespaces", "host files", "network"} <= crossed
    assert "processes" in crossed
    assert "an abstract socket" in found["network"].detail
    assert walls.VARIABLE in found["host files"].detail
