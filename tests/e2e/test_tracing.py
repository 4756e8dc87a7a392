"""OpenTelemetry, from the outside: what a collector gets of a call, and that nobody pays who asked for none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters, stdio_client

from tests.serving import serving

SECRET = "hunter2-in-plain-sight"  # noqa: S105 - looked for, and not found
COMMAND = f"echo {SECRET}; exit 3"


async def serve_one_call(state_dir: Path, errors: Path, **settings: str) -> str:
    """Start `ghost mcp` with settings, call one tool, end it; returns its standard error."""
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "ghost_mcp.cli", "mcp"],
        env={**os.environ, "GHOST_STATE_DIR": str(state_dir), **settings},
    )
    with errors.open("w") as file:
        async with Client(stdio_client(server, errlog=file), read_timeout_seconds=100) as client:
            called = await client.call_tool("shell_exec", {"command": COMMAND})
            assert (called.structured_content or {})["exit_code"] == 3
            refused = await client.call_tool("file_read", {"path": "/nowhere"})
            assert refused.is_error
    return errors.read_text()


@pytest.mark.slow
async def test_what_the_warden_did_is_below_the_call(state_dir: Path, tmp_path: Path) -> None:
    said = await serve_one_call(state_dir, tmp_path / "errors", OTEL_TRACES_EXPORTER="console")
    assert SECRET not in said
    spans = [json.loads(line) for line in said.splitlines()]
    by_name: dict[str, dict[str, Any]] = {span["name"]: span for span in spans}
    call = by_name["tools/call shell_exec"]
    below = [span for span in spans if span["parent_id"] == call["context"]["span_id"]]
    assert "warden exec" in {span["name"] for span in below}
    assert {span["context"]["trace_id"] for span in below} == {call["context"]["trace_id"]}
    assert all(set(span["attributes"]) <= {"ghost.cave", "error.type"} for span in below)
    assert call["resource"]["attributes"]["service.name"] == "ghost"
    read = by_name["tools/call file_read"]
    [failed] = [
        span
        for span in spans
        if span["parent_id"] == read["context"]["span_id"] and "error.type" in span["attributes"]
    ]
    assert failed["attributes"]["error.type"] == "file_not_found"
    assert failed["status"]["status_code"] == "ERROR"


@pytest.mark.slow
async def test_a_call_by_rest_is_a_span_below_the_caller_s() -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    with serving(OTEL_TRACES_EXPORTER="console", OTEL_BSP_SCHEDULE_DELAY="50") as hub:
        async with hub.client(headers=headers) as http:
            body = {"command": COMMAND}
            assert (await http.post("/v1/shell/exec", json=body)).json()["exit_code"] == 3
            gone = await http.post("/v1/file/read", json={"path": "/nowhere"})
            assert gone.status_code == 404
        said = ""
        with anyio.fail_after(60):  # until it is there, to the end of its line
            while not ("tools/call file_read" in said and said.endswith("\n")):
                await anyio.sleep(0.05)
                said = (hub.state / "stderr").read_text()
    assert SECRET not in said
    spans = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    calls = {span["name"]: span for span in spans if span["parent_id"] == f"0x{parent}"}
    assert set(calls) == {"tools/call shell_exec", "tools/call file_read"}
    assert calls["tools/call file_read"]["attributes"] == {"error.type": "file_not_found"}
    did = [span for span in spans if span["name"] == "warden exec"]
    assert {span["parent_id"] for span in did} == {
        calls["tools/call shell_exec"]["context"]["span_id"]
    }
    assert {span["context"]["trace_id"] for span in did} == {f"0x{trace}"}


@contextmanager
def collector(got: list[tuple[str, bytes]]) -> Iterator[str]:
    """A collector's HTTP side, for the time of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
async def test_a_collector_gets_them(state_dir: Path, tmp_path: Path) -> None:
    got: list[tuple[str, bytes]] = []
    with collector(got) as address:
        said = await serve_one_call(
            state_dir,
            tmp_path / "errors",
            OTEL_EXPORTER_OTLP_ENDPOINT=address,
            OTEL_SERVICE_NAME="my-ghost",
            OTEL_EXPORTER_OTLP_COMPRESSION="none",
        )
    assert said == ""
    assert {path for path, _ in got} == {"/v1/traces"}
    body = b"".join(data for _, data in got)
    for name in (b"tools/call shell_exec", b"warden exec", b"my-ghost"):
        assert name in body
    assert SECRET.encode() not in body


@pytest.mark.parametrize(
    ("settings", "loaded"),
    [
        ({}, "False False"),
        (
            {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"},
            "False False",
        ),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, "False False"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "True True"),
    ],
)
def test_nothing_is_loaded_that_nobody_asked_for(settings: dict[str, str], loaded: str) -> None:
    program = (
        "import sys; from ghost_mcp import tracing; import ghost_mcp.warden.link; tracing.start(); "
        "print('opentelemetry.sdk' in sys.modules, tracing.begin('stat', 'dev') is not None)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == loaded


def test_without_the_extra_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ImportError('not here')")
    done = subprocess.run(
        [sys.executable, "-c", "from ghost_mcp import tracing; tracing.start(); tracing.flush()"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OTEL_TRACES_EXPORTER": "otlp"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "pip install 'ghost-mcp[otel]'" in done.stderr
