"""The browser, group B: a hostile page holds nobody up, and nothing but its own cave is in its reach."""

from __future__ import annotations

import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

from ghost_mcp import Cave, CaveSpec, Ghost, GhostError
from ghost_mcp.reply import Reply
from ghost_mcp.tool import Call, Keep, invoke
from ghost_servers.browser import TOOLSET
from tests.listening import listening

pytestmark = pytest.mark.slow

Use = Callable[..., Coroutine[Any, Any, Reply]]
TOOLS = {tool.name: tool for tool in TOOLSET.tools}
SERVER = "exec python3 -m http.server 5000 --bind 127.0.0.1"
READY = "for i in $(seq 600); do (echo >/dev/tcp/127.0.0.1/5000) 2>/dev/null && exit 0; sleep .05; done; exit 1"

PAGE = """<!doctype html><title>Form</title><h1>Form</h1>
<form onsubmit="event.preventDefault(); out.textContent = 'hello ' + who.value">
<label>Name <input id=who name=who></label> <button>Send</button></form><p id=out></p>
<div style="height:3000px"></div><a href="second.html">The end</a>"""


@asynccontextmanager
async def browsing(cave: Cave, **pages: str) -> AsyncIterator[Use]:
    """The browser tools on a cave whose own server has these pages."""
    for name, text in pages.items():
        await cave.write(f"{name}.html", text)
    await cave.call("exec", {"line": SERVER, "keep": True, "wait_s": 0})
    assert (await cave.exec(READY)).exit_code == 0
    keep = Keep()

    async def use(name: str, /, **arguments: Any) -> Reply:
        reply = await invoke(TOOLS[name], Call(cave=cave, keep=keep), arguments)
        assert len(reply.text) <= 8000
        return reply

    try:
        yield use
    finally:
        await keep.aclose()


def png_size(data: bytes) -> tuple[int, int]:
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


async def test_a_form_is_filled_and_looked_at(cave: Cave) -> None:
    async with browsing(cave, index=PAGE, second="<title>Second</title><h1>Second</h1>") as use:
        opened = await use("navigate", url="http://localhost:5000/")
        assert (opened.data["status"], opened.data["title"]) == (200, "Form")
        ref = next(
            word
            for line in opened.data["outline"].splitlines()
            if "textbox" in line
            for word in line.split()
            if word[0] == "e" and word[1:].isdigit()
        )
        await use("type", ref=ref, text="Ada")
        sent = await use("click", text="Send")
        assert "hello Ada" in sent.text
        assert "Form" not in sent.data.get("outline", "")  # only what changed is told
        scrolled = await use("scroll", to="bottom")
        assert "The end" in scrolled.text
        for kind, magic in (("png", b"\x89PNG"), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF")):
            shot = await use("screenshot", format=kind)
            assert shot.pictures[0].data.startswith(magic)
        whole = await use("screenshot", full_page=True, save_path="page.png")
        assert max(png_size(whole.pictures[0].data)) <= 1568
        assert (await cave.read("page.png")).data == whole.pictures[0].data
        assert (await use("click", text="The end")).data["title"] == "Second"
        assert (await use("navigate", action="back")).data["title"] == "Form"
        with pytest.raises(GhostError):
            await use("click", ref="e9999")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "view-source:http://localhost:5000/",
        "chrome://version",
        "javascript:alert(1)",
        "data:text/html,x",
        "devtools://x",
        "ftp://x/",
    ],
)
async def test_b1_schemes_are_refused(cave: Cave, url: str) -> None:
    async with browsing(cave, index="<title>Still</title>") as use:
        with pytest.raises(GhostError):
            await use("navigate", url=url)
        assert (await use("navigate", url="http://localhost:5000/")).data["title"] == "Still"


async def test_b1_a_page_cannot_lead_to_a_file(cave: Cave) -> None:
    trap = "<title>Trap</title><iframe src='file:///etc/passwd'></iframe><script>location = 'file:///etc/passwd'</script>"
    async with browsing(cave, index=trap) as use:
        opened = await use("navigate", url="http://localhost:5000/")
        assert "root:x" not in opened.text
        assert not opened.data["url"].startswith("file:")


async def test_b3_nothing_listens_on_the_host_and_caves_do_not_meet(ghost: Ghost) -> None:
    before = listening()
    async with AsyncExitStack() as stack:
        uses = []
        for text in ("first", "second"):
            cave = await ghost.create(CaveSpec(ephemeral=True))
            stack.push_async_callback(cave.destroy)
            uses.append(
                await stack.enter_async_context(
                    browsing(
                        cave,
                        index=f"<title>{text}</title><script>document.cookie = '{text}=1'; document.title += document.cookie</script>",
                    )
                )
            )
        titles = [
            (await use("navigate", url="http://localhost:5000/")).data["title"] for use in uses
        ]
        assert titles == ["firstfirst=1", "secondsecond=1"]
        assert listening() - before == set()


@pytest.mark.parametrize(
    "script",
    [
        "while (true) alert('again')",
        "for (let i = 0; i < 1000; i++) window.open('about:blank')",
        "while (true) {}",
        "let a = []; while (true) a.push(new Array(1e6).fill(i = a.length))",
    ],
    ids=["alerts", "popups", "loop", "memory"],
)
async def test_b4_a_hostile_page_holds_nobody_up(cave: Cave, script: str) -> None:
    """The call ends in its time, and the next one works."""
    async with browsing(
        cave,
        index=f"<title>Bad</title><body onclick=''><script>{script}</script>",
        good="<title>Good</title>",
    ) as use:
        start = time.monotonic()
        try:
            await use("navigate", url="http://localhost:5000/", timeout_s=5)
        except GhostError as exc:
            assert exc.code != "internal"
        assert time.monotonic() - start < 45  # where the page itself would have no end
        with anyio.fail_after(60):
            while True:
                try:
                    opened = await use(
                        "navigate", url="http://localhost:5000/good.html", timeout_s=15
                    )
                    break
                except GhostError as exc:
                    assert exc.code != "internal"
        assert opened.data["title"] == "Good"


async def test_a_browser_that_died_is_started_again(cave: Cave) -> None:
    async with browsing(cave, index="<title>Here</title>") as use:
        await use("navigate", url="http://localhost:5000/")
        await cave.exec("pkill -9 chromium")
        with anyio.fail_after(60):
            while True:
                try:
                    opened = await use("navigate", url="http://localhost:5000/")
                    break
                except GhostError as exc:
                    assert exc.code != "internal"
        assert opened.data["title"] == "Here"
