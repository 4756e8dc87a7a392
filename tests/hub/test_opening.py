"""Services of a cave as pages: started by their address, shown on a host of their own; who may only look."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest
from websockets.asyncio.client import connect

from ghost_hub.desktop.shown import PIXEL_FORMAT
from tests.serving import Served, serving

if TYPE_CHECKING:
    from pathlib import Path

CAVE = "shows"
PAGE = {"Accept": "text/html"}
# The desktop says hello, then repeats what it is told.
SERVICES = """
services:
  web:
    command: echo shown >index.html; exec python3 -m http.server --bind 127.0.0.1 "$GHOST_PORT"
    port: 8321
    cwd: /tmp
    programs: [sh, python3]
    page: index.html
  vnc:
    command: |
      exec python3 -c '
      import os, socket
      door = socket.socket(socket.AF_UNIX)
      door.bind(os.environ["GHOST_SOCKET"])
      door.listen()
      while True:
          viewer, _ = door.accept()
          try:
              viewer.send(b"RFB 003.008\\n")
              while told := viewer.recv(1000): viewer.send(told)
          except OSError: pass
          viewer.close()
      '
    programs: [sh, python3]
"""
HELLO = b"RFB 003.008\n\x01\x01"
KEY, ASK = b"\x04\x01\0\0\0\0\xff\x0d", b"\x03\x01" + bytes(8)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A hub that knows two services that every cave can run, and has a cave."""
    file: Path = tmp_path_factory.mktemp("services") / "services.yaml"
    file.write_text(SERVICES)
    config = "desktop_port: 0\n"
    with (
        serving("--backend", "local", config=config, GHOST_SERVICES=str(file)) as served,
        served.with_cave(CAVE),
    ):
        yield served


@pytest.fixture
async def api(hub: Served) -> AsyncIterator[httpx2.AsyncClient]:
    async with hub.client() as client:
        yield client


async def visit(hub: Served, url: str, **headers: str) -> httpx2.Response:
    """A GET as a browser's, which looks every name below localhost up by itself."""
    parts = urlsplit(url)
    async with httpx2.AsyncClient(base_url=hub.url, timeout=60) as browser:
        return await browser.get(
            f"{parts.path}?{parts.query}", headers={"Host": parts.netloc, **headers}
        )


async def test_a_service_is_started_and_shown_on_its_own_host(
    hub: Served, api: httpx2.AsyncClient
) -> None:
    answer = await api.get(f"/services/web/?cave={CAVE}")
    assert answer.status_code == 303, answer.text
    url = answer.headers["location"]
    assert url.startswith(f"http://web--{CAVE}.caves.localhost:{hub.port}/index.html?ghost-ticket=")
    entered = await visit(hub, url)
    cookie = entered.headers["set-cookie"].partition(";")[0]
    assert (await visit(hub, entered.headers["location"], Cookie=cookie)).text == "shown\n"
    other = entered.headers["location"].replace("web--", "vnc--")
    assert (await visit(hub, other, Cookie=cookie)).status_code == 401


async def test_what_cannot_be_shown_is_a_page_with_the_way_out(
    hub: Served, api: httpx2.AsyncClient
) -> None:
    told = await api.get(f"/code-server/?cave={CAVE}", headers=PAGE)
    assert (told.status_code, told.headers["content-type"][:9]) == (501, "text/html")
    assert "--image ghost-full" in told.text
    plain = await api.get(f"/code-server/?cave={CAVE}")
    assert plain.json()["code"] == "service_missing"
    for path, status in (
        ("/vnc/?cave=nobody", 404),
        ("/services/nothing/", 404),
        ("/services/kernels/", 404),
    ):
        assert (await api.get(path, headers=PAGE)).status_code == status, path
    assert '<a href="/">All caves</a>' in (await api.get("/vnc/?cave=nobody", headers=PAGE)).text
    assert (await api.head("/jupyter/")).status_code == 200  # starts nothing
    reader = {"Authorization": f"Bearer {hub.make_token(scope='read')}"}
    assert (await api.get("/vnc/", headers=reader)).status_code == 403
    async with httpx2.AsyncClient(base_url=hub.url, timeout=60) as stranger:
        assert (await stranger.get("/vnc/")).status_code == 401


