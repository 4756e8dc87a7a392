"""A terminal in a cave over WebSocket, as a page and as wscat use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
import httpx2
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ghost_hub.hub import Hub
from ghost_hub.terminal import MOST, Terminal, Terminals
from ghost_mcp import Cave, Ghost, audit
from tests.serving import Served, serving


@pytest.fixture(scope="module")
def hub(served: Served) -> Iterator[Served]:
    headers = {"Authorization": f"Bearer {served.token}"}
    with httpx2.Client(base_url=served.url, headers=headers, timeout=60) as http:
        http.post("/v1/caves", json={"name": "term"}).raise_for_status()
        yield served
        http.delete("/v1/caves/term").raise_for_status()


def opened(
    hub: Served, query: str = "", token: str | None = None, *, cave: str = "term"
) -> connect:
    url = f"{hub.url.replace('http', 'ws')}/v1/shell/ws?cave={cave}{query}"
    headers = {"Authorization": f"Bearer {token or hub.token}"}
    return connect(url, additional_headers=headers, max_size=None, open_timeout=60)


async def say(socket: ClientConnection, kind: str, data: Any = None) -> None:
    await socket.send(json.dumps({"type": kind, "data": data}))


async def until(socket: ClientConnection, kind: str, text: str = "") -> Any:
    """The data of the next message of a kind; for output, all of it until ``text`` has come."""
    seen = ""
    with anyio.fail_after(60):
        while True:
            message = json.loads(await socket.recv())
            if message["type"] == kind:
                seen += message["data"] if kind == "output" else ""
                if kind != "output":
                    return message["data"]
                if text in seen:
                    return seen


async def test_a_client_that_asks_and_does_not_read_is_hung_up_on(hub: Served) -> None:
    ping = b"\x89\xfd" + bytes(4) + b"p" * 125
    async with opened(hub) as socket:
        await socket.send(
            ['{"type": "pi', "", 'ng", ', '"data": 9}']
        )  # pieces of one message are one
        assert await until(socket, "pong") == 9
        wire = socket.transport
        wire.pause_reading()
        sent = 0
        with anyio.fail_after(60):
            while not wire.is_closing():
                assert sent < 64 << 20
                wire.write(ping * 500)
                sent += len(ping) * 500
                while wire.get_write_buffer_size() > 1 << 18 and not wire.is_closing():
                    await anyio.sleep(0.001)


async def test_type_resize_leave_and_come_back(hub: Served) -> None:
    async with opened(hub) as socket:
        session = await until(socket, "session_id")
        assert len(session) == 32
        await until(socket, "ready")
        await say(socket, "resize", {"cols": 93, "rows": 31})
        await say(socket, "input", "stty size; echo gr''üße; there=still\n")
        assert "31 93" in await until(socket, "output", "grüße\r\n")
        await say(socket, "ping", 7)
        assert await until(socket, "pong") == 7
        for odd in ("{", "[]", '{"type": "resize", "data": {"cols": "x"}}', "[" * 50_000):
            await socket.send(odd)
    async with opened(hub, f"&session={session}") as socket:
        assert await until(socket, "session_id") == session
        await until(socket, "output", "grüße\r\n")
        await say(socket, "input", "echo $there''there; exit 3\n")
        await until(socket, "output", "stillthere")
        assert await until(socket, "exit") == 3
    with pytest.raises(InvalidStatus) as refused:
        async with opened(hub, f"&session={session}"):
            pass
    assert refused.value.response.status_code == 404


async def test_one_types_and_others_look_on(hub: Served) -> None:
    reader = hub.make_token("", "read")
    async with opened(hub) as first:
        session = await until(first, "session_id")
        assert await until(first, "typing") is True
        with pytest.raises(InvalidStatus) as refused:
            async with opened(hub, "", reader):  # which may make none
                pass
        assert refused.value.response.status_code == 403
        there = f"&session={session}"
        async with opened(hub, there) as second, opened(hub, there, reader) as looking:
            assert await until(second, "typing") is False  # told at once, whatever else happens
            assert await until(looking, "typing") is None
            while await until(first, "viewers") != 3:
                pass
            await say(first, "resize", {"cols": 66, "rows": 22})
            while await until(looking, "size") != {"cols": 66, "rows": 22}:
                pass
            await say(looking, "take")
            await say(looking, "input", "echo for''bidden\n")
            await say(second, "input", "echo for''bidden\n")
            await say(second, "ping")
            await until(second, "pong")
            await say(first, "input", "echo al''lowed\n")
            for socket in (first, second, looking):
                assert "forbidden" not in await until(socket, "output", "allowed")
            await say(second, "take")
            assert await until(second, "typing") is True
            await say(second, "input", "echo ta''ken\n")
            await until(looking, "output", "taken")
        await say(first, "input", "exit\n")
        assert await until(first, "exit") == 0


async def test_lines_and_raw_bytes(hub: Served) -> None:
    async with opened(hub, "&mode=line") as socket:
        await socket.send("echo $((6 * 7))abc; exit")
        assert "42abc" in "".join([str(text) async for text in socket])
    assert "terminal" in {line["tool"] for line in audit.read(str(hub.state / "audit"))}
    async with opened(hub, "&mode=raw") as socket:
        await socket.send(b"printf '\\377\\376'; exit\n")
        assert b"\xff\xfe" in b"".join(
            [bytes(data) async for data in socket if isinstance(data, bytes)]
        )


async def test_a_letter_may_come_in_pieces(hub: Served) -> None:
    async with opened(hub) as socket:
        await say(
            socket, "input", "stty -echo; printf 'gr\\303'; sleep 0.2; printf '\\274n'; exit\n"
        )
        assert "gr\N{REPLACEMENT CHARACTER}" not in await until(socket, "output", "grün")
    async with opened(hub, "&mode=raw") as socket:
        for piece in (b"printf '\\342\\202'; echo gr\xc3", b"\xbcn | wc -m; exit\n"):
            await socket.send(piece)
        assert b"5\r\n" in b"".join(
            [bytes(data) async for data in socket if isinstance(data, bytes)]
        )


async def test_a_flood_to_a_slow_reader_is_held_back(hub: Served) -> None:
    process = psutil.Process(hub.process.pid)
    async with opened(hub, "&mode=raw") as socket:
        await socket.send(b"stty raw -echo; head -c 100000000 /dev/zero | tr '\\0' x; exit\n")
        await socket.recv()
        before = process.memory_info().rss
        await anyio.sleep(1)  # it could have written all of it meanwhile
        assert process.memory_info().rss - before < 24 << 20
        size = most = 0
        async for data in socket:
            size += data.count(b"x") if isinstance(data, bytes) else 0
            most = max(most, process.memory_info().rss)
        assert size >= 100_000_000
        assert most - before < 24 << 20


async def test_a_page_that_draws_slowly_is_not_run_over(hub: Served) -> None:
    async with opened(hub) as socket:
        await say(socket, "ack", 0)
        await say(socket, "input", "stty raw -echo; head -c 3000000 /dev/zero | tr '\\0' x; exit\n")
        taken = size = 0
        with anyio.fail_after(60):
            while taken < 16:
                if (message := json.loads(await socket.recv()))["type"] == "output":
                    taken, size = taken + 1, size + message["data"].count("x")
        with anyio.move_on_after(0.3):
            while message := json.loads(await socket.recv()):
                assert message["type"] != "output"
        await say(socket, "ack", taken)
        with anyio.fail_after(60):
            async for text in socket:
                if (message := json.loads(text))["type"] == "output":
                    taken, size = taken + 1, size + message["data"].count("x")
                    with suppress(ConnectionClosed):  # its last is not waited for
                        await say(socket, "ack", taken)
        assert size >= 3_000_000


async def test_a_port_of_its_own_for_wscat() -> None:
    with serving("--backend", "local", config="terminal_port: 0\n") as hub:
        port = next(
            one.laddr.port
            for one in psutil.Process(hub.process.pid).net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr.port != hub.port
        )
        url = f"ws://127.0.0.1:{port}"
        with pytest.raises(InvalidStatus):
            await connect(url, open_timeout=60)
        async with connect(
            url, additional_headers={"Authorization": f"Bearer {hub.token}"}, open_timeout=60
        ) as socket:
            await socket.send("echo $((6 * 7))abc; exit")
            assert "42abc" in "".join([str(text) async for text in socket])


async def test_t5_no_more_terminals_than_there_may_be_however_many_ask_at_once(hub: Served) -> None:
    statuses: list[int] = []
    async with hub.client() as http, AsyncExitStack() as open_until_here:
        (await http.post("/v1/caves", json={"name": "crowd"})).raise_for_status()

        async def ask() -> None:
            try:
                await open_until_here.enter_async_context(opened(hub, cave="crowd"))
            except InvalidStatus as refused:
                statuses.append(refused.response.status_code)
            else:
                statuses.append(101)

        async with anyio.create_task_group() as tasks:
            for _ in range(MOST + 4):
                tasks.start_soon(ask)
        assert sorted(statuses) == [101] * MOST + [413] * 4
        (await http.delete("/v1/caves/crowd")).raise_for_status()


async def test_a_word_to_a_shell_that_is_just_ending_harms_nobody(ghost: Ghost, cave: Cave) -> None:
    terminal = Terminal("session")
    async with cave.process(["cat"], pty=terminal.size) as terminal.process:
        await ghost.drop_link(cave.id)
        await terminal.type(b"x")
        await terminal.resize(30, 90)
    assert terminal.size == (24, 80)


async def test_what_nobody_foresaw_ends_one_terminal_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Odd:
        id = "0123456789abcdef"

        def process(self, *args: Any, **how: Any) -> Any:
            raise ZeroDivisionError("of this test")

    terminals = Terminals(Hub())
    async with terminals.run():
        made = await terminals._begin(Odd())  # type: ignore[arg-type]
        with anyio.fail_after(60):
            while terminals._open or not made.ended:
                await anyio.sleep(0.01)
        again = await terminals._begin(Odd())  # type: ignore[arg-type]
        with anyio.fail_after(60):
            while not again.ended:
                await anyio.sleep(0.01)
    assert caplog.text.count("ZeroDivisionError: of this test") >= 2


async def test_t6_a_terminal_wants_more_than_a_cookie(hub: Served) -> None:
    url = f"{hub.url.replace('http', 'ws')}/v1/shell/ws"
    cookie = {"Cookie": f"ghost-token-{hub.port}={hub.token}"}
    stranger = {"Authorization": f"Bearer {hub.make_token('stranger')}"}
    for query, headers, origin, status in (
        ("", {}, None, 401),
        ("", cookie, None, 401),
        ("", cookie, "http://evil.example", 403),
        ("", cookie, "http://127.0.0.1:1", 403),
        ("?cave=term", stranger, None, 404),
        ("?mode=odd", cookie, hub.url, 400),
    ):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(
                url + query,
                additional_headers=headers,
                origin=origin,  # type: ignore[arg-type]
                open_timeout=60,
            ):
                pass
        assert refused.value.response.status_code == status
