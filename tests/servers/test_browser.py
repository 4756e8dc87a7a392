"""The browser tools on a real Chromium in a real cave, called as an adapter calls them."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import pytest_asyncio
from pydantic import TypeAdapter

from ghost_mcp import Cave, CaveSpec, Ghost
from ghost_mcp.errors import (
    BackendUnavailable,
    Conflict,
    GhostError,
    InvalidArgument,
    NotFound,
    PermissionRefused,
    TimedOut,
    Unsupported,
)
from ghost_mcp.reply import MAX_TEXT_CHARS, Reply
from ghost_mcp.tool import Call, Keep, invoke
from ghost_servers.browser import TOOLSET
from tests.conftest import held
from tests.listening import listening

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOOLS = {tool.name: tool for tool in TOOLSET.tools}
SITE = "http://localhost:5000"
Use = Callable[..., Awaitable[Reply]]

PAGES = {
    "/": """<title>Shop</title><header><nav aria-label=Main><a href=/two>Two</a></nav></header><main><h1>Shop</h1>
        <p>Hello <b>bold</b> words</p><form action=/sent><label>Name <input name=name></label>
        <label>Size <select name=size><option>S<option selected>M<option>L</select></label>
        <label><input type=checkbox name=yes> Agree</label><input type=password name=secret value=hunter2>
        <button>Send</button></form><table><tr><th>A<th>B<tr><td>1<td>2</table>
        <div hidden>unseen</div><p style="visibility:hidden">unseen</p></main>""",
    "/actions": """<title>Actions</title><p id=out>nothing yet</p>
        <button onclick="out.textContent = 'plain'">Plain</button>
        <button oncontextmenu="out.textContent = 'right'; return false" ondblclick="out.textContent = 'double'">Odd</button>
        <button onclick="out.textContent = 'with shift ' + event.shiftKey">Mods</button>
        <button onclick="fetch('/wait').then(r => r.text()).then(t => out.textContent = t)">Late</button>
        <button onclick="document.title = 'Renamed'; history.pushState(0, '', '/pushed')">Push</button>
        <button onclick="this.remove()">Vanish</button>
        <button onclick="location.reload()">Reload</button>
        <button disabled>Off</button><button>Twin</button><button>Twin</button>
        <iframe src=/frame width=300 height=80></iframe><div id=host></div>
        <script>host.attachShadow({mode: 'open'}).innerHTML = '<button onclick="this.textContent += 1">Shadow</button>'</script>""",
    "/frame": "<button onclick=\"this.textContent = 'Inner done'\">Inner</button>",
    "/typing": """<title>Typing</title><input id=a><input id=b type=date><input id=c type=range><textarea id=d></textarea>
        <div id=e contenteditable>rich</div><input id=f type=file multiple>
        <select id=g><option>red<option>green</select><button id=h>Press</button>
        <p id=out></p><script>addEventListener('keydown', event => out.textContent = event.key + ' ' + event.ctrlKey);
        f.onchange = async () => out.textContent = [...f.files].map(file => file.name).join() + ' ' + await f.files[0].text()</script>""",
    "/dialogs": """<title>Dialogs</title><p id=out></p><button onclick="alert('note'); out.textContent = 'told'">Alert</button>
        <button onclick="out.textContent = 'answer ' + confirm('sure?')">Confirm</button>
        <button onclick="out.textContent = 'answer ' + prompt('who?')">Prompt</button>
        <button onclick="onbeforeunload = event => event.preventDefault()">Guard</button><a href=/two>Leave</a>""",
    "/tabs": """<title>Tabs</title><a href=/two target=_blank>Blank</a>
        <button onclick="window.open('/two')">Window</button>""",
    "/long": "<title>Long</title>" + "".join(f"<p>line {n}<p>" for n in range(400))
    + "<div id=pane tabindex=0 style='height:100px;overflow:auto'>"
    + "".join(f"<p>row {n}<p>" for n in range(100)) + "</div><button>End</button>",
    "/errors": "<title>Errors</title><script>console.error('printed'); throw new Error('thrown')</script>",
    "/odd": "<title>a\u202eb</title><button>one\n+ e99 button \"two\"</button><button>" + "x" * 5000 + "</button>",
    "/crowd": "<title>Crowd</title>" + "".join(f"<button>button number {n}</button>" for n in range(3000)),
    "/blue": "<title>Blue</title><style>body{margin:0;background:#00f}</style><div id=box style='width:200px;height:100px;background:#f00'></div><div style='height:3000px'></div>",
    "/spa": "<title>Spa</title><p id=out>loading</p><script>fetch('/wait').then(r => r.text()).then(t => out.textContent = t)</script>",
    "/spot": """<title>Spot</title><p id=out></p><div style="position:fixed;left:100px;top:50px;width:20px;height:20px"
        onclick="out.textContent = `spot ${event.x} ${event.y}`"></div>""",
    "/hang": "<title>Hang</title><button onclick='while (true);'>Hang</button>",
    "/kept": """<p id=out></p><label>Name <input></label><button onclick="out.textContent = 'pressed'">Press</button><script>
        document.title = [sessionStorage.kept, localStorage.kept, document.cookie].join(" ");
        sessionStorage.kept = "tab"; localStorage.kept = "site"; document.cookie = "a=session";</script>""",
    "/two": "<title>Second</title><h1>Second</h1>",
}  # fmt: skip

SERVER = """
import http.server, json, time
PAGES = json.load(open("/workspace/pages.json"))
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in {"content-type": "text/html; charset=utf-8", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        path = self.path.partition("?")[0]
        if path in PAGES:
            self.answer(200, PAGES[path].encode())
        elif path == "/file":
            self.answer(200, b"content", content_disposition='attachment; filename="../../my report.tar.gz"')
        elif path == "/endless":
            self.answer(200, content_disposition="attachment; filename=endless")
            while True:
                self.wfile.write(bytes(1 << 16))
                time.sleep(0.02)
        elif path == "/wait":
            time.sleep(0.3)
            self.answer(200, b"waited for")
        elif path == "/stuck":
            time.sleep(60)
        elif path == "/half":
            self.answer(200, b"<title>Half</title><h1>Begun</h1>")
            self.wfile.flush()
            time.sleep(60)
        elif path == "/away":
            self.answer(302, location=self.path.partition("?")[2])
        else:
            self.answer(404, ("<title>Gone</title>" + self.path).encode())
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 5000), Handler)
print("ready", flush=True)
server.serve_forever()
"""


def user(cave: Cave, keep: Keep) -> Use:
    """Calls tools as one client; every answer is held to what all answers promise."""

    async def use(name: str, **arguments: Any) -> Reply:
        tool = TOOLS[name]
        reply = await invoke(tool, Call(cave=cave, keep=keep), arguments)
        TypeAdapter(tool.result).validate_python(reply.data, strict=True)
        assert set(reply.data) <= set(tool.output_schema["properties"])
        assert len(reply.text) <= MAX_TEXT_CHARS
        assert len(reply.data.get("outline", "")) <= 2_600
        json.dumps(reply.data, allow_nan=False, ensure_ascii=False).encode()
        return reply

    return use


@asynccontextmanager
async def served(cave: Cave) -> AsyncIterator[None]:
    """The pages above, on port 5000 of the cave."""
    await cave.write("/workspace/pages.json", json.dumps(PAGES))
    await cave.write("/workspace/server.py", SERVER)
    async with cave.process(["python3", "/workspace/server.py"]) as server:
        assert await server.receive() == (1, b"ready\n")
        yield


@asynccontextmanager
async def browsing(ghost: Ghost, **settings: Any) -> AsyncIterator[tuple[Cave, Use]]:
    """A cave of its own with the pages, and the tools on it."""
    keep = Keep()
    async with await ghost.create(CaveSpec(ephemeral=True, **settings)) as cave, served(cave):
        try:
            yield cave, user(cave, keep)
        finally:
            await keep.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(state_dir: Path) -> AsyncIterator[Ghost]:
    async with held(Ghost(backend="local", state_dir=state_dir)) as ghost:
        yield ghost


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(opened: Ghost) -> AsyncIterator[tuple[Cave, Use]]:
    """One browser for the tests that leave it whole."""
    async with held(browsing(opened)) as made:
        yield made


@pytest.fixture
def cave(shared: tuple[Cave, Use]) -> Cave:
    return shared[0]


@pytest.fixture
def use(shared: tuple[Cave, Use]) -> Use:
    return shared[1]


def ref_of(reply: Reply, words: str) -> str:
    """The reference in the one line of an outline that has these words."""
    lines = [line for line in reply.data["outline"].splitlines() if words in line]
    assert len(lines) == 1, lines
    return str(lines[0].split()[0])


def png_size(reply: Reply) -> tuple[int, int]:
    data = reply.pictures[0].data
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


# --- navigate ------------------------------------------------------------------------------------


async def test_a_page_is_told_by_its_outline(use: Use) -> None:
    reply = await use("navigate", url="localhost:5000")
    assert {key: reply.data[key] for key in ("url", "title", "status")} == {
        "url": f"{SITE}/",
        "title": "Shop",
        "status": 200,
    }
    outline = reply.data["outline"]
    words = [line.split(" ", 1)[1] if line[0] == "e" else line for line in outline.splitlines()]
    assert words == [
        "banner",
        'navigation "Main"',
        'link "Two"',
        "main",
        'h1 "Shop"',
        "Hello bold words",
        'textbox "Name"',
        'combobox "Size" = M (S | M | L)',
        'checkbox "Agree" [unchecked]',
        'textbox "secret" = (7 hidden characters)',
        'button "Send"',
        "A | B",
        "1 | 2",
    ]
    assert outline in reply.text


async def test_statuses_history_and_looking_again(use: Use) -> None:
    assert (await use("navigate", url=f"{SITE}/missing")).data["status"] == 404
    await use("navigate", url=f"{SITE}/two")
    assert (await use("navigate", action="back")).data["title"] == "Gone"
    assert (await use("navigate", action="forward")).data["title"] == "Second"
    with pytest.raises(Conflict):
        await use("navigate", action="forward")
    assert (await use("navigate", action="reload")).data["status"] == 200
    again = await use("navigate")
    assert again.data["title"] == "Second"
    assert "status" not in again.data


async def test_what_a_script_fills_is_waited_for(use: Use) -> None:
    reply = await use("navigate", url=f"{SITE}/spa")
    assert reply.data["outline"] == "waited for"


async def test_a_page_that_does_not_complete_is_told_as_far_as_it_came(use: Use) -> None:
    reply = await use("navigate", url=f"{SITE}/half", timeout_s=3)
    assert reply.data["loading"] is True
    assert reply.data["outline"] == 'h1 "Begun"'


async def test_a_server_that_does_not_answer_is_given_up_in_time(use: Use) -> None:
    await use("navigate", url=f"{SITE}/two")
    started = time.monotonic()
    with pytest.raises(TimedOut, match="did not answer"):
        await use("navigate", url=f"{SITE}/stuck", timeout_s=2)
    assert time.monotonic() - started < 30
    assert (await use("navigate")).data["title"] == "Second"


@pytest.mark.parametrize(
    ("url", "error", "code"),
    [
        ("http://localhost:5999/", NotFound, "connection_refused"),
        ("http://example.org/", PermissionRefused, "network_refused"),
        ("http://192.0.2.1/", PermissionRefused, "network_refused"),
        ("file:///etc/passwd", PermissionRefused, "permission_refused"),
        ("FILE:///etc/passwd", PermissionRefused, "permission_refused"),
        ("view-source:http://localhost:5000/", PermissionRefused, "permission_refused"),
        ("chrome://version", PermissionRefused, "permission_refused"),
        ("devtools://devtools", PermissionRefused, "permission_refused"),
        ("data:text/html,hi", PermissionRefused, "permission_refused"),
        ("javascript:alert(1)", PermissionRefused, "permission_refused"),
        (f"{SITE}/away?file:///etc/passwd", PermissionRefused, "permission_refused"),
        (f"{SITE}/away?data:text/html,hi", PermissionRefused, "permission_refused"),
        ("http://", InvalidArgument, "invalid_argument"),
        ("two words", InvalidArgument, "invalid_argument"),
        ("http://localhost:5000/" + "x" * 3000, InvalidArgument, "invalid_argument"),
    ],
)
async def test_addresses_that_are_refused(
    use: Use, url: str, error: type[GhostError], code: str
) -> None:
    with pytest.raises(error) as refused:
        await use("navigate", url=url)
    assert refused.value.code == code
    assert (await use("navigate", url=f"{SITE}/two")).data["title"] == "Second"


async def test_errors_in_the_console_are_told_once(use: Use) -> None:
    reply = await use("navigate", url=f"{SITE}/errors")
    assert sorted(reply.data["events"]) == ["console error: printed", "console error: thrown"]
    assert "events" not in (await use("navigate")).data


# --- click ---------------------------------------------------------------------------------------


async def test_a_click_tells_what_changed_and_nothing_else(use: Use) -> None:
    page = await use("navigate", url=f"{SITE}/actions")
    plain = await use("click", ref=ref_of(page, '"Plain"'))
    changes = plain.data["changes"].splitlines()
    assert [line for line in changes if "[focused]" not in line] == ["+ plain", "- nothing yet"]
    assert "outline" not in plain.data
    same = await use("click", text="Plain")
    assert same.data["changes"] == ""
    assert "nothing changed" in same.text


async def test_ways_to_click(use: Use) -> None:
    await use("navigate", url=f"{SITE}/actions")
    assert "+ right" in (await use("click", text="Odd", button="right")).data["changes"]
    assert "+ double" in (await use("click", text="odd", count=2)).data["changes"]
    shifted = await use("click", selector="text=Mods", modifiers=["Shift"])
    assert "+ with shift true" in shifted.data["changes"]
    assert "+ waited for" in (await use("click", text="Late")).data["changes"]
    inner = await use("click", text="Inner")
    assert '"Inner done"' in inner.data["changes"]
    assert '"Shadow1"' in (await use("click", text="Shadow")).data["changes"]
    await use("navigate", url=f"{SITE}/spot")
    assert "+ spot 105 55" in (await use("click", x=105, y=55)).data["changes"]


async def test_a_page_that_goes_on_by_itself(use: Use) -> None:
    await use("navigate", url=f"{SITE}/actions")
    pushed = await use("click", text="Push")
    assert (pushed.data["url"], pushed.data["title"]) == (f"{SITE}/pushed", "Renamed")
    assert "outline" not in pushed.data
    await use("navigate", url=f"{SITE}/actions")
    assert 'h1 "Second"' not in (await use("click", text="Reload")).data["outline"]
    await use("navigate", url=f"{SITE}/")
    followed = await use("click", text="Two")
    assert followed.data["title"] == "Second"
    assert followed.data["outline"] == 'h1 "Second"'


async def test_references_live_as_long_as_their_elements(use: Use) -> None:
    page = await use("navigate", url=f"{SITE}/actions")
    plain, vanish = ref_of(page, '"Plain"'), ref_of(page, '"Vanish"')
    gone = await use("click", ref=vanish)
    assert f'- {vanish} button "Vanish"' in gone.data["changes"]
    assert ref_of(await use("navigate"), '"Plain"') == plain
    with pytest.raises(NotFound, match='"Vanish".*no longer') as stale:
        await use("click", ref=vanish)
    assert stale.value.code == "stale_reference"
    assert "button" in stale.value.hint
    again = await use("navigate", action="reload")
    assert ref_of(again, '"Plain"') != plain


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, InvalidArgument, "one of ref"),
        ({"ref": "e1", "text": "x"}, InvalidArgument, "one of ref"),
        ({"x": 1}, InvalidArgument, "one of ref"),
        ({"ref": "button"}, InvalidArgument, "not a reference"),
        ({"ref": "e99999"}, NotFound, "was ever told"),
        ({"text": "Twin"}, InvalidArgument, "2 elements match"),
        ({"text": "no such words"}, NotFound, "nothing on the page"),
        ({"selector": "button"}, InvalidArgument, "elements match"),
        ({"selector": "###"}, InvalidArgument, "not a selector"),
        ({"selector": "#none"}, NotFound, "nothing on the page"),
        ({"text": "Plain", "count": 9}, InvalidArgument, "count"),
        ({"text": "Plain", "timeout_s": 0.1}, InvalidArgument, "timeout_s"),
        ({"text": "Plain", "element": 1}, InvalidArgument, "unknown argument 'element'"),
        ({"text": "Off", "timeout_s": 2}, TimedOut, "not enabled"),
    ],
)
async def test_clicks_that_cannot_be(
    use: Use, arguments: dict[str, Any], error: type[GhostError], message: str
) -> None:
    await use("navigate", url=f"{SITE}/actions")
    with pytest.raises(error, match=message):
        await use("click", **arguments)


async def test_dialogs_are_answered_and_told(use: Use) -> None:
    await use("navigate", url=f"{SITE}/dialogs")
    told = await use("click", text="Alert")
    assert told.data["events"] == ['dialog: alert "note" accepted']
    assert "+ told" in told.data["changes"]
    assert "+ answer false" in (await use("click", text="Confirm")).data["changes"]
    sure = await use("click", text="Confirm", dialog="accept")
    assert "+ answer true" in sure.data["changes"]
    assert "+ answer null" in (await use("click", text="Prompt")).data["changes"]
    named = await use("click", text="Prompt", dialog="Ada")
    assert "+ answer Ada" in named.data["changes"]
    await use("click", text="Guard")
    assert (await use("click", text="Leave")).data["title"] == "Second"


async def test_tabs_are_opened_chosen_and_closed(use: Use) -> None:
    page = await use("navigate", url=f"{SITE}/tabs")
    assert "tabs" not in page.data
    blank = await use("click", text="Blank")
    assert (blank.data["title"], len(blank.data["tabs"])) == ("Second", 2)
    assert "(current)" in blank.data["tabs"][1]
    first = await use("navigate", tab=1)
    assert first.data["title"] == "Tabs"
    popped = await use("click", text="Window")
    assert (popped.data["title"], len(popped.data["tabs"])) == ("Second", 3)
    # A reference says in which tab it stands.
    assert (await use("click", ref=ref_of(page, "Window"))).data["title"] == "Second"
    with pytest.raises(NotFound, match="no tab 9"):
        await use("navigate", tab=9)
    while len((await use("navigate")).data.get("tabs", [])) > 1:
        await use("navigate", action="close_tab")
    new = await use("navigate", url=f"{SITE}/two", action="new_tab")
    assert len(new.data["tabs"]) == 2
    assert (await use("navigate", action="close_tab")).data["title"] == "Tabs"


async def test_downloads_are_kept_in_the_cave_under_a_safe_name(cave: Cave, use: Use) -> None:
    await use("navigate", url=f"{SITE}/two")
    (first,) = (await use("navigate", url=f"{SITE}/file")).data["events"]
    (second,) = (await use("navigate", url=f"{SITE}/file")).data["events"]
    for told, mark in ((first, ""), (second, " (1)")):
        path = told.partition("saved as ")[2].partition(",")[0]
        assert path.startswith("/home/cave/Downloads/")
        assert path.endswith(f"my report{mark}.tar.gz")
        assert (await cave.read(path)).data == b"content"
    assert (await cave.exec("ls -A ~/Downloads | wc -l")).stdout.strip() == "2"


# --- type ----------------------------------------------------------------------------------------


async def test_ways_to_type(cave: Cave, use: Use) -> None:
    page = await use("navigate", url=f"{SITE}/typing")
    first = page.data["outline"].split()[0]
    assert "= one" in (await use("type", ref=first, text="one")).data["changes"]
    assert "= one two" in (await use("type", ref=first, text=" two")).data["changes"]
    assert "= three" in (await use("type", ref=first, text="three", clear=True)).data["changes"]
    assert "= 3hree" in (await use("type", keys=["Home", "Delete", "3"])).data["changes"]
    chord = await use("type", keys=["Control+A"])
    assert "+ a true" in chord.data["changes"]
    assert "+ k true" in (await use("type", keys=["Ctrl+K"])).data["changes"]
    assert "= x" in (await use("type", text="x")).data["changes"]
    assert "= 2026-02-03" in (await use("type", selector="#b", text="2026-02-03")).data["changes"]
    assert "= 70" in (await use("type", selector="#c", text="70")).data["changes"]
    long = await use("type", selector="#d", text="word " * 1000)
    assert "typed 5000 characters" in long.text
    assert "= rich text" in (await use("type", selector="#e", text=" text")).data["changes"]
    assert "= green" in (await use("type", selector="#g", text="green")).data["changes"]
    await cave.write("/workspace/up.txt", "uploaded")
    chosen = await use("type", selector="#f", text="/workspace/up.txt")
    assert "+ up.txt uploaded" in chosen.data["changes"]


async def test_a_form_is_sent(use: Use) -> None:
    await use("navigate", url=f"{SITE}/")
    sent = await use("type", selector="[name=name]", text="Ada", submit=True)
    assert sent.data["url"] == f"{SITE}/sent?name=Ada&size=M&secret=hunter2"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, InvalidArgument, "give text or keys"),
        ({"ref": "e1", "selector": "#a", "text": "x"}, InvalidArgument, "not both"),
        ({"selector": "#a", "keys": ["Nokey"]}, InvalidArgument, "Unknown key"),
        ({"selector": "#h", "text": "x"}, InvalidArgument, "takes no text"),
        ({"selector": "#out", "text": "x"}, InvalidArgument, "takes no text"),
        ({"selector": "#g", "text": "blue"}, TimedOut, "did not find some options"),
        ({"selector": "#f", "text": "/workspace/none.txt"}, NotFound, "none.txt"),
        ({"selector": "#f", "text": ""}, InvalidArgument, "paths in the cave"),
        ({"selector": "#a", "text": "x" * 200_000}, InvalidArgument, "at most"),
    ],
)
async def test_typing_that_cannot_be(
    use: Use, arguments: dict[str, Any], error: type[GhostError], message: str
) -> None:
    await use("navigate", url=f"{SITE}/typing")
    with pytest.raises(error, match=message):
        await use("type", **arguments)


# --- scroll --------------------------------------------------------------------------------------


async def test_scrolling_tells_what_came_into_view(use: Use) -> None:
    page = await use("navigate", url=f"{SITE}/long")
    assert page.data["outline"].startswith("line 0\nline 1\n")
    assert "more lines: scroll" in page.data["outline"]
    down = await use("scroll")
    assert down.data["position"].startswith("640 px above")
    assert "line 0" not in down.data["outline"].splitlines()
    assert (await use("scroll", direction="down", amount=100)).data["position"].startswith("740 px")
    assert (await use("scroll", direction="up")).data["position"].startswith("100 px")
    end = await use("scroll", to="bottom")
    assert end.data["position"].endswith(", 0 px below")
    assert 'button "End"' in end.data["outline"]
    assert "did not move" in (await use("scroll")).data["position"]
    pane = await use("scroll", selector="#pane", to="bottom")
    assert "row 99" in pane.data["outline"]
    top = await use("scroll", to="top")
    assert top.data["position"].startswith("0 px above")
    shown = await use("scroll", selector="text=End")
    assert 'button "End"' in shown.data["outline"]


# --- screenshot ----------------------------------------------------------------------------------


async def test_screenshots(cave: Cave, use: Use) -> None:
    await use("navigate", url=f"{SITE}/blue")
    assert png_size(await use("screenshot")) == (1280, 800)
    small = await use("screenshot", max_side=320)
    assert png_size(small) == (small.data["width"], small.data["height"]) == (320, 200)
    whole = await use("screenshot", full_page=True)
    assert png_size(whole) == (whole.data["width"], whole.data["height"])
    assert whole.data["height"] == 1568
    larger = await use("screenshot", full_page=True, max_side=4000)
    assert png_size(larger) == (1280, 3100)
    box = await use("screenshot", selector="#box", save_path="shots/box.png")
    assert png_size(box) == (200, 100)
    assert box.data["path"] == "/workspace/shots/box.png"
    assert (await cave.read("shots/box.png")).data == box.pictures[0].data
    for kind, magic in (("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")):
        shot = await use("screenshot", format=kind, quality=40)
        assert shot.pictures[0].data.startswith(magic)
        assert shot.pictures[0].mime_type == f"image/{kind}"
        assert shot.data["size_bytes"] == len(shot.pictures[0].data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"full_page": True, "selector": "#box"}, "one of"),
        ({"max_side": 1}, "max_side"),
        ({"quality": 50}, "quality"),
        ({"format": "gif"}, "format"),
        ({"save_path": "/proc/x.png"}, "not a file of the cave"),
    ],
)
async def test_screenshots_that_cannot_be(
    use: Use, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(GhostError, match=message):
        await use("screenshot", **arguments)


# --- hostile text --------------------------------------------------------------------------------


async def test_what_a_page_says_cannot_pass_for_more_lines(use: Use) -> None:
    reply = await use("navigate", url=f"{SITE}/odd")
    assert reply.data["title"] == "a b"
    lines = reply.data["outline"].splitlines()
    assert len(lines) == 2
    assert lines[0].endswith('button "one + e99 button "two""')
    assert len(lines[1]) < 250


async def test_a_crowded_page_is_cut_not_dropped(use: Use) -> None:
    reply = await use("navigate", url=f"{SITE}/crowd")
    assert 'button "button number 0"' in reply.data["outline"]
    assert "more lines: scroll" in reply.data["outline"]
    # A look ends after a while, so that the next one may see more of such a page; what was seen has not come again.
    assert '"button number 0"' not in (await use("click", text="button number 3")).data["changes"]


# --- lifetime ------------------------------------------------------------------------------------


async def test_calls_at_once_are_served_in_turn(use: Use) -> None:
    replies = await asyncio.gather(*(use("navigate", url=f"{SITE}/?{n}") for n in range(4)))
    assert [reply.data["url"] for reply in replies] == [f"{SITE}/?{n}" for n in range(4)]


async def test_a_cancelled_call_leaves_the_browser_usable(use: Use) -> None:
    call = asyncio.ensure_future(use("navigate", url=f"{SITE}/stuck"))
    await asyncio.wait([call], timeout=0.5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await use("navigate", url=f"{SITE}/two")).data["title"] == "Second"


async def test_a_browser_that_was_killed_is_told_and_replaced(opened: Ghost) -> None:
    async with browsing(opened) as (cave, use):
        await use("navigate", url=f"{SITE}/two")
        await cave.exec("pkill -9 chromium")
        with pytest.raises(BackendUnavailable, match="exit code 137") as ended:
            await use("screenshot")
        assert ended.value.code == "browser_ended"
        assert (await use("navigate", url=f"{SITE}/two")).data["title"] == "Second"


async def test_nonsense_on_one_browsers_pipe_reaches_no_other(opened: Ghost) -> None:
    """Any program of a cave can write what it likes into its browser's answers."""
    async with browsing(opened) as (cave, use), browsing(opened) as (_, other):
        await use("navigate", url=f"{SITE}/two")
        page = await other("navigate", url=f"{SITE}/typing")
        await other("type", selector="#a", text="still here")
        attack = "printf '{\"id\":99999}\\0' > /proc/$(pgrep -o -f remote-debugging-pipe)/fd/4"
        assert (await cave.exec(attack)).exit_code == 0
        with pytest.raises(BackendUnavailable, match="its driver ended"):
            await use("navigate", url=f"{SITE}/two", timeout_s=5)
        assert "= still here" in (await other("navigate")).data["outline"]
        assert page.data["title"] == "Typing"
        assert (await use("navigate", url=f"{SITE}/two")).data["title"] == "Second"


