"""The dashboard in a real browser, and its files against their sources. Pictures are kept in .cache/pictures."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from ghost_hub import pages
from tests.e2e.driving import MOST_S, ROOT, drive, needs_browser, needs_npm
from tests.serving import serving

BUILT = Path(pages.__file__).parent
MOST_BYTES = 300_000


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
@needs_browser
@pytest.mark.timeout(MOST_S + 60)
def test_a_person_watches_and_takes_part() -> None:
    with serving("--backend", "local") as hub:
        done = drive("board.mjs", hub.url, hub.token)
    assert done["interactive_ms"] < 30_000
