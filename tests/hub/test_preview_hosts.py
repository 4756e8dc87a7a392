"""Previews on hosts of their own: who gets in, by what, and what of it reaches the program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
import pytest

from ghost_hub.preview.naming import label, split
from ghost_hub.preview.passes import MOST_USED, TICKET_S, Passes
from ghost_hub.preview.ports import _port
from ghost_hub.principal import LOCAL
from ghost_hub.settings import HubSettings
from ghost_hub.tokens import Tokens
from ghost_mcp.errors import GhostError, InvalidArgument, QuotaExceeded
from ghost_mcp.lifecycle import State
from ghost_mcp.spec import CaveInfo, CaveSpec
from tests.serving import Served, serving

UPSTREAM = (Path(__file__).parent / "upstream.py").read_text()
CAVE, PORT = "shown", 8000
Answer = httpx2.Response


@pytest.fixture(scope="module")
def web(served: Served) -> Iterator[Served]:
    """A hub with a cave whose port 8000 answers."""
    with served.with_cave(CAVE) as http:
        program = {"cave": CAVE, "path": "up.py", "content": UPSTREAM}
        http.post("/v1/file/write", json=program).raise_for_status()
        line = {"cave": CAVE, "command": f"python3 up.py {PORT} 0", "background": True}
        http.post("/v1/shell/exec", json=line).raise_for_status()
        yield served


@pytest.fixture
async def api(web: Served) -> AsyncIterator[httpx2.AsyncClient]:
    async with web.client() as client:
        yield client


@pytest.fixture
async def browser(web: Served) -> AsyncIterator[httpx2.AsyncClient]:
    """Sends what it is told and no more; reaches the hub whatever the host's name."""
    async with httpx2.AsyncClient(base_url=web.url, timeout=60) as client:
        yield client


def host_of(web: Served, name: str = f"{PORT}--{CAVE}") -> str:
    return f"{name}.caves.localhost:{web.port}"


async def link(api: httpx2.AsyncClient, cave: str = CAVE, **asked: Any) -> str:
    answer = await api.post(f"/v1/caves/{cave}/previews", json=asked or {"port": PORT})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["url"])


async def visit(browser: httpx2.AsyncClient, url: str, **headers: str) -> Answer:
    """A GET as a browser's, which looks every name below localhost up by itself."""
    parts = urlsplit(url)
    address = f"{parts.path}?{parts.query}" if parts.query else parts.path
    return await browser.get(address, headers={"Host": parts.netloc, **headers})


async def entered(api: httpx2.AsyncClient, browser: httpx2.AsyncClient, **asked: Any) -> str:
    """The cookie of a browser that has opened a link."""
    answer = await visit(browser, await link(api, **asked))
    assert answer.status_code == 303, answer.text
    browser.cookies.clear()
    return str(answer.headers["set-cookie"].partition(";")[0])


async def test_p1_a_link_opens_once_and_becomes_a_cookie(
    web: Served, api: httpx2.AsyncClient, browser: httpx2.AsyncClient
) -> None:
    url = await link(api, port=PORT, path="/a//b?x=1&y=%20")
    assert url.startswith(f"http://{host_of(web)}/a//b?x=1&y=%20&ghost-ticket=")
    answer = await visit(browser, url)
    assert answer.status_code == 303
    assert answer.headers["location"] == f"http://{host_of(web)}/a//b?x=1&y=%20"
    assert answer.headers["referrer-policy"] == "no-referrer"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "domain" not in cookie.lower()
    browser.cookies.clear()
    told = await visit(browser, answer.headers["location"], Cookie=cookie.partition(";")[0])
    assert told.json()["path"] == "/a//b?x=1&y=%20"
    again = await visit(browser, url)  # somebody else, later
    assert (again.status_code, again.json()["code"]) == (401, "unauthenticated")
    # Who has been let in and comes by the old link is led on.
    assert (await visit(browser, url, Cookie=cookie.partition(";")[0])).status_code == 303
    page = await visit(browser, f"http://{host_of(web)}/", Accept="text/html")
    assert page.status_code == 401
    assert "ghost preview" in page.text