async def test_what_is_no_message_never_reaches_the_driver(opened: Ghost) -> None:
    async with browsing(opened) as (cave, use):
        await use("navigate", url=f"{SITE}/two")
        pipe = "> /proc/$(pgrep -o -f remote-debugging-pipe)/fd/4"
        for junk in (
            "printf 'junk\\0{\\0[]\\0'",
            "head -c 50M /dev/zero | tr '\\0' x; printf '\\0'",
        ):
            assert (await cave.exec(f"({junk}) {pipe}")).exit_code == 0
            assert (await use("navigate")).data["title"] == "Second"


async def test_a_page_that_hangs_loses_its_tab_in_time(opened: Ghost) -> None:
    async with browsing(opened) as (_, use):
        await use("navigate", url=f"{SITE}/hang")
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(TimedOut) as late:
                await use("click", text="Hang", timeout_s=3)
            assert time.monotonic() - started < 30
            assert "does not react" in late.value.hint
            reply = await use("navigate", url=f"{SITE}/two")
            assert reply.data["title"] == "Second"
            await use("navigate", url=f"{SITE}/hang")


async def test_a_download_that_never_ends_holds_nobody_up(opened: Ghost) -> None:
    async with browsing(opened) as (_, use):
        await use("navigate", url=f"{SITE}/two")
        (told,) = (await use("navigate", url=f"{SITE}/endless")).data["events"]
        assert "is being downloaded" in told
        assert (await use("navigate", url=f"{SITE}/")).data["title"] == "Shop"


