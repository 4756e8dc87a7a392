"""The dashboard in a real browser, and its files against their sources. Pictures are kept in .cache/pictures."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ghost_hub import pages
from tests.serving import serving

ROOT = Path(__file__).parents[2]
NODE = ROOT / ".cache/npm/bin/node"
MODULES = ROOT / ".cache/npm/node_modules"
BUILT = Path(pages.__file__).parent
MOST_BYTES = 300_000

needs_npm = pytest.mark.skipif(
    not (NODE.exists() and (MODULES / "esbuild").exists()),
    reason="not run: the npm packages are not installed (scripts/setup --test)",
)


def test_the_page_is_small() -> None:
    files = [BUILT / f"board.{kind}" for kind in ("html", "js", "css")]
    assert sum(len(gzip.compress(file.read_bytes())) for file in files) < MOST_BYTES


@pytest.mark.npm
@needs_npm
def test_what_is_shipped_is_what_the_sources_build(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts/build-pages", tmp_path], check=True, timeout=60)
    for built in tmp_path.iterdir():
        assert built.read_bytes() == (BUILT / built.name).read_bytes(), (
            "run scripts/build-pages and commit what it makes"
        )


@pytest.mark.npm
@pytest.mark.slow
@needs_npm
@pytest.mark.skipif(shutil.which("chromium") is None, reason="not run: there is no chromium")
def test_a_person_watches_and_takes_part() -> None:
    with serving("--backend", "local") as hub:
        done = subprocess.run(
            [
                NODE,
                ROOT / "tests/e2e/board.mjs",
                MODULES,
                hub.url,
                hub.token,
                ROOT / ".cache/pictures",
            ],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["interactive_ms"] < 5_000
