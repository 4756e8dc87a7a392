"""The preview proxy in front of a real server in a real cave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.serving import Served

UPSTREAM = (Path(__file__).parent / "upstream.py").read_text()
PREFIX = "/caves/web/proxy/8000"


@pytest.fixture(scope="module")
def web(served: Served) -> Iterator[Served]:
    """A hub with a cave ``web`` whose port 8000 answers."""
    headers = {"Authorization": f"Bearer {served.token}"}
    with httpx2.Client(base_url=served.url, headers=headers, timeout=60) as http:
        http.post("/v1/caves", json={"name": "web"}).raise_for_status()
        http.post(
            "/v1/file/write", json={"cave": "web", "path": "up.py", "content": UPSTREAM}
        ).raise_for_status()
        start(http, 8000)
        yield served
        http.delete("/v1/caves/web").raise_for_status()


def start(http: httpx2.Client, port: int, late_s: float = 0) -> None:
    line = f"python3 up.py {port} {late_s}"
    body = {"cave": "web", "command": line, "background": True}
    http.post("/v1/shell/exec", json=body).raise_for_status()


@pytest.fixture
async def http(web: Served) -> AsyncIterator[httpx2.AsyncClient]:
    async with web.client() as client:
        yield client


async def test_a_request_arrives_as_on_its_own_machine(
    web: Served, http: httpx2.AsyncClient
) -> None:
    answer = await http.get(f"{PREFIX}/a%2Fb//c?x=%20&y", headers={"X-Mine": "1"})
    told = answer.json()
    headers = dict(told["headers"])
    assert told["path"] == "/a%2Fb//c?x=%20&y"
    assert headers["host"] == "localhost:8000"
    assert headers["x-forwarded-host"] == f"127.0.0.1:{web.port}"
    assert headers["x-forwarded-prefix"] == PREFIX
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-mine"] == "1"
    told = (await http.get("/caves/web/absproxy/8000/a/b")).json()
    assert told["path"] == "/caves/web/absproxy/8000/a/b"
    answer = await http.get(PREFIX, follow_redirects=True)
    assert answer.json()["path"] == "/"


async def test_head_redirects_and_bodies(http: httpx2.AsyncClient) -> None:
    answer = await http.head(f"{PREFIX}/bytes/1000000")
    assert (answer.headers["content-length"], answer.content) == ("1000000", b"")
    answer = await http.get(f"{PREFIX}/redirect")
    assert answer.headers["location"] == f"{PREFIX}/there?x=1"
    data = bytes(range(256)) * (1 << 16)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]

    for given in (data, pieces()):
        told = (await http.post(f"{PREFIX}/", content=given)).json()
        assert told["size"] == len(data)
        assert told["sha256"] == hashlib.sha256(data).hexdigest()


async def test_events_come_as_they_happen(http: httpx2.AsyncClient) -> None:
    """Each is here before there is a next one."""
    came = []
    with anyio.fail_after(60):
        async with http.stream("GET", f"{PREFIX}/events") as answer:
            async for line in answer.aiter_lines():
                if line:
                    came.append(line)
                    (await http.get(f"{PREFIX}/seen")).raise_for_status()
    assert came == ["data: 0", "data: 1", "data: 2"]


async def test_a_websocket_is_carried_both_ways(web: Served) -> None:
    url = web.url.replace("http", "ws") + f"{PREFIX}/ws?x=1"
    headers = {"Authorization": f"Bearer {web.token}"}
    origin = web.url
    async with connect(
        url,
        additional_headers=headers,
        origin=origin,  # type: ignore[arg-type]
        max_size=None,
        open_timeout=60,
    ) as socket:
        seen = dict(json.loads(await socket.recv()))
        assert seen["origin"] == "http://localhost:8000"
        assert seen["host"] == "localhost:8000"
        assert "authorization" not in seen
        for data in ("grüße", b"\0\xff", "", b"x" * 5_000_000):
            await socket.send(data)
            assert await socket.recv() == data
        await socket.close(4321)
    async with connect(url, additional_headers=headers, open_timeout=60) as socket:
        await socket.recv()
        with pytest.raises(ConnectionClosed):
            await socket.send(b"x" * (17 << 20))
            await socket.recv()


async def test_a_server_that_boots_is_waited_for(web: Served, http: httpx2.AsyncClient) -> None:
    body = {"cave": "web", "command": "python3 up.py 8123 1.5", "background": True}
    (await http.post("/v1/shell/exec", json=body)).raise_for_status()
    assert (await http.get("/caves/web/proxy/8123/")).status_code == 200


async def test_one_gigabyte_is_never_held(web: Served, http: httpx2.AsyncClient) -> None:
    hub = psutil.Process(web.process.pid)
    await http.get(f"{PREFIX}/bytes/10000000")
    before, most, size = hub.memory_info().rss, 0, 0
    async with http.stream("GET", f"{PREFIX}/bytes/{1 << 28}") as answer:
        async for piece in answer.aiter_bytes():
            size += len(piece)
            if size % (1 << 22) < len(piece):
                most = max(most, hub.memory_info().rss)
            if size < 1 << 21:
                await anyio.sleep(0.01)  # a reader that is slow at first
    assert size == 1 << 28
    assert most - before < 16 << 20


@pytest.mark.parametrize("path", ["/close", "/headers", "/odd"])
async def test_p4_a_bad_upstream_is_a_bad_gateway(http: httpx2.AsyncClient, path: str) -> None:
    answer = await http.get(f"{PREFIX}{path}")
    assert (answer.status_code, answer.json()["code"]) == (502, "bad_gateway")


@pytest.mark.parametrize(("path", "body"), [("/sized-twice", "whole"), ("/sized-nothing", "")])
async def test_p4_an_answer_has_the_size_that_it_has(
    http: httpx2.AsyncClient, path: str, body: str
) -> None:
    """Whatever else it says: who reads on would take what follows for another answer."""
    answer = await http.get(f"{PREFIX}{path}")
    assert answer.text == body
    assert "content-length" not in answer.headers


async def test_p3_what_a_program_says_of_itself_stays_with_it(http: httpx2.AsyncClient) -> None:
    answer = await http.get(f"{PREFIX}/liar")
    cookies = answer.headers.get_list("set-cookie")
    assert cookies == [f"mine=1; HttpOnly; Path={PREFIX}/app"]
    for name in ("strict-transport-security", "clear-site-data", "x-hop", "keep-alive"):
        assert name not in answer.headers
    # A browser would ask the person in the hub's name, and then tell the hub instead of its cookie.
    for name in ("access-control-allow-origin", "www-authenticate", "accept-ch"):
        assert name not in answer.headers
    # What stands before the hub, an nginx say, would answer with what it has itself.
    assert not {"x-accel-redirect", "x-sendfile"} & set(answer.headers)
    assert answer.headers["content-security-policy"].startswith("sandbox ")


async def test_p3_nothing_of_the_hub_reaches_a_program(
    web: Served, http: httpx2.AsyncClient
) -> None:
    sent = {
        "Cookie": f"a=1; ghost-token-{web.port}={web.token}; __Host-ghost-x=2; b=3",
        "Ghost-Cave": "web",
        "Proxy-Authorization": "Basic x",
        "Connection": "X-Drop, close",
        "X-Drop": "1",
        "X-Forwarded-For": "6.6.6.6",
        "Forwarded": "for=6.6.6.6",
    }
    told = (await http.get(f"{PREFIX}/", headers=sent)).json()
    seen: dict[str, Any] = dict(told["headers"])
    assert seen["cookie"] == "a=1; b=3"
    assert web.token not in json.dumps(told)
    assert not {"authorization", "ghost-cave", "proxy-authorization", "x-drop", "forwarded"} & set(
        seen
    )
    assert "6.6.6.6" not in json.dumps(told)
    cookie = {"Cookie": f"ghost-token-{web.port}={web.token}; other-port=1"}
    async with httpx2.AsyncClient(base_url=web.url, headers=cookie, timeout=60) as browser:
        seen = dict((await browser.get(f"{PREFIX}/")).json()["headers"])
        assert "cookie" not in seen


async def test_p2_only_that_cave_is_dialled(web: Served) -> None:
    stranger = web.make_token("stranger")
    paths = ("/caves/web/proxy/{}/", "/caves/web/absproxy/{}/")
    odd = (
        "0",
        "65536",
        "08000",
        "8000@evil",
        "+8000",
        "8000%0d%0aX",
        "%2e%2e",
        "localhost:80",
        "٨٠٠٠",
    )
    async with web.client() as http, web.client(stranger) as theirs:
        for path in paths:
            assert (await theirs.get(path.format("8000"))).status_code == 404
            for word in odd:
                assert (await http.get(path.format(word))).status_code == 404, word
        for cave in ("nobody", "WEB", "web%00", "a%2Fproxy%2F8000", "..%2fweb", "%77eb%20"):
            assert (await http.get(f"/caves/{cave}/proxy/8000/")).status_code == 404, cave
        for path in ("/x//evil.example/", "/@evil.example", "/%2e%2e/x"):
            told = (await http.get(PREFIX + path)).json()
            assert told.get("path") == path, told
            assert dict(told["headers"])["host"] == "localhost:8000"
        assert (await http.get(f"{PREFIX}/a%0d%0aX-Y:%201")).status_code == 404
        reader = web.make_token("", "read")
        async with web.client(reader) as looking:
            assert (await looking.get(f"{PREFIX}/")).status_code == 403


async def test_t6_a_foreign_page_opens_no_websocket(web: Served) -> None:
    ask = (
        f"GET {PREFIX}/ws HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    cookie = f"Cookie: ghost-token-{web.port}={web.token}\r\n"
    own = f"Origin: http://127.0.0.1:{web.port}\r\n"
    for headers, status in (
        ("", b"401"),
        (cookie, b"401"),
        (cookie + "Origin: http://evil.example\r\n", b"403"),
        (cookie + "Origin: http://127.0.0.1:1\r\n", b"403"),
        (cookie + "Origin: null\r\n", b"403"),
        (cookie + own + "Sec-Fetch-Site: same-site\r\n", b"401"),
        (cookie + own, b"101"),
    ):
        async with await anyio.connect_tcp("127.0.0.1", web.port) as stream:
            await stream.send(f"{ask}{headers}\r\n".encode())
            assert (await stream.receive()).split()[1] == status, headers
