"""The proxy over real sockets: what passes through it whole, what it refuses, and what hostile peers get."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from ghost_mcp.egress import dial, gateway, http, socks
from ghost_mcp.egress import service as services
from ghost_mcp.egress.gateway import Gateway
from ghost_mcp.egress.ledger import Ledger
from ghost_mcp.egress.service import current_policy, serve
from ghost_mcp.spec import NetworkPolicy

PATIENCE_S = 30.0
Handler = Callable[[SocketStream], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    """A server of the tests' own: its port."""

    async def guarded(stream: SocketStream) -> None:
        async with stream:
            try:
                await handler(stream)
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                return

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, guarded)
        yield int(listener.extra(SocketAttribute.local_port))  # noqa: S610 - no database
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def proxy(folder: Path, *rules: str, **bounds: Any) -> AsyncIterator[tuple[int, Ledger]]:
    """A cave's proxy on a port of its own, and the record it keeps."""
    mode = bounds.pop("mode", "allow")
    network = NetworkPolicy(mode=mode, allow=rules, **bounds)
    ledger = Ledger(folder)
    ledger.prepare()
    made = Gateway("dev", network, current_policy(network, ledger), ledger)

    async def handler(stream: SocketStream) -> None:
        await serve(made, stream)

    async with listening(handler) as port:
        yield port, ledger


async def all_of(stream: SocketStream) -> bytes:
    data = b""
    try:
        async for piece in stream:
            data += piece
    except anyio.BrokenResourceError:
        pass
    return data


async def say(port: int, words: bytes) -> bytes:
    """Send, end our side, and take all that comes."""
    with anyio.fail_after(PATIENCE_S):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(words)
            await stream.send_eof()
            return await all_of(stream)


async def steps(ledger: Ledger, count: int) -> list[dict[str, Any]]:
    """What is written down, once there is so much: the last word on a connection comes after its end."""
    with anyio.fail_after(PATIENCE_S):
        while len(ledger.records()) < count:
            await anyio.sleep(0.01)
    return ledger.records()


