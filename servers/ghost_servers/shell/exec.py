"""exec: run a command, or go on with one that runs."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from ghost_mcp.errors import GhostError, InvalidArgument, LimitExceeded
from ghost_mcp.reply import Reply
from ghost_mcp.tool import Call, tool
from ghost_servers.shell import changes as files
from ghost_servers.shell import commands
from ghost_servers.shell.commands import Memory

if TYPE_CHECKING:
    from ghost_servers.shell.report import Report

MAX_STDIN = 3 << 16
# The head of one frame of the link holds the question.
MAX_HEAD_BYTES = 60_000
TERMINAL = [40, 120]
MAX_SECONDS = 86_400
SIGKILLED = 137
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")


class ExecResult(TypedDict, total=False):
    exit_code: int
    stdout: str
    stderr: str
    duration_s: float
    command_id: str
    running: bool
    timed_out: bool
    session: str
    cwd: str
    note: str
    stdout_size: int
    stderr_size: int
    stdout_uri: str
    stderr_uri: str
    changed: files.Changed


def _seconds(value: float | None) -> float | None:
    if value is not None and not 0 <= value <= MAX_SECONDS:
        raise PydanticCustomError("range", f"must be 0 to {MAX_SECONDS} seconds")
    return value


@tool(title="Run a command", effect="destroy", open_world=True, result=ExecResult)
async def exec_(
    call: Call,
    *,
    command: Annotated[str | list[str] | None, Field(description="Shell line, or argv.")] = None,
    session: str | None = None,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    stdin: str | None = None,
    eof: Annotated[bool | None, Field(description="Close its input after stdin.")] = None,
    timeout_s: Annotated[
        float, Field(description="Then hands back what still runs."), AfterValidator(_seconds)
    ] = 30,
    hard_timeout_s: Annotated[
        float | None, Field(description="Then kills it."), AfterValidator(_seconds)
    ] = None,
    pty: bool = False,
    background: bool = False,
    command_id: Annotated[str | None, Field(description="Wait for this one instead.")] = None,
    changes: Annotated[bool, Field(description="List the files it changed.")] = False,
) -> Reply:
    """Run a shell line, or a program, in a fresh process in /workspace or in a session.

    A failing command is a result: see exit_code. What still runs has a command_id: poll, feed or kill it.
    Long output is cut: read or search its URI with the file tools.
    """
    memory = call.keep.get("shell", Memory)
    if memory.oom_kills is None:
        memory.oom_kills = await _oom_kills(call)
    if command_id is not None:
        _only(command, session, cwd, env, hard_timeout_s, pty, background, changes)
        report, since = await _continue(call, memory, command_id, stdin, eof, timeout_s)
        return _reply(call, memory, report, await _why(call, memory, report), since=since)
    head = {
        "line" if isinstance(command, str) else "argv": command,
        "cwd": cwd,
        "env": env,
        "session": session,
        "timeout_s": hard_timeout_s,
        "stdin": _input_kind(stdin, eof, kept_open=background or pty),
        "pty": TERMINAL if pty else None,
    }
    _check(head)
    watched = cwd if cwd is not None and session is None else "/workspace"
    before = await files.snapshot(call.cave, watched) if changes else None
    report = await _run(call, head, _input(stdin), 0.0 if background else timeout_s)
    extra: dict[str, Any] = await _why(call, memory, report)
    if before is not None:
        extra["changed"] = files.compare(before, await files.snapshot(call.cave, watched))
    return _reply(call, memory, report, extra)


def _only(*others: object) -> None:
    if any(other not in (None, False) for other in others):
        raise InvalidArgument(
            "command_id goes with stdin, eof and timeout_s only",
            hint="Leave command_id out to start another command.",
        )


def _check(head: dict[str, Any]) -> None:
    """Raises InvalidArgument, LimitExceeded."""
    if not (head.get("line") or head.get("argv")):
        raise InvalidArgument("exec: give command, or command_id")
    check_env(head["env"] or {})
    if head["timeout_s"] == 0:
        raise InvalidArgument("exec: hard_timeout_s is more than 0", hint="Leave it out for none.")
    if len(json.dumps(head)) > MAX_HEAD_BYTES:
        raise LimitExceeded(
            f"a command and its env take at most {MAX_HEAD_BYTES} bytes",
            hint="Write it to a file and run that.",
        )


def _input_kind(stdin: str | None, eof: bool | None, *, kept_open: bool) -> str:
    if not eof and (kept_open or eof is False):
        return "open"
    return "none" if stdin is None else "data"


def _input(stdin: str | None) -> bytes:
    data = (stdin or "").encode()
    if len(data) > MAX_STDIN:
        raise LimitExceeded(
            f"stdin takes at most {MAX_STDIN} bytes", hint="Write a file and use: command < file"
        )
    return data


def check_env(env: dict[str, str]) -> None:
    for name, value in env.items():
        if not _VARIABLE.match(name) or "\0" in value:
            raise InvalidArgument(f"env: not a variable: {name[:64]!r}")


async def _run(call: Call, head: dict[str, Any], body: bytes, wait_s: float) -> Report:
    """Start and wait; when the wait is given up, the command is ended with all it started."""
    until = anyio.current_time() + wait_s
    report = await commands.start(call.cave, head, body, wait_s)
    try:
        return await commands.follow(call, report, until, {})
    except BaseException:
        with anyio.CancelScope(shield=True), suppress(GhostError):
            await commands.send_signal(call.cave, report.id, commands.KILL)
        raise


async def _continue(
    call: Call, memory: Memory, command_id: str, stdin: str | None, eof: bool | None, wait_s: float
) -> tuple[Report, dict[str, int]]:
    """Feed and wait; what was shown before is left out of the report."""
    until = anyio.current_time() + wait_s
    since = memory.seen(command_id)
    report = await commands.wait(call.cave, command_id, since=since)
    fed = stdin is not None or bool(eof)
    if fed:
        await commands.feed(call.cave, command_id, _input(stdin), eof=bool(eof))
    quiet = fed and not eof
    return await commands.follow(call, report, until, since, quiet=quiet), since


async def _oom_kills(call: Call) -> int:
    with suppress(GhostError):
        return (await call.cave.usage()).oom_kills or 0
    return 0


async def _why(call: Call, memory: Memory, report: Report) -> dict[str, Any]:
    """A note, when the kernel has ended it for memory: it has killed since the last time this was asked."""
    if report.exit_code != SIGKILLED or report.timed_out:
        return {}
    before, memory.oom_kills = memory.oom_kills or 0, await _oom_kills(call)
    if memory.oom_kills <= before:
        return {}
    return {"note": "killed by the kernel: the cave's memory limit was reached"}


def _reply(
    call: Call,
    memory: Memory,
    report: Report,
    extra: dict[str, Any] | None = None,
    *,
    since: dict[str, int] | None = None,
) -> Reply:
    memory.show(report)
    output, handles = report.shown(call.cave.name)
    data: dict[str, Any] = {
        **({} if report.exit_code is None else {"exit_code": report.exit_code}),
        **output,
        "duration_s": report.duration_s,
        "command_id": report.id,
        "running": report.running,
        "timed_out": report.timed_out,
        **{key: value for key in ("session", "cwd", "note") if (value := getattr(report, key))},
        **(extra or {}),
    }
    if any(excerpt.lost for excerpt in report.outputs.values()):
        data["note"] = "the cave's disk was full: not all output was kept"
    return Reply(text=_text(data, since or {}), data=data, handles=handles)


def _text(data: dict[str, Any], since: dict[str, int]) -> str:
    parts = []
    if any(since.values()):
        parts.append("[only what is new]")
    if out := data.get("stdout", ""):
        parts.append(out.removesuffix("\n"))
    if err := data.get("stderr", ""):
        parts.append("[stderr]\n" + err.removesuffix("\n"))
    return "\n".join([*parts, *(f"[{line}]" for line in _facts(data))])


def _facts(data: dict[str, Any]) -> list[str]:
    """How it stands, a line for each thing worth knowing."""
    span = f"{data['duration_s']:.2f} s"
    if data["running"]:
        lines = [f"still running after {span}: command_id {data['command_id']}"]
    else:
        lines = [f"exit code {data['exit_code']}, {span}"]
    if data["timed_out"]:
        lines.append("killed at its hard timeout, with all it started")
    if "note" in data:
        lines.append(data["note"])
    if "changed" in data:
        lines.append(files.describe(data["changed"]))
    return lines
