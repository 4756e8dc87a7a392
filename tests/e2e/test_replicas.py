"""Two hubs that stand for one another: one file of tokens, one engine, and any of them serves any call."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
import yaml

from ghost_hub.tokens import Tokens
from ghost_mcp.backends.docker.engine import open_client
from ghost_mcp.errors import BackendUnavailable
from tests import engine_images
from tests.clusters import NAMESPACE, needed
from tests.contract.images import runtime_image
from tests.serving import Served, serving

LEGACY = "2025-11-25"


class Replica:
    """A served hub, and what it writes to its standard output."""

    def __init__(self, served: Served, token: str) -> None:
        self.url, self.token = served.url, token
        self.process, self.served = served.process, served
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    def audit(self) -> list[dict[str, Any]]:
        """What has come of it so far: a line comes a moment after its answer."""
        return [json.loads(line) for line in self._lines if line.startswith("{")]

    def client(self) -> httpx2.AsyncClient:
        return self.served.client(self.token)


Pair = tuple[Replica, Replica]


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a mounted Secret is: its group may read it, nobody writes it."""
    return tmp_path_factory.mktemp("tokens") / "tokens.json"


@pytest.fixture(
    scope="module", params=["local", pytest.param("kubernetes", marks=pytest.mark.kubernetes)]
)
def engine_of_both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """What makes two hubs use one engine."""
    if request.param == "local":
        # Not below pytest's own folders, which other users, as caves have them, may not pass.
        with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="ghost-replicas-") as state:
            os.chmod(state, 0o711)
            yield {"GHOST_BACKEND": "local", "GHOST_STATE_DIR": state}
        return
    needed()
    folder = tmp_path_factory.mktemp("kubernetes")
    engine = open_client()
    with (
        contextmanager(runtime_image)(engine, folder / "cache") as brought,
        contextmanager(engine_images.small)(engine) as small,
    ):
        given = {
            "namespace": NAMESPACE,
            "instance": f"test-{secrets.token_hex(4)}",
            "runtime_image": brought,
            "image": small,
            "pull_policy": "Never",
        }
        (folder / "caves.yaml").write_text(yaml.safe_dump(given))
        yield {
            "GHOST_BACKEND": "kubernetes",
            "GHOST_KUBERNETES_CONFIG": str(folder / "caves.yaml"),
        }
    engine.close()


@pytest.fixture(scope="module")
def pair(tokens_file: Path, engine_of_both: dict[str, str]) -> Iterator[Pair]:
    tokens_file.unlink(missing_ok=True)
    token, _ = Tokens("", file=str(tokens_file)).create(owner="alice", scope="manage")
    tokens_file.chmod(0o440)
    words = ("--tokens-file", str(tokens_file), "--audit", "-")
    with (
        serving(*words, config="pool: 0", **engine_of_both) as first,
        serving(*words, config="pool: 0", **engine_of_both) as second,
    ):
        assert (first.token, second.token) == ("", "")  # neither has made one of its own
        yield Replica(first, token), Replica(second, token)


async def run(hub: Replica, cave: str | None, command: str) -> dict[str, Any]:
    given = {"command": command} | ({"cave": cave} if cave else {})
    async with hub.client() as http:
        answer = await http.post("/mcp/execute", json={"tool": "shell_exec", "arguments": given})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


async def test_any_replica_serves_any_call(pair: Pair) -> None:
    first, second = pair
    async with first.client() as http:
        made = await http.post("/v1/caves", json={"name": "shared"})
        assert made.status_code == 201, made.text
    await run(first, "shared", "echo from the first > /workspace/note")
    assert "from the first" in str(await run(second, "shared", "cat /workspace/note"))
    async with second.client() as http:
        assert (await http.delete("/v1/caves/shared")).status_code == 200
    async with first.client() as http:
        assert (await http.get("/v1/caves/shared")).status_code == 404
    with anyio.fail_after(30):
        while len(lines := [*first.audit(), *second.audit()]) < 4:
            await anyio.sleep(0.05)
    assert [line["tool"] for line in lines] == [
        *("POST /v1/caves", "shell_exec"),
        *("shell_exec", "DELETE /v1/caves/{id}"),
    ]
    told = {(line["owner"], line["cave"], line["outcome"]) for line in lines}
    assert told == {("alice", "alice/shared", "ok")}


async def test_the_default_cave_is_made_once(pair: Pair) -> None:
    answers: list[dict[str, Any]] = []

    async def call(hub: Replica) -> None:
        answers.append(await run(hub, None, "echo again >> /workspace/calls"))

    async with anyio.create_task_group() as tasks:
        for hub in (*pair, *pair):
            tasks.start_soon(call, hub)
    assert len(answers) == 4
    for hub in pair:
        assert "4" in str(await run(hub, None, "wc -l < /workspace/calls"))
        async with hub.client() as http:
            caves = (await http.get("/v1/caves")).json()["caves"]
        assert [cave["name"] for cave in caves] == ["default"]
    async with pair[0].client() as http:
        assert (await http.delete("/v1/caves/default")).status_code == 200


async def test_a_session_of_one_is_none_of_the_other(pair: Pair) -> None:
    """https://modelcontextprotocol.io/specification/2025-11-25/basic/transports: 404, and the client begins anew."""
    hello = {
        "protocolVersion": LEGACY,
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    headers = {"Accept": "application/json, text/event-stream"}

    async def ask(
        hub: Replica, method: str, params: dict[str, Any], **more: str
    ) -> httpx2.Response:
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        async with hub.client() as http:
            return await http.post("/mcp", json=message, headers=headers | more)

    first, second = pair
    began = await ask(first, "initialize", hello)
    session = {"Mcp-Session-Id": began.headers["mcp-session-id"], "MCP-Protocol-Version": LEGACY}
    assert (await ask(first, "tools/list", {}, **session)).status_code == 200
    assert (await ask(second, "tools/list", {}, **session)).status_code == 404
    again = await ask(second, "initialize", hello)
    assert again.status_code == 200
    session["Mcp-Session-Id"] = again.headers["mcp-session-id"]
    assert (await ask(second, "tools/list", {}, **session)).status_code == 200


async def test_readiness_needs_no_token_and_tells_nothing(pair: Pair) -> None:
    async with httpx2.AsyncClient(base_url=pair[0].url, timeout=60) as http:
        answer = await http.get("/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    async with pair[0].client() as http:
        assert set((await http.get("/ready")).json()) == {"status", "backend", "pool"}


def test_a_file_of_tokens_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    value, _ = Tokens("", file=str(path)).create(owner="alice")
    assert path.stat().st_mode & 0o777 == 0o600
    for mode in (0o444, 0o460, 0o602):
        path.chmod(mode)
        with pytest.raises(BackendUnavailable, match="open to others"):
            Tokens("", file=str(path)).verify(value)
    path.chmod(0o440)
    assert Tokens("", file=str(path)).verify(value) is not None


def test_a_hub_does_not_start_without_the_tokens_it_is_to_share(tmp_path: Path) -> None:
    file = str(tmp_path / "none.json")
    with (
        pytest.raises(RuntimeError, match="there are no tokens in"),
        serving("--tokens-file", file),
    ):
        pass
