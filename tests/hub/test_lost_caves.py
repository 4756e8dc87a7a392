"""Caves that end, stop or come back while a connection uses them. Another process does it to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ghost_mcp import CaveSpec, Ghost, State
from tests.conftest import held
from tests.hub.test_calls import call, error, text

if TYPE_CHECKING:
    from pathlib import Path

    from mcp import Client
    from mcp.types import CallToolResult

    from tests.hub.conftest import Connect


@pytest.fixture
async def rival(ghost: Ghost, state_dir: Path) -> AsyncIterator[Ghost]:
    """Another Ghost on the same caves, as in another process."""
    async with held(Ghost(backend="local", state_dir=state_dir)) as opened:
        yield opened


async def under_a_call(
    client: Client, arguments: dict[str, Any], act: Callable[[], Awaitable[object]]
) -> CallToolResult:
    """Call a tool that hangs in its cave; do ``act`` as soon as it runs; return the tool's answer."""
    up = anyio.Event()
    answers: list[CallToolResult] = []

    async def note(*_: object) -> None:
        up.set()

    async def hang() -> None:
        answers.append(await client.call_tool("test_hang", arguments, progress_callback=note))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hang)
            await up.wait()
            await act()
    return answers[0]


async def test_own_cave_killed_under_a_call(connect: Connect, rival: Ghost) -> None:
    async with connect() as client:
        name = text(await call(client, "whose"))
        told = error(await under_a_call(client, {}, lambda: rival.destroy(name)))
        assert told["code"] == "cave_gone"
        assert told["message"] == f"cave {name} ended during the call"
        assert "new, empty cave" in told["hint"]
        after = await call(client, "whose")
        fresh = after.structured_content["content"]
        assert fresh != name
        assert text(after).startswith(f"Note: your cave {name} has ended, with all its files.")
        assert fresh in text(after).splitlines()[0]
        assert text(await call(client, "whose")) == fresh  # said once
        assert [info.name for info in await rival.list()] == [fresh]


async def test_own_cave_killed_between_calls(connect: Connect, rival: Ghost) -> None:
    async with connect() as client:
        name = text(await call(client, "whose"))
        await rival.destroy(name)
        after = await call(client, "run_line", command="ls -A /workspace")
        assert after.structured_content == {"stdout": "", "exit_code": 0}
        assert text(after).startswith(f"Note: your cave {name} has ended")


async def test_many_calls_meet_the_end_of_one_cave(connect: Connect, rival: Ghost) -> None:
    async with connect() as client:
        name = text(await call(client, "whose"))
        await rival.destroy(name)
        answers: list[CallToolResult] = []

        async def ask() -> None:
            answers.append(await call(client, "whose"))

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(ask)
        assert len({answer.structured_content["content"] for answer in answers}) == 1
        assert len(await rival.list()) == 1


async def test_named_cave_killed_under_a_call(connect: Connect, rival: Ghost) -> None:
    async with connect() as client:
        await rival.create(CaveSpec(name="victim"))
        told = error(
            await under_a_call(client, {"cave": "victim"}, lambda: rival.destroy("victim"))
        )
        assert told["code"] == "cave_gone"
        assert "new, empty cave" not in told["hint"]
        assert error(await call(client, "whose", cave="victim"))["code"] == "cave_not_found"
        async with await rival.create(CaveSpec(name="victim")) as again:
            found = await call(client, "run_line", command="pwd", cave="victim")
            assert text(found) == "/workspace\n"
            assert again.name == "victim"


async def test_a_stopped_cave_says_so_and_works_again_when_started(
    connect: Connect, rival: Ghost
) -> None:
    async with (
        connect(pinned="resting") as client,
        await rival.create(CaveSpec(name="resting")) as cave,
    ):
        assert text(await call(client, "remember")) == "1"
        await cave.stop()
        told = error(await call(client, "whose"))
        assert told["code"] == "conflict"
        assert "ghost start resting" in told["hint"]
        await cave.start()
        # What was kept hung on the old processes: it is made anew.
        assert text(await call(client, "remember")) == "1"
        assert text(await call(client, "remember")) == "2"


async def test_a_cave_stopped_under_a_call(connect: Connect, rival: Ghost) -> None:
    async with connect() as client, await rival.create(CaveSpec(name="pulled")) as cave:
        told = error(await under_a_call(client, {"cave": "pulled"}, cave.stop))
        assert told["code"] in ("conflict", "cave_gone")
        assert "ghost start pulled" in told["hint"]


async def test_a_broken_link_is_not_a_dead_cave(connect: Connect, ghost: Ghost) -> None:
    async with connect() as client:
        name = text(await call(client, "whose"))
        cave = await ghost.get(name)
        told = error(await under_a_call(client, {}, lambda: ghost.drop_link(cave.id)))
        assert told["code"] == "cave_gone"
        assert "broke during the call" in told["message"]
        assert text(await call(client, "whose")) == name
        assert (await cave.refresh()).state is State.RUNNING


async def test_what_is_kept_hangs_on_its_link(connect: Connect, ghost: Ghost) -> None:
    async with connect() as client:
        cave = await ghost.get(text(await call(client, "whose")))
        assert [text(await call(client, "remember")) for _ in range(2)] == ["1", "2"]
        await ghost.drop_link(cave.id)
        assert text(await call(client, "remember")) == "1"


async def test_a_cave_that_cannot_be_made_is_an_error_each_time(
    connect: Connect, ghost: Ghost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect() as client:
        monkeypatch.setattr(ghost, "default_backend", "nowhere")
        for _ in range(2):
            assert error(await call(client, "whose"))["code"] == "invalid_argument"
        monkeypatch.undo()
        assert text(await call(client, "whose")).startswith("cave-")
