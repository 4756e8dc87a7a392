# Only this file asks a warden about commands. Every question has a bound; what is cancelled is dead.
"""Starting commands, waiting for them with progress, feeding and ending them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.errors import TimedOut
from ghost_mcp.outputs import whole_number
from ghost_mcp.reply import EXCERPT_CHARS
from ghost_servers.shell.report import Report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ghost_mcp.cave import Cave
    from ghost_mcp.tool import Call

# A quick command ends within this: then one question is all it takes.
FIRST_S = 0.05
PROGRESS_S = 2.0
# A program that was given input has answered when it wrote something and then nothing for so long.
QUIET_S = 0.25
PATIENCE_S = 15.0
REMEMBERED = 64
KILL = 9


class Memory:
    """What the shell server remembers of a cave: how much output was shown, how often memory ran out."""

    def __init__(self) -> None:
        self.oom_kills: int | None = None
        self._seen: dict[str, dict[str, int]] = {}

    def seen(self, command_id: str) -> dict[str, int]:
        """The size of each channel when the command was last shown."""
        return self._seen.get(command_id, {})

    def show(self, report: Report) -> None:
        self._seen.pop(report.id, None)
        self._seen[report.id] = report.sizes
        for old in list(self._seen)[:-REMEMBERED]:
            del self._seen[old]

    async def aclose(self) -> None:
        self._seen.clear()


async def ask(
    cave: Cave, op: str, head: Mapping[str, Any], body: bytes = b"", *, wait_s: float = 0.0
) -> tuple[dict[str, Any], bytes]:
    """One question, answered ``wait_s`` from now at the latest. Raises TimedOut for a cave that is silent."""
    with anyio.move_on_after(wait_s + PATIENCE_S):
        return await cave.call(op, head, body)
    raise TimedOut(f"cave {cave.name} does not answer", hint="It may be paused or overloaded.")


async def start(cave: Cave, head: Mapping[str, Any], body: bytes, wait_s: float) -> Report:
    """Start a command. Not to be cancelled before its id is known: else nobody could end it."""
    asked = {**head, "keep": True, "wait_s": min(FIRST_S, wait_s), "excerpt": EXCERPT_CHARS}
    with anyio.CancelScope(shield=True):
        answer = await ask(cave, "exec", asked, body, wait_s=FIRST_S)
    return Report.parse(*answer)


async def wait(
    cave: Cave, command_id: str, wait_s: float = 0.0, since: Mapping[str, int] | None = None
) -> Report:
    """The command when it has ended, or in ``wait_s``; of its output what came after ``since``."""
    head = {
        "id": command_id,
        "action": "wait",
        "wait_s": wait_s,
        "since": since or {},
        "excerpt": EXCERPT_CHARS,
    }
    return Report.parse(*await ask(cave, "command", head, wait_s=wait_s))


async def follow(
    call: Call, report: Report, until: float, since: Mapping[str, int], *, quiet: bool = False
) -> Report:
    """Wait for its end until the clock says ``until``, reporting progress.

    With ``quiet`` also until it has written something and then paused.
    """
    before, told_at = report.sizes, anyio.current_time()
    while report.running and (left := until - anyio.current_time()) > 0:
        last = report.sizes
        report = await wait(
            call.cave, report.id, min(QUIET_S if quiet else PROGRESS_S, left), since
        )
        if quiet and report.sizes == last != before:
            break
        if report.running and anyio.current_time() - told_at >= PROGRESS_S * 0.9:
            told_at = anyio.current_time()
            await call.progress(report.duration_s, None, report.last_line() or "running")
    return report


async def feed(cave: Cave, command_id: str, data: bytes, *, eof: bool) -> None:
    """Give a running command input, and with ``eof`` its end."""
    await ask(cave, "command", {"id": command_id, "action": "input", "eof": eof}, data)


async def send_signal(cave: Cave, command_id: str, number: int) -> int:
    """Signal everything the command started; returns how many processes there are. 0 only counts."""
    head = {"id": command_id, "action": "signal", "signal": number}
    answer, _ = await ask(cave, "command", head)
    return whole_number(answer, "reached")
