"""list: what is in a folder."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import anyio
from pydantic import Field
from typing_extensions import TypedDict

from ghost_mcp.errors import ProtocolFailure, TimedOut
from ghost_mcp.outputs import clean, whole_number
from ghost_mcp.reply import Reply, size_text
from ghost_mcp.tool import Call, tool
from ghost_servers.file.bounds import within

LISTING_S = 20.0
TEXT_CHARS = 7000
# The end of the year 9999: a file's time may be anything.
LAST_S = 253_402_300_799


class Entry(TypedDict, total=False):
    path: str
    type: str
    size: int
    mtime: int
    target: str


class ListResult(TypedDict, total=False):
    path: str
    entries: list[Entry]
    total: int
    truncated: bool


@tool(title="List a folder", effect="read", result=ListResult)
async def list_(
    call: Call,
    *,
    path: str = ".",
    pattern: Annotated[str | None, Field(description="Glob, e.g. **/*.py.")] = None,
    depth: Annotated[int | None, within(1)] = None,
    hidden: bool = False,
    sort: Literal["name", "size", "mtime"] = "name",
    limit: Annotated[int, within(1, 1000)] = 200,
) -> Reply:
    """List a folder, or the files below it that match a glob."""
    head = {
        "path": path,
        "glob": pattern,
        "depth": depth,
        "hidden": hidden,
        "sort": sort,
        "limit": limit,
    }
    try:
        with anyio.fail_after(LISTING_S):
            records, answer = await call.cave.records("list", head)
    except TimeoutError:
        raise TimedOut("this folder is too large to list", hint="Use a depth.") from None
    entries, lines = _fitting(records[:limit])
    total = whole_number(answer, "total")
    data = {
        "path": clean(answer.get("path")),
        "entries": entries,
        "total": total,
        "truncated": answer.get("truncated") is True or len(entries) < total,
    }
    return Reply(text=_text(data, lines), data=data)


def _fitting(records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """As many entries as there is room for, with their lines."""
    entries: list[dict[str, Any]] = []
    lines: list[str] = []
    room = TEXT_CHARS
    for record in records:
        entry = _entry(record)
        line = _line(entry)
        room -= len(line) + 1
        if room < 0:
            break
        entries.append(entry)
        lines.append(line)
    return entries, lines


def _entry(record: dict[str, Any]) -> dict[str, Any]:
    try:
        entry = {
            "path": clean(record["path"]),
            "type": clean(record["type"], 20),
            "size": whole_number(record, "size"),
            "mtime": int(record["mtime"]),
        }
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise ProtocolFailure("the warden's entries cannot be read") from exc
    return {**entry, "target": clean(record["target"])} if "target" in record else entry


def _line(entry: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(min(max(entry["mtime"], 0), LAST_S)))
    size = size_text(entry["size"]) if entry["type"] == "file" else "-"
    slash = "/" if entry["type"] == "directory" else ""
    link = f" -> {entry['target']}" if "target" in entry else ""
    return f"{size:>10}  {when}  {entry['path']}{slash}{link}"


def _text(data: dict[str, Any], lines: list[str]) -> str:
    counted = f"{len(lines)} of {data['total']}" if data["truncated"] else f"{data['total']}"
    many = "entry" if counted == "1" else "entries"
    return "\n".join([*lines, f"[{data['path']}: {counted} {many}]"])
