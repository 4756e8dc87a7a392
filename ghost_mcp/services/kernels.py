# What comes from a kernel is hostile: bounded and checked here, interpreted nowhere.
"""Jupyter kernels of a cave: run code in sessions that keep their state."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.errors import (
    BackendUnavailable,
    CaveGone,
    InvalidArgument,
    ProtocolFailure,
    TimedOut,
    from_wire,
)
from ghost_mcp.services.lines import Lines
from ghost_mcp.warden.wire import is_deep

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave
    from ghost_mcp.secrets.masker import Masker

__all__ = ["MAX_CODE", "MAX_TIMEOUT_S", "Kernels"]

MAX_CODE = 8 << 20
MAX_TIMEOUT_S = 3600.0
# JSON makes up to six bytes of one, and there is something around it.
MAX_ANSWER = 64 << 20
# Beyond the code's own time: to start a kernel, and to let one go that does not give in.
SPARE_S = 90.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Kernels:
    """The kernels of one cave, over its service ``kernels``, which is started on first use.

    Every method raises Unsupported when the cave has no Jupyter, and NotFound for an unknown session or kernel.
    """

    def __init__(self, cave: Cave) -> None:
        self._cave = cave
        self._lines = Lines(cave)

    async def aclose(self) -> None:
        """Let the connections go that are kept for the next call; by themselves they go soon."""
        self._lines.close()

    async def execute(
        self,
        code: str,
        *,
        session: str | None = None,
        kernel: str | None = None,
        timeout_s: float = 60.0,
        stdin: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Run code: ``{session, kernel, status, execution_count, outputs, truncated, timed_out, note}``.

        Without ``session`` in the kernel's own one (``python3`` unless another is named). After ``timeout_s``
        the code is interrupted and the session goes on. ``stdin`` are the lines that it may ask for.
        Raises Conflict ``session_busy``.
        """
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise InvalidArgument(f"timeout_s: from 0 to {MAX_TIMEOUT_S:g} seconds")
        if len(code) > MAX_CODE:
            raise InvalidArgument("the code is too long", hint="Write it to a file and run that.")
        asked = {"code": code, "timeout_s": timeout_s, "stdin": None if stdin is None else [*stdin]}
        return await self._ask("execute", {**asked, **_names(session, kernel)}, timeout_s)

    async def kernels(self) -> list[dict[str, Any]]:
        """``{name, title, language}`` of each kernel that the cave has."""
        return _records(await self._ask("kernels"), "kernels")

    async def sessions(self) -> list[dict[str, Any]]:
        """``{session, kernel, busy, execution_count, idle_s}`` of each."""
        return _records(await self._ask("sessions"), "sessions")

    async def create(
        self, *, kernel: str | None = None, session: str | None = None
    ) -> dict[str, Any]:
        """Start a kernel for a new session. Raises Conflict when it is there, LimitExceeded."""
        return await self._ask("create", _names(session, kernel))

    async def delete(self, session: str) -> dict[str, Any]:
        """End a session and its kernel."""
        return await self._ask("delete", _names(session, None))

    async def interrupt(self, session: str) -> dict[str, Any]:
        """Interrupt what a session runs; what is defined in it stays."""
        return await self._ask("interrupt", _names(session, None))

    async def _ask(
        self, op: str, asked: Mapping[str, Any] | None = None, timeout_s: float = 0.0
    ) -> dict[str, Any]:
        line = json.dumps({**(asked or {}), "op": op}).encode() + b"\n"
        try:
            with anyio.fail_after(timeout_s + SPARE_S):
                async with self._lines.line() as ask:
                    raw = await ask(line, MAX_ANSWER)
        except TimeoutError:
            raise TimedOut("the kernels did not answer", hint="Stop service kernels.") from None
        except anyio.DelimiterNotFound as exc:
            raise ProtocolFailure("a kernel answered too much") from exc
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError) as exc:
            if isinstance(exc.__cause__, CaveGone):
                raise exc.__cause__ from exc
            raise BackendUnavailable(
                "the kernels of this cave ended during the call",
                hint="They start anew with the next call; give the cave more memory if it ran out.",
            ) from exc
        return _parsed(raw, await self._cave.masker())


def _names(session: str | None, kernel: str | None) -> dict[str, str | None]:
    for what, name in (("session", session), ("kernel", kernel)):
        if name is not None and not _NAME.fullmatch(name):
            raise InvalidArgument(f"{what}: 1 to 64 letters, digits, -, _ and .")
    return {"session": session, "kernel": kernel}


def _parsed(raw: bytes, masker: Masker | None) -> dict[str, Any]:
    """What it answered, without the cave's secrets: what is dialled comes as it is."""
    try:
        head = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise ProtocolFailure("a kernel answered what is not JSON") from exc
    if not isinstance(head, dict) or is_deep(head):
        raise ProtocolFailure("a kernel answered what is no object, or nested too deeply")
    told: dict[str, Any] = head if masker is None else masker.value(head)
    if told.pop("ok", None) is not True:
        raise from_wire(told)
    return told


def _records(head: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = head.get(key)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ProtocolFailure("a kernel answered what are no records")
    return found
