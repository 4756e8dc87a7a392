"""The person at the client is asked about what a cave's network refused: both eras, over pipes and over HTTP."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import (
    CallToolResult,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequiredResult,
    InputResponses,
)

from ghost_hub.server import hub_calls, hub_server
from ghost_mcp import Cave, CaveSpec, Ghost, NetworkPolicy
from ghost_mcp.places import Places, SessionCaves
from ghost_servers.serving import asking
from tests.hub.conftest import ERAS

if TYPE_CHECKING:
    from tests.serving import Served

TARGETS = ("wanted.invalid", "other.invalid:8443")
LINE = "echo x >>ran; " + "; ".join(f"curl -s -m 9 https://{target}/" for target in TARGETS)
POLICY = NetworkPolicy(mode="allow", allow=("listed.invalid",))

Word = Callable[[ElicitRequestFormParams], ElicitResult]


def chosen(**content: Any) -> Word:
    return lambda _: ElicitResult(action="accept", content=content)


class Person:
    """Answers what the client is asked, and keeps what it was."""

    def __init__(self, word: Word) -> None:
        self._word, self.asked = word, list[ElicitRequestFormParams]()

    async def __call__(self, context: object, params: Any) -> ElicitResult:
        self.asked.append(params)
        return self._word(params)


@pytest.fixture
async def cave(ghost: Ghost) -> AsyncIterator[Cave]:
    made = await ghost.create(CaveSpec(network=POLICY))
    yield made
    await made.destroy()


@asynccontextmanager
async def connected(ghost: Ghost, cave: Cave, era: str, person: Any) -> AsyncIterator[Client]:
    async with Places(ghost) as places, SessionCaves(places, pinned=cave.name) as caves:
        server = hub_server(hub_calls(), lambda _: caves)
        async with Client(server, mode=ERAS[era], elicitation_callback=person) as client:
            yield client


async def run(client: Client, **more: Any) -> dict[str, Any]:
    result = await client.call_tool("shell_exec", {"command": LINE, **more})
    assert isinstance(result.structured_content, dict)
    return result.structured_content


def blocked(data: dict[str, Any]) -> list[str]:
    return [one["blocked"] for one in data.get("blocked", ())]


async def test_yes_is_for_what_was_chosen_and_the_tool_ran_once(
    ghost: Ghost, cave: Cave, era: str
) -> None:
    person = Person(chosen(allow_0=True, allow_1=False, allow_2=True))
    async with connected(ghost, cave, era, person) as client:
        told = await run(client)
        assert blocked(told) == ["wanted.invalid:443", "other.invalid:8443"]
        assert told["allowed"] == ["wanted.invalid"]
        assert (await cave.read("ran")).data == b"x\n"
        assert blocked(await run(client)) == ["other.invalid:8443"]
    (form,) = person.asked  # not again about what was refused by the person
    assert all(target in form.message for target in TARGETS)
    assert [one["title"] for one in form.requested_schema["properties"].values()] == [
        f"Allow {target} for 10 minutes" for target in TARGETS
    ]


@pytest.mark.parametrize(
    "word",
    [
        lambda _: ElicitResult(action="decline"),
        lambda _: ElicitResult(action="cancel", content={"allow_0": True}),
        chosen(),
        chosen(allow_0="true", allow_1=1),
    ],
    ids=["no", "closed", "nothing-chosen", "odd"],
)
async def test_whatever_is_not_yes_leaves_the_refusal(
    ghost: Ghost, cave: Cave, era: str, word: Word
) -> None:
    person = Person(word)
    async with connected(ghost, cave, era, person) as client:
        for _ in range(2):
            told = await run(client)
            assert len(blocked(told)) == 2
            assert "allowed" not in told
    assert len(person.asked) == 1


async def test_a_person_who_does_not_answer(
    ghost: Ghost, cave: Cave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ANSWER_S", 0.2)

    async def asleep(context: object, params: object) -> ElicitResult:
        await anyio.sleep_forever()
        raise AssertionError

    async with connected(ghost, cave, "2025-11-25", asleep) as client:
        told = await run(client)
        assert len(blocked(told)) == 2
        assert "allowed" not in told


async def test_clients_that_cannot_ask_and_targets_that_nobody_is_asked_about(
    ghost: Ghost, cave: Cave, era: str
) -> None:
    async with connected(ghost, cave, era, None) as client:
        assert len(blocked(await run(client))) == 2
    person = Person(chosen(allow_0=True))
    async with connected(ghost, cave, era, person) as client:
        line = (
            "curl -s --noproxy '' http://169.254.169.254/; curl -s --noproxy '' http://127.0.0.1:1/"
        )
        result = await client.call_tool("shell_exec", {"command": line})
        assert isinstance(result.structured_content, dict)
        assert len(blocked(result.structured_content)) == 2
    assert person.asked == []


async def test_a_second_round_is_that_of_its_call_and_there_is_one(
    ghost: Ghost, cave: Cave
) -> None:
    yes: InputResponses = {"network": ElicitResult(action="accept", content={"allow_0": True})}
    async with connected(ghost, cave, "2026-07-28", Person(chosen())) as client:

        async def again(state: str | None, **arguments: Any) -> CallToolResult:
            result = await client.session.call_tool(
                "shell_exec",
                {"command": LINE, **arguments},
                input_responses=yes,
                request_state=state,
            )
            assert isinstance(result, CallToolResult)
            return result

        first = await client.session.call_tool(
            "shell_exec", {"command": LINE}, allow_input_required=True
        )
        assert isinstance(first, InputRequiredResult)
        for state, more in (("made-up", {}), (first.request_state, {"timeout_s": 5})):
            with pytest.raises(MCPError, match="requestState"):
                await again(state, **more)
        with pytest.raises(MCPError, match="requestState"):  # the wrong arguments have used it up
            await again(first.request_state)
        assert (await cave.read("ran")).data == b"x\n"
        assert cave.connections()[-1]["event"] == "refused"


async def test_over_pipes(cave: Cave, state_dir: Path, era: str) -> None:
    person = Person(chosen(allow_0=True))
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "ghost_mcp.cli", "mcp", "--cave", cave.name],
        env={**os.environ, "GHOST_STATE_DIR": str(state_dir), "GHOST_BACKEND": "local"},
    )
    async with Client(server, mode=ERAS[era], elicitation_callback=person) as client:
        assert (await run(client))["allowed"] == ["wanted.invalid"]
        assert blocked(await run(client)) == ["other.invalid:8443"]


@pytest.mark.parametrize("scope", ["manage", "admin"])
async def test_over_http_whoever_may_do_all_is_asked(served: Served, era: str, scope: str) -> None:
    person = Person(chosen(allow_0=True))
    token = served.make_token(scope=scope)
    async with Ghost(backend="local", state_dir=served.state) as ghost:
        cave = await ghost.create(CaveSpec(network=POLICY))
        try:
            async with (
                served.client(token) as link,
                Client(
                    streamable_http_client(f"{served.url}/mcp", http_client=link),
                    mode=ERAS[era],
                    elicitation_callback=person,
                ) as client,
            ):
                told = await run(client, cave=cave.name)
                assert len(blocked(told)) == 2
                assert told.get("allowed") == (["wanted.invalid"] if scope == "admin" else None)
                assert len(person.asked) == (scope == "admin")
        finally:
            await cave.destroy()