async def test_p1_a_link_leads_nowhere_else(
    web: Served, api: httpx2.AsyncClient, browser: httpx2.AsyncClient
) -> None:
    ticket = (await link(api)).partition("?")[2]
    answer = await visit(browser, f"http://{host_of(web)}//evil.example/%5C?{ticket}")
    assert urlsplit(answer.headers["location"]).netloc == host_of(web)
    for path in ("evil", "//\nX", "/a b", "/ü", "/#x", "http://evil.example/"):
        body = {"port": PORT, "path": path}
        assert (await api.post(f"/v1/caves/{CAVE}/previews", json=body)).status_code == 400, path
    for body in (
        {},
        {"port": 0},
        {"port": 65536},
        {"service": "odd--"},
    ):
        refused = await api.post(f"/v1/caves/{CAVE}/previews", json=body)
        assert refused.status_code in (400, 404), body
    beside = await api.post(f"/v1/caves/{CAVE}/previews", json={"port": 1, "service": "vnc"})
    assert beside.json()["detail"] == "a local cave has no side services"


async def test_p1_only_the_owner_s_live_cave_has_a_host(
    web: Served, api: httpx2.AsyncClient, browser: httpx2.AsyncClient
) -> None:
    own = {"Authorization": f"Bearer {web.token}"}
    cave_id = (await api.get(f"/v1/caves/{CAVE}")).json()["id"]
    for name in (f"{PORT}--{CAVE}", f"{PORT}--{cave_id}", f"{PORT}--{CAVE.upper()}"):
        answer = await browser.get("/", headers={**own, "Host": host_of(web, name)})
        assert answer.status_code == 200, name
    wrong = (
        *(f"{PORT}--nobody", f"{PORT}--0123456789abcdef", f"x.{PORT}--{CAVE}", CAVE, f"--{CAVE}"),
        *(f"0--{CAVE}", f"08000--{CAVE}", f"65536--{CAVE}", f"xn--{CAVE}", f"{PORT}--127.0.0.1"),
        *(
            f"{PORT}--{CAVE}--{CAVE}",
            f"{PORT}--",
            f"{PORT}---{CAVE}",
            f"odd--{CAVE}",
            f"vnc.{CAVE}",
        ),
        *(f"{PORT}--{CAVE}%00", f"8000@{CAVE}", f"٨٠٠٠--{CAVE}", f"{PORT}--{CAVE}" + "a" * 60),
    )
    for name in wrong:
        host = host_of(web, name).encode()
        answer = await browser.get(
            "/", headers=[(b"Host", host), (b"Authorization", own["Authorization"].encode())]
        )
        assert answer.status_code in (400, 404), name
    for host, status in (
        (f"{PORT}--{CAVE}.caves.localhost.:{web.port}", 404),
        (f"{PORT}--{CAVE}.caves.localhost:", 421),
        (f"{PORT}--{CAVE}.evil.example", 421),
        (f"{PORT}--{CAVE}.caves.localhost.evil.example", 421),
        ("caves.localhost", 421),
    ):
        assert (await browser.get("/", headers={**own, "Host": host})).status_code == status, host
    theirs = {"Authorization": f"Bearer {web.make_token('stranger')}", "Host": host_of(web)}
    assert (await browser.get("/", headers=theirs)).status_code == 404
    async with web.client(theirs["Authorization"].partition(" ")[2]) as stranger:
        for name in (CAVE, cave_id):
            refused = await stranger.post(f"/v1/caves/{name}/previews", json={"port": PORT})
            assert refused.status_code == 404
    reader = web.make_token("", "read")
    async with web.client(reader) as looking:
        refused = await looking.post(f"/v1/caves/{CAVE}/previews", json={"port": PORT})
        assert refused.status_code == 403
        there = await looking.get("/", headers={"Host": host_of(web)})
        assert there.status_code == 403


async def test_p1_a_pass_is_for_one_cave_and_one_target(
    web: Served, api: httpx2.AsyncClient, browser: httpx2.AsyncClient
) -> None:
    async def seen(cookie: str, name: str) -> int:
        return (await visit(browser, f"http://{host_of(web, name)}/", Cookie=cookie)).status_code

    (await api.post("/v1/caves", json={"name": "other"})).raise_for_status()
    cookie = await entered(api, browser)
    for name, status in ((f"{PORT}--{CAVE}", 200), (f"8001--{CAVE}", 401), (f"{PORT}--other", 404)):
        assert await seen(cookie, name) == status, name
    ticket = (await link(api)).partition("?")[2]
    for name in (f"8001--{CAVE}", f"vnc--{CAVE}"):
        answer = await visit(browser, f"http://{host_of(web, name)}/?{ticket}")
        assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
    # A new cave of the same name is another one.
    other = await entered(api, browser, cave="other", port=PORT)
    (await api.delete("/v1/caves/other")).raise_for_status()
    assert await seen(other, f"{PORT}--other") == 404
    (await api.post("/v1/caves", json={"name": "other"})).raise_for_status()
    assert await seen(other, f"{PORT}--other") == 404
    (await api.delete("/v1/caves/other")).raise_for_status()