async def test_two_caves_do_not_see_each_other(opened: Ghost) -> None:
    async with browsing(opened) as (cave, use), browsing(opened) as (other_cave, other):
        await cave.write("/workspace/mine", "")
        await use("navigate", url=f"{SITE}/file")
        await other("navigate", url=f"{SITE}/two")
        assert (await other_cave.exec("ls -A /workspace ~/Downloads")).stdout.count("report") == 0
        assert "tabs" not in (await other("navigate")).data


async def test_nothing_listens_and_nothing_is_left(
    opened: Ghost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # others have files of theirs in the usual place
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before, children = listening(), _children()
    with socket.create_server(("127.0.0.1", 0)):
        assert listening() > before
    async with browsing(opened) as (cave, use):
        await use("navigate", url=f"{SITE}/file")
        assert listening() == before
        inside = (await cave.exec("cat /proc/net/tcp /proc/net/tcp6")).stdout
        assert [line.split()[1] for line in inside.splitlines() if " 0A " in line] == [
            "0100007F:1388"
        ]
        assert _left(tmp_path) == []
        assert _children() > children
    with anyio.fail_after(60):
        while _children() != children:
            await asyncio.sleep(0.05)
    assert _left(tmp_path) == []


def _left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _children() -> set[int]:
    """Drivers and bridges: what this process started besides caves."""
    found = psutil.Process().children(recursive=True)
    return {child.pid for child in found if re.search("run-driver|bridge", _line(child))}


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


async def test_a_hub_that_is_killed_leaves_no_driver(state_dir: Path) -> None:
    program = f"""if True:
        import asyncio, pathlib
        from ghost_mcp import CaveSpec, Ghost
        from ghost_mcp.tool import Call, invoke
        from ghost_servers.browser import TOOLSET
        async def main():
            async with Ghost(backend="local", state_dir=pathlib.Path({str(state_dir)!r})) as ghost:
                call = Call(cave=await ghost.create(CaveSpec(ephemeral=True)))
                await invoke(TOOLSET.tools[0], call, {{"url": "about:blank"}})
                print("ready", flush=True)
                await asyncio.sleep(60)
        asyncio.run(main())"""
    hub = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert hub.stdout is not None
    try:
        assert await hub.stdout.readline() == b"ready\n"
        started = psutil.Process(hub.pid).children(recursive=True)
        assert any("run-driver" in _line(process) for process in started)
    finally:
        hub.kill()
        await hub.communicate()  # to the end of its pipe, which closes it
    _, alive = await asyncio.to_thread(psutil.wait_procs, started, timeout=60)
    assert alive == []


async def test_a_cave_without_chromium_says_so(opened: Ghost, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    empty = tmp_path / "empty"
    empty.write_text("")
    hidden = {"/usr/lib/chromium": str(nothing), "/usr/bin/chromium": str(empty)}
    async with browsing(opened, mounts=hidden) as (_, use):
        with pytest.raises(Unsupported, match="no Chromium") as missing:
            await use("navigate", url=SITE)
        assert "apt-get install chromium" in missing.value.hint


async def test_a_dead_cave_says_so(opened: Ghost) -> None:
    keep = Keep()
    cave = await opened.create(CaveSpec(ephemeral=True))
    use = user(cave, keep)
    await use("navigate", url="about:blank")
    await cave.destroy()
    with pytest.raises(GhostError) as gone:
        await use("navigate", url="about:blank")
    assert gone.value.code in ("cave_gone", "cave_not_found")
    await keep.aclose()
