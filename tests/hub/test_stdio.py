"""The server as a process: what reaches its standard output, and how it ends."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp import Client, StdioServerParameters
from mcp.types import LATEST_PROTOCOL_VERSION

from ghost_hub.catalog import SERVERS, toolset
from ghost_mcp import CaveSpec, Ghost
from tests.hub.conftest import ERAS
from tests.hub.test_calls import call, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from anyio.abc import Process

ARGV = [sys.executable, "-m", "tests.hub.toolbox"]
WAIT_S = 60
META = {
    "io.modelcontextprotocol/protocolVersion": LATEST_PROTOCOL_VERSION,
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "0"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def request(number: int, tool: str, **arguments: Any) -> dict[str, Any]:
    """A call of the modern era, which needs no handshake; its progress token is its number."""
    params = {"name": f"test_{tool}", "arguments": arguments}
    meta = {**META, "progressToken": number}
    return {
        "jsonrpc": "2.0",
        "id": number,
        "method": "tools/call",
        "params": {**params, "_meta": meta},
    }


class Wire:
    """A server process, spoken to line by line. Whatever it writes to standard output must be JSON-RPC."""

    def __init__(self, process: Process) -> None:
        self.process = process
        assert process.stdout is not None
        self._output = BufferedByteReceiveStream(process.stdout)
        self._answers: dict[int, dict[str, Any]] = {}

    async def send(self, *messages: dict[str, Any]) -> None:
        await self.raw("".join(json.dumps(message) + "\n" for message in messages).encode())

    async def raw(self, data: bytes) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send(data)

    async def next(self) -> dict[str, Any]:
        with anyio.fail_after(WAIT_S):
            line = await self._output.receive_until(b"\n", 1 << 24)
        message: dict[str, Any] = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        if message.get("id") is not None:
            self._answers[message["id"]] = message
        return message

    async def answer(self, number: int) -> dict[str, Any]:
        while number not in self._answers:
            await self.next()
        return self._answers.pop(number)

    async def progress(self, number: int) -> None:
        """Wait until the call reports progress."""
        while (await self.next()).get("params", {}).get("progressToken") != number:
            pass

    async def close(self) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.aclose()

    async def ended(self) -> int:
        with anyio.fail_after(WAIT_S):
            return await self.process.wait()


async def until(ghost: Ghost, count: int) -> None:
    """Wait until there are so many caves."""
    with anyio.fail_after(WAIT_S):
        while len(await ghost.list()) != count:
            await anyio.sleep(0.02)


@pytest.fixture
def environment(state_dir: Path) -> dict[str, str]:
    return {**os.environ, "GHOST_STATE_DIR": str(state_dir)}


@asynccontextmanager
async def served(environment: dict[str, str], *arguments: str) -> AsyncIterator[Wire]:
    process = await anyio.open_process([*ARGV, *arguments], env=environment, stderr=None)
    async with process:
        try:
            yield Wire(process)
        finally:
            if process.returncode is None:
                process.kill()


async def test_the_official_client_in_both_eras(environment: dict[str, str], era: str) -> None:
    seen: list[float] = []

    async def note(done: float, *_: object) -> None:
        seen.append(done)

    server = StdioServerParameters(command=ARGV[0], args=ARGV[1:], env=environment, cwd=".")
    async with Client(server, mode=ERAS[era]) as client:
        assert client.protocol_version == era
        assert len((await client.list_tools()).tools) == 14
        await client.call_tool("test_count", {"to": 3}, progress_callback=note)
        done = await call(client, "flood", command="seq 300000")
        read = await client.read_resource(text(done).split()[-1])
        assert read.contents[0].meta is not None
        assert read.contents[0].meta["size_bytes"] == 1_988_895
        assert (await call(client, "refuse")).is_error
        assert (await call(client, "picture", padding=2_000_000)).content[1].type == "image"
    assert seen == [1, 2, 3]


async def test_nothing_but_the_protocol_on_standard_output(environment: dict[str, str]) -> None:
    async with served(environment) as wire:
        await wire.send(request(1, "chatter"), request(2, "crash"))
        answers = [await wire.answer(1), await wire.answer(2)]
        # Nor does a tool read the client's messages.
        assert answers[0]["result"]["structuredContent"] == {"content": ""}
        assert answers[1]["result"]["isError"] is True


async def test_what_is_no_message_is_refused_and_costs_nothing_more(
    environment: dict[str, str],
) -> None:
    async with served(environment) as wire:
        await wire.send(request(1, "say"))
        await wire.answer(1)
        for bad in (b"{\n", b"[]\n", b"\xff\xfe\n", b'{"jsonrpc":"2.0","id":1}\n', b"null\n"):
            await wire.raw(bad)
            refused = await wire.next()
            assert (refused["id"], refused["error"]["code"]) == (None, -32700)
        await wire.raw(b"\n  \n")
        await wire.send(request(2, "say", content="still here"))
        assert (await wire.next())["result"]["structuredContent"] == {"content": "still here"}


async def test_a_message_without_end_is_refused_once(environment: dict[str, str]) -> None:
    async with served(environment) as wire:
        for _ in range(70):
            await wire.raw(b"x" * (1 << 20))
        refused = await wire.next()
        assert (refused["id"], refused["error"]["code"]) == (None, -32600)
        await wire.raw(b"x" * (1 << 20) + b"\n")
        await wire.send(request(1, "say", content="still here"))
        assert (await wire.next())["result"]["structuredContent"] == {"content": "still here"}


async def test_a_cancelled_call_is_dead_and_not_answered(environment: dict[str, str]) -> None:
    async with served(environment) as wire:
        await wire.send(request(1, "hang"))
        await wire.progress(1)
        cancelled = {"method": "notifications/cancelled", "params": {"requestId": 1}}
        look = request(2, "run_line", command="grep -lsx sleep /proc/[0-9]*/comm | wc -l")
        numbers = itertools.count(2)

        async def sleepers(count: int) -> None:
            """Wait until so many run. Nothing but the answers to this is said meanwhile."""
            with anyio.fail_after(WAIT_S):
                for number in numbers:
                    await wire.send({**look, "id": number})
                    message = await wire.next()
                    assert message["id"] == number
                    if message["result"]["structuredContent"]["stdout"] == f"{count}\n":
                        return

        await sleepers(1)  # what has said that it is up is a shell for a moment yet
        await wire.send({"jsonrpc": "2.0", **cancelled})
        await sleepers(0)
        await wire.close()
        assert await wire.ended() == 0
        assert wire.process.stdout is not None
        with pytest.raises(anyio.EndOfStream):
            await wire.process.stdout.receive()


async def test_messages_split_and_joined_anywhere(environment: dict[str, str]) -> None:
    lines = b"".join(
        json.dumps(request(number, "say", content="ä" * number)).encode() + b"\n"
        for number in range(1, 40)
    )
    async with served(environment) as wire:
        for at in range(0, len(lines), 997):
            await wire.raw(lines[at : at + 997])
        seen = [await wire.next() for _ in range(39)]
    assert {one["id"]: len(one["result"]["structuredContent"]["content"]) for one in seen} == {
        number: number for number in range(1, 40)
    }


async def test_it_ends_with_its_input_and_so_does_the_cave(
    environment: dict[str, str], ghost: Ghost
) -> None:
    async with served(environment) as wire:
        await wire.send(request(1, "hang"))
        await wire.progress(1)
        assert len(await ghost.list()) == 1
        await wire.close()
        assert (await wire.answer(1))["error"]["message"] == "Connection closed"
        assert await wire.ended() == 0
    assert await ghost.list() == []


async def test_calls_that_are_nearly_done_answer_before_the_end(
    environment: dict[str, str],
) -> None:
    async with served(environment) as wire:
        await wire.send(request(1, "nap"))
        await wire.progress(1)  # to make its cave may take longer than the end waits
        await wire.close()
        assert (await wire.answer(1))["result"]["structuredContent"] == {"content": "slept"}
        assert await wire.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_during_calls_answers_or_cancels_each(
    environment: dict[str, str], ghost: Ghost, number: signal.Signals
) -> None:
    async with served(environment) as wire:
        await wire.send(request(1, "hang"), request(2, "nap"))
        await wire.progress(2)
        wire.process.send_signal(number)
        first = await wire.answer(2)
        assert first["result"]["structuredContent"] == {"content": "slept"}
        assert (await wire.answer(1))["error"]["message"] == "Connection closed"
        assert await wire.ended() == 128 + number
    assert await ghost.list() == []


async def test_a_second_signal_ends_it_at_once(environment: dict[str, str], ghost: Ghost) -> None:
    async with served(environment) as wire:
        await wire.send(request(1, "hang"))
        await wire.progress(1)
        while wire.process.returncode is None:  # until the first has been seen
            # terminate() would look first, and take the end from who waits for it.
            with suppress(ProcessLookupError):
                os.kill(wire.process.pid, signal.SIGTERM)
            with anyio.move_on_after(0.05):
                await wire.process.wait()
        # Whoever is told once more while it goes is ended by that: to a shell the two are one.
        assert await wire.ended() in (128 + signal.SIGTERM, -signal.SIGTERM)
    await until(ghost, 0)  # the cave ends by itself


async def test_a_client_that_does_not_read_cannot_hold_it(
    environment: dict[str, str], ghost: Ghost
) -> None:
    async with served(environment) as wire:
        await wire.send(*(request(number, "data", size=200_000) for number in range(1, 21)))
        await wire.send(request(21, "hang"))
        await until(ghost, 1)
        wire.process.terminate()
        assert await wire.ended() == 128 + signal.SIGTERM
    assert await ghost.list() == []


def test_a_client_that_is_gone_ends_it(environment: dict[str, str]) -> None:
    process = subprocess.Popen(ARGV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request(1, "nap")).encode() + b"\n")
        process.stdin.flush()
        assert b"progress" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(WAIT_S) == 0  # with its input still open


def test_files_instead_of_pipes(environment: dict[str, str], tmp_path: Path) -> None:
    asked, answered = tmp_path / "asked", tmp_path / "answered"
    asked.write_text(json.dumps(request(1, "say", content="filed")))
    with asked.open() as source, answered.open("w") as sink:
        subprocess.run(ARGV, stdin=source, stdout=sink, env=environment, check=True, timeout=WAIT_S)
    [message] = map(json.loads, answered.read_text().splitlines())
    assert message["result"]["structuredContent"] == {"content": "filed"}


async def test_a_named_cave_is_used_and_left(environment: dict[str, str], ghost: Ghost) -> None:
    async with await ghost.create(CaveSpec(name="stay")) as cave:
        async with served(environment, "stay") as wire:
            await wire.send(request(1, "run_line", command="echo kept > mark"))
            assert (await wire.answer(1))["result"]["structuredContent"]["exit_code"] == 0
            await wire.close()
            assert await wire.ended() == 0
        assert (await cave.read("mark")).data == b"kept\n"


@pytest.mark.parametrize("closed", [0, 1])
def test_without_standard_streams_it_says_so(environment: dict[str, str], closed: int) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *ARGV],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 10
    assert done.stderr.startswith("ghost: standard input or output is closed\n")


@pytest.mark.parametrize("server", SERVERS)
async def test_each_server_alone(environment: dict[str, str], server: str) -> None:
    """Started as a module, and through the hub: the same tools, under their own names."""
    own = [tool.name for tool in toolset(server).tools]
    through_hub = f"from ghost_hub.stdio import run; raise SystemExit(run(server={server!r}))"
    for arguments in (["-m", f"ghost_servers.{server}"], ["-c", through_hub]):
        params = StdioServerParameters(command=ARGV[0], args=arguments, env=environment)
        async with Client(params) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == own
            assert client.server_info.name == f"ghost-{server}"
            assert client.instructions


def test_what_cannot_start_says_why(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*ARGV, "Not A Name"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ghost: not a cave name: 'Not A Name'\nUse 1 to 40")
