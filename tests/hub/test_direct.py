"""Calls that take the short way: the same answers as by the SDK's, the same ends, the same refusals."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from ghost_hub import direct
from ghost_hub.direct import Direct
from ghost_hub.hub import Hub
from ghost_hub.principal import LOCAL, PRINCIPAL
from tests.conftest import held
from tests.serving import Served

VERSION = "2026-07-28"
META = "io.modelcontextprotocol/"
SAME = (
    ("shell_exec", {"command": "echo $((6*7)); echo oh >&2; exit 3"}),
    ("shell_exec", {"command": "seq 100000"}),
    ("shell_exec", {"command": "printf '\\xff\\xed\\xa0\\x80 \\0 \\xf0\\x9f\\x91\\xbb'"}),
    ("file_write", {"path": "a.txt", "content": "hello\n"}),
    ("file_read", {"path": "a.txt"}),
    ("file_read", {"path": "no-such"}),
    ("file_read", {}),
    ("file_list", {"path": ".", "cave": "no-such"}),
    ("file_list", {"path": ".", "cave": 7}),
    ("shell_exec", {"command": json.loads("[" * 500 + "]" * 500)}),
)


def message(tool: str, arguments: Any, **meta: Any) -> dict[str, Any]:
    envelope = {
        f"{META}protocolVersion": VERSION,
        f"{META}clientInfo": {"name": "test", "version": "1"},
        f"{META}clientCapabilities": {},
    }
    params = {"name": tool, "arguments": arguments, "_meta": envelope | meta}
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}


def headers(tool: str, **more: str) -> dict[str, str]:
    given = {
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
        "mcp-protocol-version": VERSION,
        "mcp-method": "tools/call",
        "mcp-name": tool,
    }
    return given | {key.replace("_", "-"): value for key, value in more.items()}


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx2.AsyncClient]:
    async with served.client(served.make_token(owner="direct")) as client:
        yield client
        await client.delete("/v1/caves/default")


def _bare(answer: httpx2.Response) -> Any:
    """The result, less what differs from one call to the next."""
    data = answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        data = answer.text.rpartition("data: ")[2]
    data = re.sub(r'("duration_s"):[0-9.e-]+', r"\1:0", data)
    data = re.sub(r"\bc[0-9]+\b|[0-9a-f]{12,}(-[0-9]+-[0-9a-f]+)?|[0-9.]+ m?s\b", "x", data)
    return json.loads(data)["result"]


@pytest.mark.parametrize(("tool", "arguments"), SAME)
async def test_both_ways_answer_the_same(
    http: httpx2.AsyncClient, tool: str, arguments: dict[str, Any]
) -> None:
    await http.post("/mcp", json=message("shell_exec", {"command": "echo > a.txt"}), headers=headers("shell_exec"))  # fmt: skip
    short = await http.post("/mcp", json=message(tool, arguments), headers=headers(tool))
    asked = message(tool, arguments, progressToken="p")
    detour = await http.post("/mcp", json=asked, headers=headers(tool))
    assert short.status_code == detour.status_code == 200
    assert short.headers["content-type"] == "application/json"
    assert _bare(short) == _bare(detour)


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (message("shell_exec", {"command": "touch ran"}), headers("file_read")),
        (message("shell_exec", {"command": "touch ran"}), headers("shell_exec", mcp_protocol_version="2027-01-01")),
        (message("shell_exec", {"command": "touch ran"}, **{f"{META}clientInfo": 5}), headers("shell_exec")),
        (message("shell_exec", {"command": "touch ran"}, **{f"{META}clientCapabilities": []}), headers("shell_exec")),
        (message("shell_exec", ["touch ran"]), headers("shell_exec")),
        ({**message("shell_exec", {"command": "touch ran"}), "id": None}, headers("shell_exec")),
        ({**message("shell_exec", {"command": "touch ran"}), "jsonrpc": "1.0"}, headers("shell_exec")),
        (message("shell_exec", {"command": "touch ran"}), headers("shell_exec", accept="application/json")),
        (message("no_such", {"command": "touch ran"}), headers("no_such")),
    ],
)  # fmt: skip
async def test_what_is_not_right_runs_nothing(
    http: httpx2.AsyncClient, body: dict[str, Any], sent: dict[str, str]
) -> None:
    refused = await http.post("/mcp", json=body, headers=sent)
    assert refused.status_code >= 400 or "error" in refused.json()
    listed = await http.post("/v1/file/list", json={"path": "."})
    assert "ran" not in [entry["path"] for entry in listed.json()["entries"]]


async def test_a_header_twice_runs_nothing(http: httpx2.AsyncClient) -> None:
    body = json.dumps(message("shell_exec", {"command": "touch ran"}))
    twice = [*headers("shell_exec").items(), ("mcp-name", "file_read")]
    refused = await http.post("/mcp", content=body, headers=twice)
    assert refused.status_code == 400


async def test_a_call_ends_with_its_client(http: httpx2.AsyncClient) -> None:
    body = message("shell_exec", {"command": "touch began; sleep 50; touch ended"})
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(http.post, "/mcp", json=body, headers=headers("shell_exec")))
            while await _files(http) != ["began"]:
                await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()
        while "sleep 50" in await _running(http):
            await anyio.sleep(0.1)
    assert await _files(http) == ["began"]


async def _files(http: httpx2.AsyncClient) -> list[str]:
    listed = await http.post("/v1/file/list", json={"path": "."})
    return [str(entry["path"]) for entry in listed.json()["entries"]]


async def _running(http: httpx2.AsyncClient) -> str:
    line = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    done = await http.post("/v1/shell/exec", json={"command": line.replace("sleep", "slee[p]")})
    return str(done.json()["stdout"])


class Client:
    """The other side of an ASGI application: one request, and all that is said to it."""

    def __init__(self, tool: str, arguments: dict[str, Any]) -> None:
        self.body = json.dumps(message(tool, arguments)).encode()
        raw = [(key.encode(), value.encode()) for key, value in headers(tool).items()]
        self.scope = {"type": "http", "method": "POST", "headers": raw, PRINCIPAL: LOCAL}
        self.gone = anyio.Event()
        self.said: list[dict[str, Any]] = []
        self.deaf = False

    async def receive(self) -> dict[str, Any]:
        if self.body:
            body, self.body = self.body, b""
            return {"type": "http.request", "body": body}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, told: Any) -> None:
        if self.deaf:
            raise OSError("the line is cut")
        self.said.append(told)


@pytest.fixture
async def short(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> AsyncIterator[Direct]:
    own = state_dir / "short"  # the default cave stays, as it does for users
    own.mkdir(mode=0o711, exist_ok=True)
    monkeypatch.setenv("GHOST_STATE_DIR", str(own))
    monkeypatch.setattr(direct, "PATIENCE_S", 0.1)
    monkeypatch.setattr(direct, "LOOK_S", 0.02)
    async with held(_open()) as way:
        yield way


@asynccontextmanager
async def _open() -> AsyncIterator[Direct]:
    async with Hub(backend="local") as hub, anyio.create_task_group() as tasks:
        way = Direct(_nowhere, hub)
        tasks.start_soon(way.attend)
        yield way
        for cave in await hub.ghost.list():
            await (await hub.ghost.get(cave.id)).destroy()
        tasks.cancel_scope.cancel()


async def _nowhere(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("this was to take the short way")


async def test_a_long_call_is_kept_alive(short: Direct) -> None:
    client = Client("shell_exec", {"command": "sleep 1; echo done"})
    await short(client.scope, client.receive, client.send)
    start, *pieces = client.said
    assert (b"content-type", b"text/event-stream") in start["headers"]
    assert len(pieces) >= 3
    assert all(piece["body"] == b": ping\r\n\r\n" and piece["more_body"] for piece in pieces[:-1])
    assert not pieces[-1].get("more_body")
    event, _, data = pieces[-1]["body"].decode().partition("\r\n")
    assert event == "event: message"
    assert json.loads(data.removeprefix("data: "))["result"]["structuredContent"]["stdout"] == "done\n"  # fmt: skip


async def test_a_client_that_cannot_be_told_ends_the_call(short: Direct) -> None:
    client = Client("shell_exec", {"command": "sleep 50"})
    client.deaf = True
    with anyio.fail_after(60), pytest.raises(ExceptionGroup):
        await short(client.scope, client.receive, client.send)


async def test_a_client_that_goes_ends_the_call(short: Direct) -> None:
    client = Client("shell_exec", {"command": "sleep 50"})
    client.gone.set()
    with anyio.fail_after(60):
        await short(client.scope, client.receive, client.send)
    assert client.said == []
