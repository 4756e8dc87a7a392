"""schemathesis over /openapi.json: whatever the document allows is answered as it says, and nothing is an error of ours."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.serving import Served

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# Streams have no end, a browser for each example takes too long, and a cave that lacks a service's programs
# answers 501; they have tests of their own.
LEFT_OUT = "/events|/logs|/v1/browser|/mcp/execute|/v1/jupyter|/services"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_answers_are_as_the_document_says(served: Served, tmp_path: Path) -> None:
    token = served.make_token(owner=f"schema-{secrets.token_hex(3)}")
    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            *(program, "run", f"{served.url}/openapi.json", "-H", f"Authorization: Bearer {token}"),
            *("--checks", CHECKS, "--exclude-path-regex", LEFT_OUT, "--mode", "positive"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "4", "--max-time", "60"),
            *("--generation-deterministic", "--no-shrink", "--request-timeout", "60", "--no-color"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=280,
        check=False,
    )
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=served.url, headers=headers, timeout=60) as http:
        for cave in http.get("/v1/caves").json()["caves"]:
            http.delete(f"/v1/caves/{cave['id']}")
    assert done.returncode == 0, done.stdout[-6000:]
    assert "generated" in done.stdout