async def test_p1_caves_of_owners_have_hosts_of_their_own(web: Served) -> None:
    urls = []
    for owner in ("anna", "bert"):
        async with web.client(web.make_token(owner)) as api:
            (await api.post("/v1/caves", json={"name": CAVE})).raise_for_status()
            urls.append(urlsplit(await link(api)).netloc)
            (await api.delete(f"/v1/caves/{CAVE}")).raise_for_status()
    assert len({*urls, host_of(web)}) == 3


async def test_p1_a_preview_ends_with_its_token(web: Served, browser: httpx2.AsyncClient) -> None:
    tokens = Tokens(str(web.state))
    value, about = tokens.create()
    async with web.client(value) as api:
        ticket, cookie = await link(api), await entered(api, browser)
    address = f"http://{host_of(web)}"
    assert (await visit(browser, f"{address}/", Cookie=cookie)).status_code == 200
    async with await upgraded(web, f"Cookie: {cookie}\r\nOrigin: {address}\r\n") as socket:
        assert (await socket.receive()).split()[1] == b"101"
        tokens.revoke(about.id)
        assert (await visit(browser, f"{address}/", Cookie=cookie)).status_code == 401
        assert (await visit(browser, ticket)).status_code == 401
        await anyio.sleep(1.1)  # how long a look at the tokens is believed
        with anyio.fail_after(30):  # what goes on ends with the next word
            await socket.send(b"\x81\x82\0\0\0\0hi")
            said = b""
            while b"\x88\x02\x03\xf0" not in said:  # a close frame: 1008
                said += await socket.receive()
    assert b"hi" not in said


