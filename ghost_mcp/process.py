# What a program in a cave writes is bytes of somebody hostile: counted, and bounded by who asked for them.
"""A program in a cave: what it is asked to be, while it runs, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.errors import CaveGone, InvalidArgument, LimitExceeded

if TYPE_CHECKING:
    from ghost_mcp.warden.linkstream import LinkStream

__all__ = [
    "DEVTOOLS",
    "STDERR",
    "STDOUT",
    "ExecResult",
    "Process",
    "asked",
    "captured",
    "captured_feeding",
]

#: The channels of a program's stream.
STDOUT, STDERR, DEVTOOLS = 1, 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """How a program ended. ``exit_code`` is 128 + N when signal N ended it; output is kept as bytes too."""

    exit_code: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    duration_s: float
    timed_out: bool

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode("utf-8", "replace")


class Process:
    """A program that runs while its block is open. The words are Popen's."""

    def __init__(self, stream: LinkStream) -> None:
        self._stream = stream
        self._result: dict[str, Any] | None = None

    async def receive(self) -> tuple[int, bytes] | None:
        """The next output, ``(1 for stdout | 2 for stderr | 4 for DevTools, bytes)``; None at the end."""
        return await self._stream.receive()

    async def send(self, data: bytes) -> None:
        """Write to its standard input (its terminal, its DevTools pipe)."""
        await self._stream.send(data)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def signal(self, number: int) -> None:
        """Send a signal to the whole process tree."""
        await self._stream.send_note({"signal": number})

    async def resize(self, rows: int, columns: int) -> None:
        await self._stream.send_note({"resize": [rows, columns]})

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return None if self._result is None else int(self._result["exit_code"])

    async def wait(self) -> int:
        """The exit code, once it has ended. Read the output meanwhile, or it may never end."""
        self._result, _ = await self._stream.answer()
        return int(self._result["exit_code"])

    @property
    def timed_out(self) -> bool:
        return bool(self._result and self._result["timed_out"])

    @property
    def duration_s(self) -> float:
        return float(self._result["duration_s"]) if self._result else 0.0

    async def terminate(self) -> None:
        await self.signal(15)

    async def kill(self) -> None:
        await self.signal(9)


def asked(
    command: str | Sequence[str], env: Mapping[str, str] | None, cwd: str | None
) -> dict[str, Any]:
    """What a warden is told to run: a shell's line, or a program with its arguments. Raises InvalidArgument."""
    if not command:
        raise InvalidArgument("the command is empty")
    what: dict[str, Any] = (
        {"line": command} if isinstance(command, str) else {"argv": list(command)}
    )
    return what | {"env": dict(env or {}), "cwd": cwd}


async def captured(stream: LinkStream, limit_bytes: int) -> ExecResult:
    """All that a program writes, and how it ends. Raises LimitExceeded beyond ``limit_bytes``."""
    pieces: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
    size = 0
    while (piece := await stream.receive()) is not None:
        size += len(piece[1])
        if size > limit_bytes:
            raise LimitExceeded(
                f"the program wrote more than {limit_bytes} bytes",
                hint="Send its output to a file in the cave.",
                code="too_large",
            )
        pieces.setdefault(piece[0], []).append(piece[1])
    answer, _ = await stream.answer()
    return ExecResult(
        exit_code=int(answer["exit_code"]),
        stdout_bytes=b"".join(pieces[STDOUT]),
        stderr_bytes=b"".join(pieces[STDERR]),
        duration_s=float(answer["duration_s"]),
        timed_out=bool(answer["timed_out"]),
    )


async def captured_feeding(stream: LinkStream, data: bytes, limit_bytes: int) -> ExecResult:
    """The same for a program that is given ``data`` meanwhile, which it need not read."""

    async def feed() -> None:
        try:
            await stream.send(data)
            await stream.send_eof()
        except CaveGone:
            return  # the program ended without reading everything

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed)
        result = await captured(stream, limit_bytes)
        tasks.cancel_scope.cancel()
    return result
