"""The terminal's page in a real browser. Pictures are kept in .cache/pictures."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.e2e.test_board import MODULES, NODE, ROOT, needs_npm
from tests.serving import Served


@pytest.mark.npm
@pytest.mark.slow
@needs_npm
@pytest.mark.skipif(shutil.which("chromium") is None, reason="not run: there is no chromium")
def test_a_person_types_and_others_look_on(served: Served) -> None:
    headers = {"Authorization": f"Bearer {served.token}"}
    with httpx2.Client(base_url=served.url, headers=headers, timeout=60) as http:
        http.post("/v1/caves", json={"name": "page"}).raise_for_status()
        script = Path(__file__).with_name("terminal.mjs")
        reader = served.make_token("", "read")
        words = [served.url, served.token, reader, "page", ROOT / ".cache/pictures"]
        done = subprocess.run(
            [NODE, script, MODULES, *words],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        http.delete("/v1/caves/page").raise_for_status()
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["flood_ms"] < 60_000