def get(url: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    host = url.partition("://")[2].partition("/")[0]
    lines = [f"{method} {url} HTTP/{version}", f"Host: {host}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


async def head_of(stream: SocketStream) -> tuple[bytes, bytes]:
    """A message's head, and what of its body came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive()
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def answers(answer: bytes, seen: list[bytes] | None = None) -> Handler:
    """A server that reads a head and answers."""

    async def handler(stream: SocketStream) -> None:
        head, _ = await head_of(stream)
        if seen is not None:
            seen.append(head)
        await stream.send(answer)

    return handler


HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "egress"


async def test_requests_for_http_addresses(folder: Path) -> None:
    seen: list[bytes] = []
    async with (
        listening(answers(HELLO, seen)) as port,
        proxy(folder, "127.0.0.1:*") as (proxied, ledger),
    ):
        url = f"http://127.0.0.1:{port}"
        words = get(
            f"{url}/a?b", "Proxy-Authorization: Basic eDp5", "Connection: x-mine", "X-Mine: 1"
        )
        said = await say(proxied, words + get(url, "Proxy-Connection: keep-alive", "X-Kept: 2"))
        assert said.count(b"HTTP/1.1 200 OK") == 2
        assert said.count(b"hello") == 2
        first, second = (head.decode().lower() for head in seen)
        assert first.startswith("get /a?b http/1.1\r\n")
        assert second.startswith("get / http/1.1\r\n")
        assert f"host: 127.0.0.1:{port}" in first
        for hidden in ("proxy-", "x-mine"):
            assert hidden not in first + second
        assert "x-kept: 2" in second
        assert [step["event"] for step in await steps(ledger, 4)] == ["open", "closed"] * 2
        assert {step["how"] for step in ledger.records()} == {"GET"}


@pytest.mark.parametrize(
    ("answer", "version", "shown"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", "1.1", b"chunked"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", "1.0", b"until the end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "1.1", b"0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "1.0", b"\r\n\r\nabcde"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "1.1", b"204 No Content"),
        (b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", "1.1", b"304 Not Modified"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HELLO, "1.1", b"103 Early Hints"),
    ],
)  # fmt: skip
async def test_every_framing_of_an_answer(
    folder: Path, answer: bytes, version: str, shown: bytes
) -> None:
    async with (
        listening(answers(answer)) as port,
        proxy(folder, "127.0.0.1:*") as (proxied, _),
    ):
        said = await say(proxied, get(f"http://127.0.0.1:{port}/", version=version))
        assert shown in said
        if b"abc" in answer:
            assert said.replace(b"\r\n", b"").count(b"abc") == 1


async def test_an_answer_to_head_has_no_body(folder: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    async with listening(answers(answer)) as port, proxy(folder, "127.0.0.1:*") as (proxied, _):
        words = get(f"http://127.0.0.1:{port}/", method="HEAD")
        said = await say(proxied, words * 2)
        assert said.lower().count(b"content-length: 5") == 2
        assert said.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("chunked", [False, True])
async def test_large_bodies_both_ways_at_once(folder: Path, chunked: bool) -> None:
    """The server answers each piece as it comes: whoever waits for the whole request first would hang."""
    size = 12 << 20

    async def echo(stream: SocketStream) -> None:
        head, rest = await head_of(stream)
        assert (b"chunked" in head.lower()) == chunked
        assert head.lower().count(b"content-length") == (not chunked)
        await stream.send(b"HTTP/1.1 200 OK\r\n\r\n" + rest)
        count, last = len(rest), rest[-7:]
        while last != b"\r\n0\r\n\r\n" if chunked else count < size:
            piece = await stream.receive()
            await stream.send(piece)
            count, last = count + len(piece), (last + piece)[-7:]

    data = os.urandom(size)
    async with listening(echo) as port, proxy(folder, "127.0.0.1:*") as (proxied, _):
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
        words = get(f"http://127.0.0.1:{port}/", framing, "Connection: close", method="POST")
        body = data
        if chunked:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, data)
        with anyio.fail_after(PATIENCE_S):
            async with (
                await anyio.connect_tcp("127.0.0.1", proxied) as stream,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(stream.send, words + body)
                came = await all_of(stream)
        assert len(came) > size


async def test_a_tunnel_carries_bytes_as_they_are_and_ends_each_way_by_itself(folder: Path) -> None:
    async def summed(stream: SocketStream) -> None:
        digest = hashlib.sha256()
        async for piece in stream:
            digest.update(piece)
        await stream.send(digest.digest())

    data = os.urandom(8 << 20)
    async with listening(summed) as port, proxy(folder, "127.0.0.1:*") as (proxied, ledger):
        asked = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        said = await say(proxied, asked + data)  # the data comes along with the head
        head, _, rest = said.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert rest == hashlib.sha256(data).digest()
        closed = (await steps(ledger, 2))[-1]
        assert (closed["sent_bytes"], closed["received_bytes"]) == (len(data), 32)


async def test_socks(folder: Path) -> None:
    async def echo(stream: SocketStream) -> None:
        async for piece in stream:
            await stream.send(piece)

    async with listening(echo) as port, proxy(folder, "127.0.0.1:*") as (proxied, _):
        number = port.to_bytes(2, "big")
        greeting = b"\x05\x02\x02\x00"
        ok = b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6)
        for address in (
            b"\x01\x7f\x00\x00\x01",
            b"\x03\x09127.0.0.1",
            b"\x03\x062130706433"[:1] + b"\x0a2130706433",
        ):
            assert (
                await say(proxied, greeting + b"\x05\x01\x00" + address + number + b"hi")
                == ok + b"hi"
            )
        for request, code in (
            (b"\x05\x01\x00\x03\x09a.example" + number, 2),
            (b"\x05\x01\x00\x03\x01/" + number, 8),
            (b"\x05\x02\x00\x01\x7f\x00\x00\x01" + number, 7),
            (b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x01", 4),
            (b"\x05\x01\x00\x04" + bytes(10) + b"\xff\xff\xa9\xfe\xa9\xfe\x00\x50", 2),
        ):
            assert (await say(proxied, greeting + request))[3] == code, request
        assert await say(proxied, b"\x05\x01\x02") == b"\x05\xff"
        assert await say(proxied, b"\x05") == b""


# --- refusals -------------------------------------------------------------------------------------


async def test_a_refusal_is_data_and_nothing_was_sent(folder: Path) -> None:
    seen: list[bytes] = []
    async with (
        listening(answers(HELLO, seen)) as port,
        proxy(folder, "a.example") as (proxied, ledger),
    ):
        for words in (
            get(f"http://127.0.0.1:{port}/secret"),
            f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        ):
            said = await say(proxied, words)
            head, _, body = said.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 403 Refused by Ghost: 127.0.0.1 is ")
            assert json.loads(body) == {
                "blocked": f"127.0.0.1:{port}",
                "rule": "not public",
                "why": "127.0.0.1 is no public address, and not on this cave's list by number",
                "how_to_allow": f"On the machine that runs Ghost: ghost allow dev 127.0.0.1:{port}",
            }
        said = await say(proxied, get(f"http://127.0.0.1:{port}/", method="HEAD"))
        assert said.startswith(b"HTTP/1.1 403 ")
        assert said.endswith(b"\r\n\r\n")  # an answer to HEAD has no body
        assert seen == []
        first = ledger.records()[0]
        assert (first["event"], first["blocked"]) == ("refused", f"127.0.0.1:{port}")
        assert "secret" not in json.dumps(ledger.records())


@pytest.mark.parametrize(
    ("mode", "host"),
    [
        *(("open", host) for host in ("127.0.0.1", "2130706433", "0x7f000001", "0177.1", "[::1]", "localhost")),
        *(("open", host) for host in ("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "0", "127.1.")),
        *(("open", host) for host in ("169.254.169.254", "[fd00:ec2::254]", "[2002:7f00:1::]", "１２７.0.0.1")),
        ("allow", "localhost"),
    ],
)  # fmt: skip
async def test_the_host_in_every_disguise(folder: Path, mode: str, host: str) -> None:
    seen: list[bytes] = []
    rules = ("localhost:*",) if mode == "allow" else ()
    async with (
        listening(answers(HELLO, seen)) as port,
        proxy(folder, *rules, mode=mode) as (proxied, _),
    ):
        words = f"CONNECT {host}:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        said = await say(proxied, words)
        assert not said.startswith(b"HTTP/1.1 200")
        assert seen == []


async def test_the_hosts_own_public_address_is_no_way_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "is_own", lambda address: str(address) == "93.184.215.14")
    async with proxy(folder, mode="open") as (proxied, _):
        said = await say(proxied, get("http://93.184.215.14/"))
        assert b"an address of this host" in said


async def test_a_name_that_changes_its_address_is_checked_each_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    asked: list[str] = []

    def rebinding(name: str, port: int) -> list[str]:
        asked.append(name)
        return ["93.184.215.14"] if len(asked) % 2 else ["127.0.0.1"]

    tried: list[str] = []

    async def connect(host: str, port: int) -> SocketStream:
        tried.append(host)
        raise OSError("no route in this test")

    monkeypatch.setattr(dial, "look_up", rebinding)
    async with (
        listening(answers(HELLO, seen)) as port,
        proxy(folder, f"evil.example:{port}") as (proxied, _),
    ):
        monkeypatch.setattr(dial, "connect", connect)
        for turn in range(4):
            with anyio.fail_after(PATIENCE_S):
                async with await anyio.connect_tcp("127.0.0.1", proxied) as stream:
                    await stream.send(get(f"http://evil.example:{port}/"))
                    said = await all_of(stream)
            assert said.startswith(b"HTTP/1.1 403" if turn % 2 else b"HTTP/1.1 502")
        assert asked == ["evil.example"] * 4
        assert tried == ["93.184.215.14"] * 2  # the address that was checked, not the name again
        assert seen == []


async def test_a_redirect_meets_the_policy_again(folder: Path) -> None:
    inner: list[bytes] = []
    async with listening(answers(HELLO, inner)) as hidden:
        answer = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{hidden}/\r\nContent-Length: 0\r\n\r\n"
        async with (
            listening(answers(answer.encode())) as port,
            proxy(folder, f"127.0.0.1:{port}") as (proxied, _),
        ):
            both = get(f"http://127.0.0.1:{port}/") + get(f"http://127.0.0.1:{hidden}/")
            said = await say(proxied, both)
            assert b"302 Found" in said
            assert b"403 Refused by Ghost" in said
            assert inner == []


async def test_the_next_address_is_tried_when_one_does_not_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = socket.socket()
    closed.bind(("127.0.0.2", 0))
    monkeypatch.setattr(dial, "look_up", lambda name, port: ["::1", "127.0.0.2", "127.0.0.1"])
    async with (
        listening(answers(HELLO)) as port,
        proxy(folder, "two.example:*", "127.0.0.0/8:*", "[::1]:*") as (proxied, ledger),
    ):
        assert b"hello" in await say(proxied, get(f"http://two.example:{port}/"))
        assert ledger.records()[0]["address"] == "127.0.0.1"
    closed.close()


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET https://a.example/ HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET file:///etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET http://u:p@a.example/ HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET http://a.example:99999/ HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET http://[::1%25lo]/ HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET http://a.example\\@b.example/ HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"CONNECT a.example HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"CONNECT a.example:0 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"CONNECT a.example:443/ HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"CONNECT :443 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"CONNECT a.example:443 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", b"400"),
        (b"GET http://a.example/ HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000, b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
    ],
    ids=lambda value: ascii(value)[:50],
)
async def test_bad_requests_are_told_so(folder: Path, words: bytes, status: bytes) -> None:
    async with proxy(folder, "a.example") as (proxied, ledger):
        said = await say(proxied, words)
        assert said.split()[1] == status, said[:300]
        assert not any(step["event"] == "open" for step in ledger.records())


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"", b"502"),
        (b"SSH-2.0-OpenSSH\r\n", b"502"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, b"502"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"502"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", b"200"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"200"),
    ],
    ids=lambda value: ascii(value)[:50],
)
async def test_bad_servers_hurt_only_their_connection(
    folder: Path, answer: bytes, status: bytes
) -> None:
    async with (
        listening(answers(answer)) as port,
        listening(answers(HELLO)) as good,
        proxy(folder, "127.0.0.1:*") as (proxied, ledger),
    ):
        said = await say(proxied, get(f"http://127.0.0.1:{port}/"))
        assert said.split()[1] == status, said[:300]
        assert not said.endswith(b"0\r\n\r\n")
        assert b"hello" in await say(proxied, get(f"http://127.0.0.1:{good}/"))
        events = [step["event"] for step in await steps(ledger, 4)]
        assert events.count("open") == events.count("closed") == 2


async def test_names_that_cannot_be_looked_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    monkeypatch.setattr(dial, "look_up", unknown)
    async with proxy(folder, "a.example") as (proxied, ledger):
        said = await say(proxied, get("http://a.example/"))
        assert said.startswith(b"HTTP/1.1 502 Ghost: the name a.example could not be looked up")
        assert (await steps(ledger, 1))[0]["event"] == "failed"
        monkeypatch.setattr(dial, "LOOKUP_S", 0.05)
        monkeypatch.setattr(dial, "look_up", lambda name, port: time.sleep(0.5) or ["127.0.0.1"])
        said = await say(proxied, get("http://a.example/"))
        assert said.startswith(b"HTTP/1.1 504 ")


async def test_slow_peers_are_let_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        *((http, "HEAD_S"), (services, "FIRST_S"), (services, "LINGER_S"), (gateway, "IDLE_S")),
        *((http, "IDLE_S"), (socks, "HEAD_S")),
    ):
        monkeypatch.setattr(module, name, 0.2)

    async def silent(stream: SocketStream) -> None:
        await all_of(stream)

    async with listening(silent) as port, proxy(folder, "127.0.0.1:*") as (proxied, ledger):
        for words, begins in (
            (b"", b""),
            (b"GET http://127", b""),
            (b"\x05", b""),
            (get(f"http://127.0.0.1:{port}/"), b"HTTP/1.1 504"),
            (f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), b"HTTP/1.1 200"),
        ):
            with anyio.fail_after(PATIENCE_S):
                async with await anyio.connect_tcp("127.0.0.1", proxied) as stream:
                    if words:
                        await stream.send(words)
                    assert (await all_of(stream)).startswith(begins)
        assert "nothing passed" in (await steps(ledger, 4))[-1]["why"]


# --- bounds ---------------------------------------------------------------------------------------


async def test_a_reader_that_does_not_read_holds_the_sender(folder: Path) -> None:
    sent = [0]

    async def flood(stream: SocketStream) -> None:
        await head_of(stream)
        await stream.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await stream.send(bytes(1 << 16))
            sent[0] += 1 << 16

    async with (
        listening(flood) as port,
        proxy(folder, "127.0.0.1:*") as (proxied, _),
        await anyio.connect_tcp("127.0.0.1", proxied) as stream,
    ):
        await stream.send(get(f"http://127.0.0.1:{port}/"))
        await stream.receive()
        before = -1
        with anyio.fail_after(PATIENCE_S):
            while sent[0] != before:
                before = sent[0]
                await anyio.sleep(0.3)
        assert sent[0] < 48 << 20  # the kernel's own buffers, and little more


async def test_connections_at_once_are_bounded(folder: Path) -> None:
    async def hold(stream: SocketStream) -> None:
        await all_of(stream)

    async with (
        listening(hold) as port,
        proxy(folder, "127.0.0.1:*", connections=2) as (proxied, _),
    ):
        asked = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        held = []
        for _ in range(2):
            stream = await anyio.connect_tcp("127.0.0.1", proxied)
            await stream.send(asked)
            assert (await stream.receive()).startswith(b"HTTP/1.1 200")
            held.append(stream)
        assert b"502 Ghost: the cave has 2 connections open" in await say(proxied, asked)
        for stream in held:
            await stream.aclose()
        with anyio.fail_after(PATIENCE_S):
            while not (await say(proxied, asked)).startswith(b"HTTP/1.1 200"):
                await anyio.sleep(0.05)


async def test_bytes_and_rate_are_bounded(folder: Path) -> None:
    size = 1 << 20

    async def give(stream: SocketStream) -> None:
        await head_of(stream)
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        await stream.send_eof()
        await all_of(stream)

    async with listening(give) as port:
        url = f"http://127.0.0.1:{port}/"
        async with proxy(folder, "127.0.0.1:*", bytes_per_s=size) as (proxied, _):
            began = time.monotonic()
            assert len(await say(proxied, get(url))) > size
            assert 0.5 < time.monotonic() - began < PATIENCE_S
        async with proxy(folder, "127.0.0.1:*", total_bytes=size * 3 // 2) as (proxied, ledger):
            assert len(await say(proxied, get(url))) > size
            assert len(await say(proxied, get(url))) < size
            assert "as many bytes as it may" in (await steps(ledger, 4))[-1]["why"]
