"""What a person sees of its caves by HTTP: the calls in them, what they use, where they went."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx2
import pytest
from starlette.requests import Request

from ghost_hub.feed import Feed
from ghost_hub.hub import Hub
from ghost_hub.monitor import Monitor
from ghost_hub.rest.row import Ask
from ghost_mcp import Cave, Ghost
from ghost_mcp.spec import CaveInfo
from tests.serving import Served, serving

SECRET = "tr0ub4dor-and-3-more"  # noqa: S105


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving("--backend", "local") as one:
        yield one


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx2.AsyncClient]:
    async with served.client() as client:
        yield client


async def call(http: httpx2.AsyncClient, tool: str, **arguments: Any) -> httpx2.Response:
    return await http.post("/mcp/execute", json={"tool": tool, "arguments": arguments})


async def calls(http: httpx2.AsyncClient, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await http.get("/v1/calls", params=query)).json()["calls"]
    return found


async def test_calls_are_kept_with_what_was_asked_and_answered(http: httpx2.AsyncClient) -> None:
    await call(http, "shell_exec", command="echo kept-$((40+2))")
    await call(http, "file_read", path="there/is/none")
    done, failed = (await calls(http))[-2:]
    assert done["arguments"] == {"command": "echo kept-$((40+2))"}
    assert (done["tool"], done["outcome"], done["cave"]) == ("shell_exec", "ok", "default")
    assert "kept-42" in done["text"]
    assert done["duration_s"] > 0
    assert failed["outcome"] != "ok"
    assert "there/is/none" in failed["text"]
    assert await calls(http, cave="another") == []


async def test_what_is_kept_is_bounded(http: httpx2.AsyncClient) -> None:
    many = {f"k{n}": "v" for n in range(100)}
    await call(http, "shell_exec", command="true #" + "x" * 100_000, env=many)
    last = (await calls(http))[-1]
    assert len(json.dumps(last)) < 16_000
    for _ in range(205):
        await call(http, "file_list", path="/nowhere")
    assert len(await calls(http)) == 200


async def test_another_owner_sees_nothing_of_it(served: Served, http: httpx2.AsyncClient) -> None:
    await call(http, "shell_exec", command="echo mine")
    mine = (await calls(http))[-1]
    async with served.client(served.make_token("other")) as other:
        assert await calls(other) == []
        assert (await other.get(f"/v1/calls/{mine['id']}/pictures/0")).status_code == 404
        assert (await other.get("/v1/caves/default/stats/history")).status_code == 404
        assert (await other.get("/v1/caves/default/egress")).status_code == 404
        assert (await other.get("/v1/stats")).json()["caves"] == {}


async def test_a_secret_is_masked_in_what_is_kept(served: Served, http: httpx2.AsyncClient) -> None:
    subprocess.run(
        [sys.executable, "-m", "ghost_mcp.cli", "secret", "set", "PASSWORD"],
        input=SECRET,
        text=True,
        check=True,
        env={**os.environ, "GHOST_STATE_DIR": str(served.state)},
    )
    made = await http.post("/v1/caves", json={"name": "hushed", "secrets": ["PASSWORD"]})
    assert made.status_code == 201, made.text
    for _ in range(2):
        await call(http, "shell_exec", command=f"echo $PASSWORD {SECRET}", cave="hushed")
    kept = await calls(http, cave="hushed")
    assert len(kept) == 2
    assert SECRET not in json.dumps(kept)
    assert "echo" in kept[-1]["arguments"]["command"]


async def test_use_is_measured_while_somebody_looks(http: httpx2.AsyncClient) -> None:
    await call(http, "shell_exec", command="sleep 20 & echo started")
    samples: list[dict[str, Any]] = []
    with anyio.fail_after(60):
        async with http.stream("GET", "/v1/caves/default/stats/events") as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data:"):
                    samples.append(json.loads(line.removeprefix("data:")))
                if len(samples) == 2:
                    break
    first, second = samples
    assert first["at"] < second["at"]
    assert second["memory_bytes"] is None or second["memory_bytes"] > 0
    history = (await http.get("/v1/caves/default/stats/history")).json()
    assert second in history["samples"]  # and perhaps one that has come since
    assert history["limits"]["pids"]
    listed = (await http.get("/v1/stats")).json()["caves"]["default"]
    assert second in listed["samples"]


async def test_connections_of_a_cave_without_a_network_are_none(http: httpx2.AsyncClient) -> None:
    await call(http, "shell_exec", command="true")
    found = (await http.get("/v1/caves/default/egress")).json()
    assert found == {"mode": "none", "connections": []}


async def test_what_a_cave_used_goes_with_it(ghost: Ghost, cave: Cave) -> None:
    monitor = Monitor(ghost)
    assert monitor.samples(cave.info) == []
    await monitor._look()
    assert len(monitor.samples(cave.info)) == 1
    await cave.destroy()
    await monitor._look()
    assert monitor.samples(cave.info) == []


class Looked:
    """An owner's caves, and how often they were asked for."""

    owner, looks = "alice", 0

    async def list(self) -> list[CaveInfo]:
        self.looks += 1
        return []


async def test_who_reads_events_together_looks_together() -> None:
    """A look asks the engine: each event of each reader's made one, and a reader costs its owner nothing."""
    events, caves = Hub().events, Looked()
    ask: Any = Ask(hub=Hub(), request=Request({"type": "http"}), caves=caves)  # type: ignore[arg-type]
    told, readers = 20, 8

    async def read() -> None:
        stream = events.stream(ask, None)
        for _ in range(told):
            await anext(stream)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(readers):
                tasks.start_soon(read)
            while len(events._readers[caves.owner]) < readers or not caves.looks:
                await anyio.sleep(0.01)
            for number in range(told):
                events._tell(caves.owner, Feed(), {"id": str(number), "type": "call"})
                await anyio.sleep(0.01)
    assert caves.looks < 2 * told
