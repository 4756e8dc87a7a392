"""A browser that runs when its cave's desktop is opened moves onto it: nothing of it is lost, no call fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from ghost_mcp import Ghost
from ghost_mcp.errors import NotFound
from tests.servers.test_browser import SITE, Use, browsing, ref_of

# In place of a desktop, for which few machines have the programs: the browser ends and starts again all the same. On a
# real one, people watch it in tests/e2e.
DESKTOP = """
services:
  vnc:
    command: |
      exec python3 -c 'import os, socket; s = socket.socket(socket.AF_UNIX); s.bind(os.environ["GHOST_SOCKET"])
      s.listen()
      while True: s.accept()'
"""


@pytest.fixture(autouse=True)
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = tmp_path / "services.yaml"
    declared.write_text(DESKTOP)
    monkeypatch.setenv("GHOST_SERVICES", str(declared))


async def until_moved(use: Use) -> dict[str, Any]:
    """The answer that tells of it. Every call until then is answered, too."""
    with anyio.fail_after(60):
        while True:
            told = (await use("navigate")).data
            if any("moved onto it" in event for event in told.get("events", ())):
                return told


async def test_it_goes_on_with_all_it_had(ghost: Ghost) -> None:
    async with browsing(ghost) as (cave, use):
        await use("navigate", url=f"{SITE}/two")
        kept = await use("navigate", url=f"{SITE}/kept")
        assert kept.data["title"] == ""
        await use("type", ref=ref_of(kept, "Name"), text="typed")
        await use("navigate", url=f"{SITE}/long", action="new_tab")
        assert "is being downloaded" in str((await use("navigate", url=f"{SITE}/endless")).data)
        await use("navigate", tab=1)
        await cave.service("vnc").start()
        told = await until_moved(use)
        assert told["title"] == "tab site a=session"
        assert 'textbox "Name" = typed' in told["outline"]
        assert told["tabs"] == [f"1: {SITE}/kept (current)", f"2: {SITE}/long"]
        assert "endless: cancelled: the browser moved" in str(told["events"])
        # What was told before still stands for the same.
        pressed = await use("click", ref=ref_of(kept, "Press"))
        assert "+ pressed" in pressed.data["changes"]
        assert (await use("navigate", action="back")).data["title"] == "Second"
        with pytest.raises(NotFound, match="is no longer on the page"):
            await use("click", ref=ref_of(kept, "Press"))


async def test_calls_meanwhile_do_not_fail(ghost: Ghost) -> None:
    async with browsing(ghost) as (cave, use):
        await use("navigate", url=SITE)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cave.service("vnc").start)
            told = await until_moved(use)
        assert told["title"] == "Shop"
        left = await cave.exec("ls -d /tmp/.ghost-browser.* | wc -l")
        assert left.stdout == "1\n"
