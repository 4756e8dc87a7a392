"""T1 to T5: who may speak to a served hub, on every route it has. The routes are read off the application itself."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.routing import Mount, Route, WebSocketRoute

from ghost_hub.app import build_app
from ghost_hub.hub import Hub
from ghost_hub.settings import HubSettings
from ghost_hub.tokens import Tokens
from tests.serving import Served, serving


def _routes() -> list[tuple[str, str]]:
    """Method and address of every route, with something in the place of each parameter."""
    guard: Any = build_app(Hub(), HubSettings(), None)
    found = []
    for route in guard._app.routes:
        assert isinstance(route, Route | Mount | WebSocketRoute), (
            f"a kind of route that these tests do not know: {route}"
        )
        path = re.sub(r"\{[^}]+\}", "x", route.path)
        methods = sorted(route.methods or ()) if isinstance(route, Route) else []
        found += [
            (method, path) for method in methods or ["GET", "POST", "DELETE"] if method != "HEAD"
        ]
    return found


ROUTES = _routes()
OPEN = [("GET", "/health"), ("GET", "/ready")]
EVIL_HOSTS = (
    *("evil.example", "127.0.0.1.evil.example", "localhost.", "localhost:", "127.0.0.1:8000:1"),
    *(
        "127.0.0.1@evil.example",
        "[::1].evil.example",
        "2130706433",
        "0.0.0.0",
        "",
        "LOCALHOST.EVIL",
    ),
)
EVIL_ORIGINS = (
    *("http://evil.example", "null", "file://", "http://localhost", "http://127.0.0.1:1"),
    *("https://127.0.0.1.evil.example", "http://127.0.0.1@evil.example", "chrome-extension://abc"),
)


def test_the_routes_are_found() -> None:
    assert {"/mcp", "/sse", "/messages/", "/caves/x/mcp", "/v1/shell/exec", "/metrics"} <= {
        p for _, p in ROUTES
    }
    assert len(ROUTES) > 45


# --- T1 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_t1_host_and_origin_on_every_route(served: Served, method: str, path: str) -> None:
    async with served.client() as http:
        for host in EVIL_HOSTS:
            headers = {"Host": host, "X-Forwarded-Host": "127.0.0.1"}
            answer = await http.request(method, path, headers=headers)
            assert answer.status_code in (421, 400), (
                host
            )  # an empty one is refused by the parser already
            assert "ghost_" not in answer.text
        for origin in EVIL_ORIGINS:
            answer = await http.request(method, path, headers={"Origin": origin})
            assert (answer.status_code, answer.json()["code"]) == (403, "wrong_origin"), origin


async def test_t1_our_own_names_are_answered(served: Served) -> None:
    async with served.client() as http:
        for host in (
            f"127.0.0.1:{served.port}",
            f"localhost:{served.port}",
            "LOCALHOST",
            "[::1]:99",
        ):
            assert (await http.get("/version", headers={"Host": host})).status_code == 200
        for host in (f"127.0.0.1:{served.port}", f"localhost:{served.port}"):
            headers = {"Host": host, "Origin": f"http://{host}"}
            assert (await http.get("/version", headers=headers)).status_code == 200


# --- T2 ------------------------------------------------------------------------------------------


def _serve(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ghost_mcp.cli", "serve", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "ghost.example"])
def test_t2_without_tokens_the_hub_stays_on_loopback(host: str) -> None:
    done = _serve("--no-auth", "--host", host, "--port", "0")
    assert done.returncode == 2
    assert "loopback" in done.stderr


def test_t2_the_default_is_loopback(served: Served) -> None:
    listening = [
        one.laddr.ip
        for one in psutil.Process(served.process.pid).net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_t2_tls(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert, secret = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(made.public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with serving("--tls-cert", str(cert), "--tls-key", str(secret)) as hub:
        assert hub.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(cert))
        url = hub.url.replace("127.0.0.1", "localhost")
        answer = httpx2.get(
            f"{url}/version",
            verify=trusted,
            headers={"Authorization": f"Bearer {hub.token}"},
            timeout=60,
        )
        assert answer.status_code == 200
        entered = httpx2.get(f"{url}/?token={hub.token}", verify=trusted, timeout=60)
        assert "secure" in entered.headers["set-cookie"].lower()
    done = _serve("--tls-cert", str(cert), "--port", "0")
    assert done.returncode == 2
    done = _serve("--tls-cert", str(secret), "--tls-key", str(secret), "--port", "0")
    assert (done.returncode, "certificate" in done.stderr) == (2, True)


# --- T3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [one for one in ROUTES if one not in OPEN])
async def test_t3_no_route_without_a_valid_token(served: Served, method: str, path: str) -> None:
    tokens = Tokens(str(served.state))
    expired = served.make_token(expires_s=0.0001)
    revoked, about = tokens.create()
    tokens.revoke(about.id)
    wrong = (
        None,
        "",
        "Bearer",
        "Bearer nonsense",
        f"Basic {served.token}",
        f"Bearer {served.token}x",
        f"Bearer {served.token[:-1]}",
        f"Bearer {'_'.join(served.token.split('_')[:2])}_",
        f"Bearer {expired}",
        f"Bearer {revoked}",
        "Bearer " + "x" * 5000,
        "Bearer \xff\xfe",
    )
    async with httpx2.AsyncClient(base_url=served.url, timeout=60) as http:
        for value in wrong:
            headers = {} if value is None else {"Authorization": value.encode("latin-1")}
            answer = await http.request(method, path, headers=headers)
            assert answer.status_code == 401, value
            assert answer.headers["www-authenticate"].startswith("Bearer")
            told = answer.json()
            assert told["hint"]
            assert served.token not in answer.text


async def test_t3_what_a_token_may(served: Served) -> None:
    owner = f"scopes-{secrets.token_hex(3)}"
    table = [
        ("read", "POST", "/v1/file/list", {"path": "."}, 200),
        ("read", "POST", "/v1/shell/exec", {"command": "true"}, 403),
        ("read", "POST", "/v1/caves", {"name": "x"}, 403),
        ("read", "POST", "/mcp/execute", {"tool": "file_list"}, 200),
        (
            "read",
            "POST",
            "/mcp/execute",
            {"tool": "shell_exec", "arguments": {"command": "true"}},
            403,
        ),
        ("use", "POST", "/v1/shell/exec", {"command": "true"}, 200),
        ("use", "DELETE", "/v1/caves/default", None, 403),
        ("use", "GET", "/metrics", None, 403),
        ("manage", "GET", "/metrics", None, 403),
        ("manage", "DELETE", "/v1/caves/default", None, 200),
        ("admin", "GET", "/metrics", None, 200),
    ]
    for scope, method, path, body, status in table:
        async with served.client(served.make_token(owner=owner, scope=scope)) as http:
            answer = await http.request(method, path, json=body)
            assert answer.status_code == status, (scope, path, answer.text)


async def test_t3_owners_do_not_see_each_other(served: Served) -> None:
    one, two = (f"owner-{secrets.token_hex(3)}" for _ in range(2))
    async with (
        served.client(served.make_token(one)) as mine,
        served.client(served.make_token(two)) as theirs,
    ):
        made = (await mine.post("/v1/caves", json={"name": "dev"})).json()
        assert (await theirs.get("/v1/caves")).json() == {"caves": []}
        for ref in ("dev", made["id"], f"{one}/dev"):
            for method, path in ROUTES:
                if "/x" in path and path.startswith(("/v1/caves/", "/v1/sandbox/")):
                    url = path.replace("/x", f"/{ref}", 1)
                    answer = await theirs.request(method, url)
                    assert answer.status_code in (404, 400), (method, url)
            for call in (
                theirs.post("/v1/shell/exec", json={"command": "true", "cave": ref}),
                theirs.post(
                    "/v1/shell/exec", json={"command": "true"}, headers={"Ghost-Cave": ref}
                ),
                theirs.get(f"/v1/filesystem/download?path=x&cave={ref}"),
            ):
                assert (await call).status_code in (404, 400)
        # Each may have a cave of that name.
        assert (await theirs.post("/v1/caves", json={"name": "dev"})).status_code == 201
        for http in (mine, theirs):
            assert (await http.delete("/v1/caves/dev")).status_code == 200


async def test_t3_a_revoked_token_is_dead_at_once(served: Served) -> None:
    tokens = Tokens(str(served.state))
    value, about = tokens.create()
    async with served.client(value) as http:
        assert (await http.get("/version")).status_code == 200
        tokens.revoke(about.id)
        assert (await http.get("/version")).status_code == 401


async def test_t3_what_goes_on_ends_with_its_token(served: Served) -> None:
    """Events of an owner: nothing of what happens after the token is revoked, and an end."""
    owner = f"t3-{secrets.token_hex(3)}"
    tokens = Tokens(str(served.state))
    value, about = tokens.create(owner=owner)
    other, _ = tokens.create(owner=owner)
    async with (
        served.client(value) as http,
        served.client(other) as same_owner,
        http.stream("GET", "/v1/events") as stream,
    ):
        said = {"command": "echo before"}
        await same_owner.post("/v1/shell/exec", json=said)
        lines = stream.aiter_lines()
        while "before" not in await anext(lines):
            pass
        tokens.revoke(about.id)
        await anyio.sleep(1.1)  # how long a look at the tokens is believed
        await same_owner.post("/v1/shell/exec", json={"command": "echo after"})
        with anyio.fail_after(60):
            rest = [line async for line in lines]
        await same_owner.delete("/v1/caves/default")
    assert "after" not in "".join(rest)


def test_t3_only_hashes_are_kept_and_others_may_not_read_them(served: Served) -> None:
    file = served.state / "hub" / "tokens.json"
    assert served.token not in file.read_text()
    assert served.token.split("_", 2)[2] not in file.read_text()  # in which there may be a "_", too
    assert file.stat().st_mode & 0o777 == 0o600


async def test_t3_a_browser_enters_once(served: Served) -> None:
    async with httpx2.AsyncClient(base_url=served.url, timeout=60) as http:
        refused = await http.get("/?token=wrong")
        assert refused.status_code == 401
        entered = await http.get(f"/?token={served.token}")
        assert entered.status_code == 303
        assert "token" not in entered.headers["location"]
        cookie = entered.headers["set-cookie"].lower()
        assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/"))
        assert "domain" not in cookie
        assert (await http.get("/docs")).status_code == 200
        own = {"Origin": served.url}
        body = {"command": "true"}
        assert (await http.post("/v1/shell/exec", json=body, headers=own)).status_code == 200
        # What another page, or a form, could make the browser send.
        assert (await http.post("/v1/shell/exec", json=body)).status_code == 401
        for site in ("cross-site", "same-site"):
            headers = {"Sec-Fetch-Site": site}
            assert (await http.get("/v1/caves", headers=headers)).status_code == 401
        # A token in an address is for entering, and for nothing else.
    async with httpx2.AsyncClient(base_url=served.url, timeout=60) as http:
        assert (await http.get(f"/v1/caves?token={served.token}")).status_code == 401


# --- T4 ------------------------------------------------------------------------------------------

GREETING = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "t4", "version": "1"},
    },
}
ACCEPT = {"Accept": "application/json, text/event-stream"}
LIST = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}


async def _session(http: httpx2.AsyncClient) -> str:
    answer = await http.post("/mcp", json=GREETING, headers=ACCEPT)
    assert answer.status_code == 200
    return str(answer.headers["mcp-session-id"])


async def test_t4_a_session_is_its_owner_s(served: Served) -> None:
    one, two = (served.make_token(f"t4-{secrets.token_hex(3)}") for _ in range(2))
    async with served.client(one) as mine, served.client(two) as theirs:
        session = await _session(mine)
        headers = {**ACCEPT, "Mcp-Session-Id": session}
        for path in ("/mcp", "/caves/x/mcp"):
            for method, body in (("POST", LIST), ("GET", None), ("DELETE", None)):
                answer = await theirs.request(method, path, json=body, headers=headers)
                assert answer.status_code == 404, (method, path)
        assert (await mine.post("/mcp", json=LIST, headers=headers)).status_code == 200
        forged = {**ACCEPT, "Mcp-Session-Id": secrets.token_hex(16)}
        assert (await mine.post("/mcp", json=LIST, headers=forged)).status_code == 404
        assert (
            await mine.post("/mcp", json=LIST, headers=ACCEPT)
        ).status_code == 400  # never the only one
        assert (await mine.delete("/mcp", headers=headers)).status_code == 200
        assert (await mine.post("/mcp", json=LIST, headers=headers)).status_code == 404


async def _messages(lines: AsyncIterator[str]) -> str:
    """Where an SSE session takes its messages. Whoever lets go of the lines closes the session."""
    while not (line := await anext(lines)).startswith("data:"):
        pass
    return line.removeprefix("data:").strip()


async def test_t4_an_sse_session_is_its_owner_s(served: Served) -> None:
    one, two = (served.make_token(f"t4-{secrets.token_hex(3)}") for _ in range(2))
    async with (
        served.client(one) as mine,
        served.client(two) as theirs,
        mine.stream("GET", "/sse") as stream,
    ):
        lines = stream.aiter_lines()
        where = await _messages(lines)
        assert (await theirs.post(where, json=GREETING)).status_code == 404
        assert (await mine.post(where, json=GREETING)).status_code == 202


async def test_t4_session_ids_cannot_be_guessed(served: Served) -> None:
    async with served.client() as http:
        seen = set()
        for _ in range(100):
            session = await _session(http)
            seen.add(session)
            assert len(bytes.fromhex(session)) >= 16
            await http.delete("/mcp", headers={"Mcp-Session-Id": session})
        assert len(seen) == 100


# --- T5 ------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    body=st.binary(min_size=1, max_size=400),
    path=st.sampled_from(["/mcp", "/v1/shell/exec", "/mcp/execute"]),
)
def test_t5_malformed_bodies_crash_nothing(served: Served, body: bytes, path: str) -> None:
    headers = {
        "Authorization": f"Bearer {served.token}",
        "Content-Type": "application/json",
        **ACCEPT,
    }
    for more in ({}, {"MCP-Protocol-Version": "2026-07-28"}):
        answer = httpx2.post(
            served.url + path, content=body, headers={**headers, **more}, timeout=60
        )
        assert 400 <= answer.status_code < 500, answer.text


async def test_t5_large_and_deep_bodies(served: Served) -> None:
    before = psutil.Process(served.process.pid).memory_info().rss
    deep = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":' + b"[" * 100_000
    async with served.client(headers=ACCEPT) as http, http.stream("GET", "/sse") as stream:
        lines = stream.aiter_lines()
        for path in ("/mcp", "/v1/shell/exec", await _messages(lines)):
            for _ in range(3):
                answer = await http.post(path, content=bytes(100 << 20))
                assert answer.status_code == 413, path
            answer = await http.post(
                path, content=deep, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code in (400, 404)
        assert (await http.get("/version")).status_code == 200
    grown = psutil.Process(served.process.pid).memory_info().rss - before
    assert grown < 64 << 20


async def test_t5_slow_clients_are_reaped_and_others_served(served: Served) -> None:
    body = f"POST /v1/shell/exec HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {served.token}\r\nContent-Length: 50\r\n\r\n{{"
    starts = (b"", b"GET /version HT", b"GET /version HTTP/1.1\r\nHost: x\r\n", body.encode())
    ended: list[float] = []
    began = time.monotonic()

    async def crawl(start: bytes) -> None:
        async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
            await stream.send(start) if start else None
            with anyio.move_on_after(90):
                try:
                    while True:
                        with anyio.move_on_after(1):
                            if not await stream.receive():
                                break
                        if start and not start.endswith(b"{"):
                            await stream.send(b"X")
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    pass
                ended.append(time.monotonic() - began)

    async with anyio.create_task_group() as tasks, served.client() as http:
        for number in range(200):
            tasks.start_soon(crawl, starts[number % len(starts)])
        spans = []
        for _ in range(30):
            at = time.monotonic()
            assert (await http.get("/version")).status_code == 200
            spans.append(time.monotonic() - at)
        assert sorted(spans)[28] < 10  # where who waits for them would wait for longer
    assert len(ended) == 200
    assert max(ended) < 60


def test_t5_too_much_at_once_is_refused_with_the_number() -> None:
    config = (
        "bounds: {caves_per_owner: 2, calls_per_owner: 3, requests_per_s: 1, requests_burst: 30}"
    )
    with serving(config=config) as hub:
        anyio.run(_too_much, hub)


async def _too_much(hub: Served) -> None:
    async with hub.client(hub.make_token("many")) as http:
        for name in ("one", "two"):
            assert (await http.post("/v1/caves", json={"name": name})).status_code == 201
        answer = await http.post("/v1/caves", json={"name": "three"})
        assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
        assert answer.json()["data"] == {"limit": 2, "used": 2}
        statuses: list[int] = []

        async def call() -> None:
            done = await http.post("/v1/shell/exec", json={"command": "sleep 4", "cave": "one"})
            statuses.append(done.status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(call)
        assert sorted(statuses) == [200, 200, 200, 429, 429, 429]
        for _ in range(40):
            answer = await http.get("/version")
            if answer.status_code == 429:
                break
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
    async with hub.client() as http:  # others are not held up
        assert (await http.get("/version")).status_code == 200
        answer = await http.get("/metrics")
        assert 'outcome="quota_exceeded"' in answer.text
        for cave in (await http.get("/v1/caves")).json()["caves"]:
            await http.delete(f"/v1/caves/{cave['id']}")


# --- T6, for what has no WebSockets ---------------------------------------------------------------


async def test_t6_a_websocket_is_refused_before_it_is_one(served: Served) -> None:
    for headers in (
        "",
        "Origin: http://evil.example\r\n",
        f"Cookie: ghost-token-{served.port}={served.token}\r\n",
    ):
        async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
            await stream.send(
                f"GET /mcp HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n".encode()
            )
            answer = await stream.receive()
            assert answer.split()[1] in (b"401", b"403", b"406")


def test_t6_tokens_are_not_logged(served: Served) -> None:
    httpx2.get(f"{served.url}/?token={served.token}", timeout=60)
    httpx2.get(f"{served.url}/v1/caves?token={served.token}", timeout=60)
    assert served.token not in (served.state / "stderr").read_text()


# --- the end of a hub -----------------------------------------------------------------------------


def test_calls_under_way_are_answered_when_the_hub_is_told_to_end() -> None:
    with serving() as hub:
        line = json.dumps({"command": "sleep 2; echo done"})
        with subprocess.Popen(
            [
                "curl",
                "-s",
                "-H",
                f"Authorization: Bearer {hub.token}",
                "-d",
                line,
                f"{hub.url}/v1/shell/exec",
            ],
            stdout=subprocess.PIPE,
        ) as client:
            httpx2.get(f"{hub.url}/health", timeout=60)
            with anyio.from_thread.start_blocking_portal() as portal:
                portal.call(_running, hub)
            os.kill(hub.process.pid, signal.SIGTERM)
            said, _ = client.communicate(timeout=30)
            assert json.loads(said)["stdout"] == "done\n"
            assert hub.process.wait(30) == -signal.SIGTERM


async def _running(hub: Served) -> None:
    with anyio.fail_after(60):
        async with hub.client() as http:
            while "ghost_calls_running 1.0" not in (await http.get("/metrics")).text:
                await anyio.sleep(0.02)
