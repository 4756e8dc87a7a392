"""The terminal's page in a real browser. Pictures are kept in .cache/pictures."""

from __future__ import annotations

import httpx2
import pytest

from tests.e2e.driving import MOST_S, drive, needs_browser, needs_npm
from tests.serving import Served


@pytest.mark.npm
@pytest.mark.slow
@needs_npm
@needs_browser
@pytest.mark.timeout(MOST_S + 60)
def test_a_person_types_and_others_look_on(served: Served) -> None:
    headers = {"Authorization": f"Bearer {served.token}"}
    with httpx2.Client(base_url=served.url, headers=headers, timeout=60) as http:
        for name in ("page", "resting"):
            http.post("/v1/caves", json={"name": name}).raise_for_status()
        http.post("/v1/caves/resting/stop").raise_for_status()
        reader = served.make_token("", "read")
        done = drive("terminal.mjs", served.url, served.token, reader, "page")
        for name in ("page", "resting"):
            http.delete(f"/v1/caves/{name}").raise_for_status()
    assert done["flood_ms"] < MOST_S * 1000