async def test_an_address_with_nothing_is_told_to_people_and_to_programs(
    api: httpx2.AsyncClient,
) -> None:
    told = await api.get("/nothing/<b>", headers=PAGE)
    assert told.status_code == 404
    assert "There is nothing at /nothing/&lt;b&gt;" in told.text
    assert '<a href="/">All caves</a>' in told.text
    assert (await api.get("/nothing")).json()["code"] == "not_found"


@pytest.mark.parametrize(("agent", "how"), [("Mobile Safari", "scale"), ("Chrome", "remote")])
async def test_a_desktop_is_seen_whole_on_a_telephone(
    hub: Served, api: httpx2.AsyncClient, agent: str, how: str
) -> None:
    host, cookie = await cookie_for(hub, api)
    page = await visit(hub, f"http://{host}/", **{"Cookie": cookie, "User-Agent": agent})
    assert f"&resize={how}" in page.headers["location"]


async def cookie_for(hub: Served, api: httpx2.AsyncClient, query: str = "") -> tuple[str, str]:
    """The host of a desktop, and a cookie for it."""
    url = (await api.get(f"/vnc/?cave={CAVE}{query}")).headers["location"]
    entered = await visit(hub, url)
    return urlsplit(url).netloc, entered.headers["set-cookie"].partition(";")[0]


@pytest.mark.parametrize("looks", [False, True])
async def test_who_may_only_look_is_heard_with_nothing_else(
    hub: Served, api: httpx2.AsyncClient, looks: bool
) -> None:
    host, cookie = await cookie_for(hub, api, "&view_only=true" if looks else "")
    assert host.partition("--")[0] == ("vnc-view" if looks else "vnc")
    page = await visit(hub, f"http://{host}/", Cookie=cookie)
    assert ("view_only=true" in page.headers["location"]) is looks
    address = f"ws://{host}/websockify"
    headers = {"Cookie": cookie}
    async with connect(
        address,
        host="127.0.0.1",
        port=hub.port,
        additional_headers=headers,
        open_timeout=60,
        origin=f"http://{host}",  # type: ignore[arg-type]
        subprotocols=["binary"],  # type: ignore[list-item]
        proxy=None,
    ) as desktop:
        assert desktop.subprotocol == "binary"
        assert await desktop.recv() == b"RFB 003.008\n"
        await desktop.send(HELLO + KEY + ASK)
        wanted, said = HELLO + (bytes(4) + PIXEL_FORMAT if looks else KEY) + ASK, b""
        while len(said) < len(wanted):
            piece = await desktop.recv()
            assert isinstance(piece, bytes)
            said += piece
        assert said == wanted
        if looks:
            await desktop.send(b"\x01")  # no message that is known
            await desktop.wait_closed()


async def test_the_desktop_s_page_is_what_the_cave_has(
    hub: Served, api: httpx2.AsyncClient
) -> None:
    host, cookie = await cookie_for(hub, api)
    for path in ("vnc.html", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", ".secret.js", "x.py"):
        answer = await visit(hub, f"http://{host}/{path}", Cookie=cookie)
        assert answer.status_code == 404, path
    told = await visit(hub, f"http://{host}/vnc.html", Cookie=cookie, **PAGE)
    assert "ghost-desktop" in told.text


async def test_desktops_have_a_port_of_their_own_if_that_is_set(hub: Served) -> None:
    ports = {
        one.laddr.port
        for one in psutil.Process(hub.process.pid).net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    }
    (port,) = ports - {hub.port}
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as browser:
        entered = await browser.get(f"/vnc.html?cave={CAVE}&token={hub.token}")
        assert entered.headers["location"] == f"/vnc.html?cave={CAVE}"
        led = await browser.get(entered.headers["location"])
        assert led.headers["location"].startswith(f"http://vnc--{CAVE}.caves.localhost:{port}/?")
