"""Calling tools through the serving layer, in memory: what a client sees of each outcome."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp import Client, MCPError
from mcp.types import INVALID_PARAMS, CallToolResult, ImageContent, ResourceLink, TextContent

from ghost_mcp import CaveSpec, Ghost
from ghost_servers.serving.answers import MAX_PICTURES_BYTES, MAX_TEXT_BYTES
from tests.hub import toolbox

if TYPE_CHECKING:
    from tests.hub.conftest import Connect


async def call(client: Client, name: str, **arguments: Any) -> CallToolResult:
    return await client.call_tool(f"test_{name}", arguments)


def text(result: CallToolResult) -> str:
    return "\n".join(part.text for part in result.content if isinstance(part, TextContent))


def error(result: CallToolResult) -> dict[str, Any]:
    assert result.is_error
    told: dict[str, Any] = result.structured_content["error"]
    assert text(result).startswith(told["message"])
    return told


async def test_list_is_complete_ordered_and_honest(connect: Connect, era: str) -> None:
    async with connect() as client:
        listed = await client.list_tools()
    assert [tool.name for tool in listed.tools] == [f"test_{t.name}" for t in toolbox.TOOLSET.tools]
    if era == "2026-07-28":
        assert (listed.ttl_ms, listed.cache_scope) == (3_600_000, "public")
    by_name = {tool.name: tool for tool in listed.tools}
    line = by_name["test_run_line"]
    assert (line.title, line.description) == ("Run", "Run a shell line.")
    assert line.input_schema["additionalProperties"] is False
    assert list(line.input_schema["properties"]) == ["command", "cave"]
    assert line.output_schema is not None
    assert set(line.output_schema["properties"]) == {"content", "stdout", "exit_code"}
    hints = {
        name: tool.annotations.model_dump(exclude_none=True)
        for name, tool in by_name.items()
        if tool.annotations
    }
    assert hints["test_run_line"] == {
        "read_only_hint": False,
        "destructive_hint": True,
        "idempotent_hint": False,
        "open_world_hint": True,
    }
    assert hints["test_say"] == {
        "read_only_hint": True,
        "destructive_hint": False,
        "idempotent_hint": True,
        "open_world_hint": False,
    }
    assert hints["test_count"]["destructive_hint"] is False


async def test_a_call_acts_in_the_connection_s_own_cave(connect: Connect, ghost: Ghost) -> None:
    async with connect() as client:
        assert await ghost.list() == []  # made by the first call, not before
        done = await call(client, "run_line", command="echo $((6*7)) | tee kept")
        assert (text(done), done.is_error) == ("42\n", False)
        assert done.structured_content == {"stdout": "42\n", "exit_code": 0}
        again = await call(client, "run_line", command="cat kept; exit 3")
        assert again.structured_content == {"stdout": "42\n", "exit_code": 3}
        [info] = await ghost.list()
        assert info.spec.ephemeral
    assert await ghost.list() == []


async def test_first_calls_at_once_share_one_cave(connect: Connect, ghost: Ghost) -> None:
    names: list[str] = []

    async def ask(client: Client) -> None:
        names.append(text(await call(client, "whose")))

    async with connect() as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(ask, client)
        assert len(await ghost.list()) == 1
    assert len(names) == 8
    assert len(set(names)) == 1


async def test_concurrent_callers_get_their_own_answers(connect: Connect) -> None:
    async def ask(client: Client, nonce: str) -> None:
        done = await call(client, "run_line", command=f"echo {nonce}")
        assert text(done) == f"{nonce}\n"

    async with connect() as client:
        await call(client, "whose")
        async with anyio.create_task_group() as tasks:
            for number in range(16):
                tasks.start_soon(ask, client, f"nonce-{number}")


async def test_progress_reaches_the_caller_bounded(connect: Connect) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def note(done: float, total: float | None, message: str | None) -> None:
        seen.append((done, total, message))

    async with connect() as client:
        await client.call_tool("test_count", {"to": 3}, progress_callback=note)
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(message and len(message) == 200 for _, _, message in seen)


async def test_what_was_cancelled_is_dead(connect: Connect, ghost: Ghost) -> None:
    async with connect() as client, anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()
        up = anyio.Event()

        async def note(*_: object) -> None:
            up.set()

        async def hang() -> None:
            with scope:
                await client.call_tool("test_hang", {}, progress_callback=note)

        tasks.start_soon(hang)
        await up.wait()
        [info] = await ghost.list()
        cave = await ghost.get(info.name)
        head, _ = await cave.call("commands")
        [running] = [one for one in head["commands"] if one["running"]]
        scope.cancel()
        with anyio.fail_after(30):
            ended, _ = await cave.call("command", {"id": running["id"], "action": "wait"})
        assert ended["exit_code"] == 128 + 9
        assert text(await call(client, "whose")) == cave.name  # the connection goes on


async def test_a_picture_is_an_image(connect: Connect) -> None:
    async with connect() as client:
        shown = await call(client, "picture")
        large = await call(client, "picture", padding=MAX_PICTURES_BYTES)
    assert [type(part) for part in shown.content] == [TextContent, ImageContent]
    assert isinstance(shown.content[1], ImageContent)
    assert shown.content[1].mime_type == "image/png"
    assert shown.content[1].data.startswith("iVBORw0KGgo")
    assert "too large to show" in text(large)
    assert not any(isinstance(part, ImageContent) for part in large.content)


async def test_large_output_comes_as_a_link(connect: Connect) -> None:
    async with connect() as client:
        done = await call(client, "flood", command="head -c 5000000 /dev/zero | tr '\\0' x")
        [link] = [part for part in done.content if isinstance(part, ResourceLink)]
        assert (link.size, link.mime_type) == (5_000_000, "text/plain")
        read = await client.read_resource(str(link.uri))
    assert read.contents[0].meta is not None
    assert read.contents[0].meta["size_bytes"] == 5_000_000


async def test_text_is_cut_at_the_hard_bound(connect: Connect) -> None:
    async with connect() as client:
        done = await call(client, "say", content="ä" * 1000, times=1000)
    assert not done.is_error
    assert len(text(done).encode()) <= MAX_TEXT_BYTES
    assert "characters left out" in text(done)


async def test_data_beyond_the_hard_bound_is_an_error(connect: Connect) -> None:
    async with connect() as client:
        told = error(await call(client, "data", size=MAX_TEXT_BYTES))
    assert told["code"] == "too_large"
    assert "was carried out" in told["message"]


async def test_what_json_cannot_carry_is_replaced(connect: Connect) -> None:
    async with connect() as client:
        done = await call(client, "odd")
    assert (text(done), done.structured_content) == ("a\ufffdb", {"content": "a\ufffdb"})


async def test_a_foreseen_error_is_a_result_with_its_hint(connect: Connect) -> None:
    async with connect() as client:
        done = await call(client, "refuse")
    assert text(done) == "no such thing: \ufffd\nNear names: thing."
    assert error(done) == {
        "code": "not_found",
        "message": "no such thing: \ufffd",
        "hint": "Near names: thing.",
        "retryable": False,
        "data": {"near": ["thing"]},
    }


async def test_a_crash_is_told_by_its_id_only(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        async with connect() as client:
            done = await call(client, "crash")
    told = error(done)
    assert told["code"] == "internal"
    assert "secret" not in json.dumps(done.model_dump(mode="json"))
    [record] = [one for one in caplog.records if "test_crash" in one.getMessage()]
    assert record.getMessage().split()[1] in told["message"]
    assert record.exc_info is not None
    assert "a secret of the host" in str(record.exc_info[1])


async def test_an_unknown_tool_is_a_protocol_error(connect: Connect, ghost: Ghost) -> None:
    async with connect() as client:
        for name in ("test_nope", "say", "x" * 10_000):
            with pytest.raises(MCPError) as caught:
                await client.call_tool(name, {})
            assert caught.value.code == INVALID_PARAMS
            assert len(caught.value.message) < 100
    assert await ghost.list() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"contents": "x"}, "unknown argument 'contents' (known: content, times, cave)"),
        ({"times": "many"}, "times: "),
        ({"cave": 5}, "cave: must be the name of a cave"),
        ({"cave": "Not A Name"}, "not a cave name: 'Not A Name'"),
        ({"cave": "../x"}, "not a cave name: '../x'"),
        ({"cave": ""}, "not a cave name: ''"),
    ],
)
async def test_a_wrong_argument_is_named(
    connect: Connect, arguments: dict[str, Any], message: str
) -> None:
    async with connect() as client:
        told = error(await call(client, "say", **arguments))
    assert told["code"] == "invalid_argument"
    assert message in told["message"]


async def test_the_cave_argument_chooses_another_cave(connect: Connect, ghost: Ghost) -> None:
    async with connect() as client, await ghost.create(CaveSpec(name="other")) as other:
        assert text(await call(client, "whose", cave="other")) == "other"
        await call(client, "run_line", command="echo there > mark", cave=other.id)
        assert (await other.read("mark")).data == b"there\n"
        assert text(await call(client, "whose")) != "other"
        told = error(await call(client, "whose", cave="none-such"))
        assert told["code"] == "cave_not_found"
        assert "ghost create none-such" in told["hint"]


async def test_a_pinned_connection_uses_its_cave_and_leaves_it(
    connect: Connect, ghost: Ghost
) -> None:
    async with connect(pinned="mine") as client:
        assert error(await call(client, "whose"))["code"] == "cave_not_found"
        async with await ghost.create(CaveSpec(name="mine")) as mine:
            assert text(await call(client, "whose")) == "mine"
            assert len(await ghost.list()) == 1
            await mine.refresh()


async def test_what_servers_keep_of_the_own_cave_is_closed_before_it_ends(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect() as client:
        await call(client, "remember")
    # Closing writes to the cave: afterwards it would fail, and be logged.
    assert caplog.records == []


async def test_what_servers_keep_is_one_for_a_cave_and_closed_at_the_end(
    connect: Connect, ghost: Ghost
) -> None:
    async with await ghost.create(CaveSpec(name="kept")) as cave:
        async with connect(pinned="kept") as client:
            assert text(await call(client, "remember")) == "1"
            assert text(await call(client, "remember", cave="kept")) == "2"
            assert text(await call(client, "remember", cave=cave.id)) == "3"
        assert (await cave.read("closed")).data == b"yes"