async def upgraded(web: Served, headers: str) -> anyio.abc.SocketStream:
    stream = await anyio.connect_tcp("127.0.0.1", web.port)
    ask = (
        f"GET /ws HTTP/1.1\r\nHost: {host_of(web)}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    await stream.send(f"{ask}{headers}\r\n".encode())
    return stream


async def test_p4_t6_a_websocket_wants_a_cookie_and_a_page_of_its_own_host(
    web: Served, api: httpx2.AsyncClient, browser: httpx2.AsyncClient
) -> None:
    cookie = f"Cookie: {await entered(api, browser)}\r\n"
    own = f"Origin: http://{host_of(web)}\r\n"
    hub = f"Cookie: ghost-token-{web.port}={web.token}\r\n"
    for headers, status in (
        ("", b"401"),
        (own, b"401"),
        (hub + own, b"401"),
        (cookie, b"401"),
        (cookie + "Origin: null\r\n", b"403"),
        (cookie + f"Origin: {web.url}\r\n", b"403"),
        (cookie + f"Origin: http://8001--{CAVE}.caves.localhost:{web.port}\r\n", b"403"),
        (cookie + f"Origin: http://{PORT}--{CAVE}.caves.localhost\r\n", b"403"),
        (cookie + own + "Sec-Fetch-Site: same-site\r\n", b"401"),
        (cookie + own, b"101"),
    ):
        async with await upgraded(web, headers) as stream:
            assert (await stream.receive()).split()[1] == status, headers


async def test_p3_another_page_cannot_use_a_browser_s_cookie(
    web: Served, api: httpx2.AsyncClient, browser: httpx2.AsyncClient
) -> None:
    own = {"Host": host_of(web), "Cookie": await entered(api, browser)}
    origin = {"Origin": f"http://{host_of(web)}"}
    led = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    for method, more, status in (
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 401),
        ("GET", {**led, "Sec-Fetch-Dest": "iframe"}, 401),
        ("GET", {**led, "Sec-Fetch-Dest": "document"}, 200),
        ("POST", {**led, "Sec-Fetch-Dest": "document"}, 401),
        ("POST", {}, 401),
        ("POST", {"Origin": f"http://8001--{CAVE}.caves.localhost:{web.port}"}, 403),
        ("POST", {"Origin": "null"}, 403),
        ("POST", {"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 200),
        ("POST", origin, 200),
    ):
        answer = await browser.request(method, "/", headers={**own, **more})
        assert answer.status_code == status, (method, more)


async def test_p3_no_credential_of_the_hub_reaches_the_program(
    web: Served, api: httpx2.AsyncClient, browser: httpx2.AsyncClient
) -> None:
    cookie = await entered(api, browser)
    mine = f"a=1; {cookie}; ghost-token-{web.port}={web.token}; b=2"
    own = {"Host": host_of(web), "Origin": f"http://{host_of(web)}"}
    for more, kept in (
        ({"Cookie": mine}, None),
        ({"Cookie": mine, "Authorization": "Basic mine"}, "Basic mine"),
        ({"Cookie": mine, "Authorization": "Bearer of-the-app"}, "Bearer of-the-app"),
        ({"Cookie": mine, "Authorization": "Bearer ghost_x_revoked"}, None),
        ({"Cookie": mine, "Authorization": f"bearer  {web.token}"}, None),
        ({"Cookie": "a=1; b=2", "Authorization": f"Bearer {web.token}"}, None),
    ):
        answer = await browser.get("/", headers={**own, **more})
        seen = dict(answer.json()["headers"])
        assert (seen["cookie"], seen.get("authorization")) == ("a=1; b=2", kept), more
        assert seen["host"] == f"localhost:{PORT}"
        assert seen["origin"] == f"http://localhost:{PORT}"
        assert seen["x-forwarded-host"] == host_of(web)
        assert "x-forwarded-prefix" not in seen
        assert web.token not in answer.text
        assert cookie.partition("=")[2] not in answer.text
    answer = await browser.get("/liar", headers={**own, "Cookie": mine})
    assert answer.headers.get_list("set-cookie") == [
        "mine=1; HttpOnly; Path=/app",
        "__Host-other=1; Secure; Path=/",
    ]
    assert "clear-site-data" not in answer.headers
    # Another host of the domain can lay a cookie of this name beside the true one.
    forged = f"{cookie.partition('=')[0]}=x.y; {cookie}"
    assert (await browser.get("/", headers={**own, "Cookie": forged})).status_code == 200


async def test_p4_a_program_that_is_not_there_is_told_to_a_person(
    web: Served, api: httpx2.AsyncClient, browser: httpx2.AsyncClient
) -> None:
    own = {"Host": host_of(web), "Cookie": await entered(api, browser)}
    answer = await browser.get("/close", headers=own)
    assert (answer.status_code, answer.json()["code"]) == (502, "bad_gateway")
    page = await browser.get("/close", headers={**own, "Accept": "text/html"})
    assert (page.status_code, page.headers["content-type"][:9]) == (502, "text/html")


async def test_what_listens_is_told(web: Served, api: httpx2.AsyncClient) -> None:
    (await api.get("/", headers={"Host": host_of(web)})).raise_for_status()  # once it is up
    told = await api.get(f"/v1/caves/{CAVE}/previews")
    assert told.json() == {"ports": [PORT]}
    assert [_port(line) for line in ODD_LINES] == [8080, 80, 443, *[0] * (len(ODD_LINES) - 3)]


#: Of /proc/net/tcp and tcp6, as a hostile cave may write them too.
ODD_LINES = (
    "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000",
    "   1: 00000000:0050 00000000:0000 0A",
    f"   2: {'0' * 32}:01BB {'0' * 32}:0000 0A",
    "   3: 0200000A:1F90 00000000:0000 0A",  # of an address that a preview does not dial
    "   4: 0100007F:1F91 0100007F:0016 01",
    "   5: 0100007F:FFFFF 00000000:0000 0A",
    "   6: 0100007F:<b> 00000000:0000 0A",
    "   7: 0100007F 00000000:0000 0A",
    "  sl  local_address rem_address   st",
    "",
)


async def test_the_command_line_prints_a_link(web: Served, browser: httpx2.AsyncClient) -> None:
    def ghost(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "ghost_mcp.cli", "preview", "--hub", web.url, *words]
        given = {**os.environ, "GHOST_STATE_DIR": str(web.state), **env}
        return subprocess.run(
            argv, check=False, env=given, capture_output=True, text=True, timeout=60
        )

    done = await anyio.to_thread.run_sync(ghost, CAVE, str(PORT))
    assert done.returncode == 0, done.stderr
    assert (await visit(browser, done.stdout.strip())).status_code == 303
    bad = await anyio.to_thread.run_sync(
        lambda: ghost("nobody", "1", "--json", GHOST_TOKEN=web.token)
    )
    assert (bad.returncode != 0, json.loads(bad.stdout)["error"]["code"]) == (
        True,
        "cave_not_found",
    )


def test_p1_no_two_programs_share_a_name() -> None:
    def info(name: str, owner: str = "", cave_id: str = "00112233445566aa") -> CaveInfo:
        spec = CaveSpec(id=cave_id, name=name, owner=owner)
        return CaveInfo(
            spec=spec, state=State.RUNNING, created_at=0.0, deadline_at=None, assurance={}
        )

    assert label(info("web"), "8000") == "8000--web"
    assert label(info("web", "anna"), "8000") == "8000--00112233445566aa"
    assert label(info("a--b"), "8000") == "8000--00112233445566aa"
    assert label(info("ffffffffffffffff"), "8000") == "8000--00112233445566aa"
    assert label(info("n" * 40), "s" * 30) == f"{'s' * 30}--00112233445566aa"
    for target in ("8000", "vnc", "code-server", "a--b"):
        for name in ("web", "a-b", "0"):
            assert split(label(info(name), target)) == (target, name)
    for target in ("0", "70000", "xn", "", "-a", "a_b", "A", "a.b", "x" * 41):
        with pytest.raises(InvalidArgument):
            label(info("web"), target)


def test_p1_tickets_are_single_short_bound_and_bounded(tmp_path: Path) -> None:
    now = [1_000_000.0]
    tokens = Tokens(str(tmp_path))
    principals = [p for p in (tokens.verify(tokens.create()[0]) for _ in range(2)) if p is not None]
    passes, sibling = (Passes(tokens, lambda: now[0]) for _ in range(2))
    one, until = passes.ticket(principals[0], "cave", "8000")
    assert until == now[0] + TICKET_S
    assert len({passes.ticket(principals[0], "cave", "8000")[0] for _ in range(500)}) == 500
    for wrong in (
        "",
        "x",
        f"{one}x",
        one[:-1],
        one[1:],
        one.swapcase(),
        "é",
        "." * 2000,
        "bnVsbA.x",
    ):
        assert passes.redeem(wrong, "8000") is None
    assert passes.redeem(one, "8001") is None
    assert passes.known(one, "8000") is None  # a ticket is no cookie
    shown = passes.redeem(one, "8000")
    assert shown is not None
    assert passes.redeem(one, "8000") is None
    cookie = sibling.cookie(shown)[0]  # what one hub gives out, those beside it know
    assert passes.known(cookie, "8000") is not None
    assert passes.redeem(cookie, "8000") is None
    late = passes.ticket(principals[0], "cave", "8000")[0]
    for _ in range(MOST_USED - 1):
        assert passes.redeem(passes.ticket(principals[0], "cave", "1")[0], "1") is not None
    with pytest.raises(QuotaExceeded):
        passes.redeem(late, "8000")
    assert passes.redeem(passes.ticket(principals[1], "cave", "1")[0], "1") is not None
    now[0] += TICKET_S
    assert passes.redeem(late, "8000") is None
    assert passes.known(cookie, "8000") is not None
    tokens.revoke(principals[0].token_id)
    assert passes.known(cookie, "8000") is None
    assert passes.redeem(passes.ticket(principals[0], "cave", "1")[0], "1") is None


def test_a_preview_domain_may_name_how_it_is_reached() -> None:
    for domain in ("", "caves.localhost", "https://caves.example.org", "http://a.b:81"):
        assert HubSettings(preview_domain=domain).preview_domain == domain
    for domain in ("localhost", "*.a.b", "ftp://a.b", "a.b/c", "A.b", ".a.b"):
        with pytest.raises(GhostError):
            HubSettings.load(None, preview_domain=domain)


async def test_without_tokens_a_foreign_page_still_gets_nothing() -> None:
    with serving("--no-auth", config="preview_domain: https://caves.example.org\n") as hub:
        async with httpx2.AsyncClient(base_url=hub.url, timeout=60) as http:
            (await http.post("/v1/shell/exec", json={"command": "true"})).raise_for_status()
            url = await link(http, cave="default", port=1234)
            assert url.startswith("https://1234--default.caves.example.org/?ghost-ticket=")
            answer = await visit(http, url)
            assert answer.status_code == 303
            assert "Secure" in answer.headers["set-cookie"]
            assert answer.headers["location"].startswith("https://1234--default.")
            foreign = {"Host": urlsplit(url).netloc, "Sec-Fetch-Site": "cross-site"}
            assert (await http.get("/", headers=foreign)).status_code == 401
            assert LOCAL.may("use")
