"""Calling a server's tools as an adapter does, and what this process needed meanwhile."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ghost_mcp import Cave
from ghost_mcp.reply import MAX_TEXT_CHARS, Reply
from ghost_mcp.tool import Call, Keep, Progress, Toolset, invoke

__all__ = ["Use", "peak_bytes", "reset_peak", "user"]

Use = Callable[..., Coroutine[Any, Any, Reply]]


async def _silent(done: float, total: float | None = None, message: str | None = None) -> None:
    return None


def user(toolset: Toolset, cave: Cave, progress: Progress = _silent) -> Use:
    """Calls tools of a server as one client; every answer is held to what all answers promise."""
    keep = Keep()
    tools = {tool.name: tool for tool in toolset.tools}

    async def use(name: str, /, **arguments: Any) -> Reply:
        tool = tools[name]
        reply = await invoke(tool, Call(cave=cave, keep=keep, progress=progress), arguments)
        TypeAdapter(tool.result).validate_python(reply.data, strict=True)
        assert set(reply.data) <= set(tool.output_schema["properties"])
        assert len(reply.text) <= MAX_TEXT_CHARS
        json.dumps(reply.data, allow_nan=False, ensure_ascii=False).encode()
        return reply

    return use


def peak_bytes() -> int:
    """The highest memory use of this process, since it was last forgotten."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def reset_peak() -> int:
    """Forget the highest memory use of this process so far; returns the present one."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()
