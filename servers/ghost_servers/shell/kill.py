"""kill: end a command or a session, or send it a signal."""

from __future__ import annotations

import signal as signals
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from pydantic import Field
from typing_extensions import TypedDict

from ghost_mcp.errors import InvalidArgument
from ghost_mcp.outputs import whole_number
from ghost_mcp.reply import Reply
from ghost_mcp.tool import Call, tool
from ghost_servers.shell import commands
from ghost_servers.shell.commands import ask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ghost_servers.shell.report import Report

# What is asked to end is looked at so often; then it is killed, which has so long to show.
LOOKS, LOOK_S = 40, 0.05
GONE_S = 3.0
# A signal's effect is told when it shows at once.
SHOWS_S = 0.3


class KillResult(TypedDict, total=False):
    ended: list[str]
    exit_code: int


@tool(title="End a command or session", effect="destroy", result=KillResult)
async def kill(
    call: Call,
    *,
    command_id: str | None = None,
    session: str | None = None,
    signal: Annotated[str | None, Field(description="Send only this, e.g. INT.")] = None,
) -> Reply:
    """End a command with all it started, or a session."""
    if (command_id is None) == (session is None):
        raise InvalidArgument("kill: give command_id or session")
    number = None if signal is None else _number(signal)
    if session is not None:
        return await _session(call, session, number)
    return await _command(call, str(command_id), number)


def _number(name: str) -> int:
    """15 for TERM, SIGTERM or 15. Raises InvalidArgument."""
    try:
        return (
            signals.Signals(int(name))
            if name.isdigit()
            else signals.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
        )
    except (KeyError, ValueError):
        raise InvalidArgument(
            f"not a signal: {name[:40]!r}", hint="Use a name such as INT, TERM, HUP or KILL."
        ) from None


async def _command(call: Call, command_id: str, number: int | None) -> Reply:
    async def send(n: int) -> int:
        return await commands.send_signal(call.cave, command_id, n)

    async def last() -> None:
        await send(signals.SIGKILL)

    was = await commands.wait(call.cave, command_id)
    reached = await (_end(send, last) if number is None else send(number))
    now = await _ended(call, command_id, number)
    gone = not now.running and (was.running or (reached > 0 and number is None))
    return _reply(
        f"command {command_id}", reached, [command_id] if gone else [], number, now.exit_code
    )


async def _session(call: Call, name: str, number: int | None) -> Reply:
    async def send(n: int) -> int:
        head = {"action": "signal", "name": name, "signal": n}
        return whole_number((await ask(call.cave, "session", head))[0], "reached")

    async def close() -> None:
        await ask(call.cave, "session", {"action": "close", "name": name})

    busy = await _busy(call, name)
    reached = await (_end(send, close) if number is None else send(number))
    ended = [name] if number is None else []
    if busy is not None and not (await _ended(call, busy, number)).running:
        ended.append(busy)
    return _reply(f"session {name}", reached, ended, number, None)


async def _ended(call: Call, command_id: str, number: int | None) -> Report:
    """The command as it is once what it was sent has had its effect."""
    return await commands.wait(call.cave, command_id, GONE_S if number is None else SHOWS_S)


async def _busy(call: Call, name: str) -> str | None:
    """The command that runs in the session, if one does. An unknown session is refused by what follows."""
    answer, _ = await ask(call.cave, "session", {"action": "list"})
    for told in answer.get("sessions") or []:
        if isinstance(told, dict) and told.get("name") == name and told.get("busy"):
            return str(told["busy"])
    return None


async def _end(send: Callable[[int], Awaitable[int]], last: Callable[[], Awaitable[None]]) -> int:
    """Ask to end, wait, then force it; returns how many processes there were."""
    reached = await send(signals.SIGTERM)
    for _ in range(LOOKS):
        if not await send(0):
            break
        await anyio.sleep(LOOK_S)
    await last()
    return reached


def _reply(
    what: str, reached: int, ended: list[str], number: int | None, exit_code: int | None
) -> Reply:
    data: dict[str, Any] = {"ended": ended}
    code = ""
    if exit_code is not None:
        data["exit_code"], code = exit_code, f", exit code {exit_code}"
    many = f"{reached} process{'es' * (reached != 1)}"
    if number is not None:
        over = f"; ended: {', '.join(ended)}{code}" if ended else ""
        return Reply(text=f"{signals.Signals(number).name} to {many} of {what}{over}", data=data)
    over = f"ended, {many}" if ended else "had ended already"
    return Reply(text=f"{what} {over}{code}", data=data)
