# What agents use, from the command line: the hub over stdio, and one call of one tool.
"""``ghost mcp`` and ``ghost call``."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

from ghost_mcp.errors import GhostError, InvalidArgument, NotFound

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from ghost_mcp.cli.output import Output
    from ghost_mcp.reply import Picture, Reply
    from ghost_mcp.tool import Tool

__all__ = ["call", "mcp"]


def mcp(options: argparse.Namespace, out: Output) -> int:
    if os.isatty(0):
        out.note(
            "this speaks MCP on stdin and stdout, and is started by a client: ghost install CLIENT"
        )
    from ghost_hub.stdio import run
    from ghost_mcp import tracing
    from ghost_mcp.audit import layers
    from ghost_mcp.secrets.process import no_core_dump

    no_core_dump()
    tracing.start()
    return run(
        server=options.server,
        cave=options.cave,
        backend=options.backend,
        layers=layers(options.audit),
    )


def call(options: argparse.Namespace, out: Output) -> int:
    import anyio

    from ghost_mcp.secrets.process import no_core_dump

    no_core_dump()
    tool = _find(options.tool)
    arguments = _arguments(options.arguments, tool.input_schema["properties"])
    cave = arguments.pop("cave", options.cave)
    with out.progress(options.tool):
        reply = anyio.run(_run, {options.tool: tool}, arguments, cave, options.backend)
    saved = _save(reply.pictures, options.save, options.tool) if options.save else []
    if out.json:
        out.document(_as_dict(reply, saved))
        return 0
    out.line(reply.text)
    for picture in reply.pictures if not saved else ():
        out.note(f"a picture, {picture.mime_type}, {len(picture.data)} bytes: --save DIR keeps it")
    for path in saved:
        out.line(path)
    return 0


async def _run(
    tools: Mapping[str, Tool], arguments: Mapping[str, Any], cave: str | None, backend: str | None
) -> Reply:
    """One call of the one tool, in the named cave, or in one made for it."""
    from ghost_mcp.audit import layers
    from ghost_mcp.calls import Calls
    from ghost_mcp.ghost import Ghost
    from ghost_mcp.places import Places, SessionCaves

    [name] = tools
    async with (
        Ghost(backend=backend) as ghost,
        Places(ghost) as places,
        SessionCaves(places, pinned=cave) as caves,
    ):
        answer = await Calls(tools, layers()).run(caves, name, arguments)
    if isinstance(answer.outcome, GhostError):
        raise answer.outcome
    return answer.outcome


def _find(name: str) -> Tool:
    """The tool of a name as the hub publishes it. Raises NotFound with the names there are."""
    from ghost_hub.catalog import SERVERS, published, toolset

    server = name.partition("_")[0]
    if server not in SERVERS:
        raise NotFound(
            f"no such tool: {name[:64]}",
            hint=f"A tool is named SERVER_TOOL, for example file_read; servers: {', '.join(SERVERS)}.",
        )
    tools = published([toolset(server)])
    if name not in tools:
        raise NotFound(f"no such tool: {name[:64]}", hint=f"Tools of {server}: {', '.join(tools)}.")
    return tools[name]


def _arguments(words: list[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """``KEY=VALUE`` by the type the tool's schema gives the argument, ``KEY:=JSON`` as it stands."""
    found: dict[str, Any] = {}
    for word in words:
        key, given, value = word.partition("=")
        if not given or not key.rstrip(":"):
            raise InvalidArgument(
                f"not KEY=VALUE: {word[:64]!r}", hint="For example: path=notes.txt"
            )
        if key.endswith(":"):
            key = key[:-1]
            found[key] = _json(key, value)
        else:
            found[key] = value if _is_text(known.get(key, {})) else _guess(value)
    return found


def _json(key: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as exc:
        raise InvalidArgument(f"{key[:64]}: not JSON: {exc}") from None


def _is_text(schema: Mapping[str, Any]) -> bool:
    """Whether a plain value is meant as text: the schema says so, or says nothing."""
    branches = schema.get("anyOf", [schema])
    return any(branch.get("type", "string") == "string" for branch in branches)


def _guess(value: str) -> Any:
    """A number, true or false, a list; what is none stays text, and the tool says what it wants."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _save(pictures: list[Picture], folder: str, tool: str) -> list[str]:
    paths = []
    os.makedirs(folder, exist_ok=True)
    for number, picture in enumerate(pictures, 1):
        suffix = picture.mime_type.partition("/")[2].partition("+")[0]
        name = f"{tool}-{number}.{suffix if suffix.isalnum() else 'bin'}"
        paths.append(os.path.join(folder, name))
        with open(paths[-1], "wb") as file:
            file.write(picture.data)
    return paths


def _as_dict(reply: Reply, saved: list[str]) -> dict[str, Any]:
    """The reply as JSON; a picture that was saved is named, others are carried in base64."""
    pictures = []
    for number, picture in enumerate(reply.pictures):
        told: dict[str, Any] = {
            "mime_type": picture.mime_type,
            "size_bytes": len(picture.data),
        }
        if saved:
            told["path"] = saved[number]
        else:
            told["data_base64"] = base64.b64encode(picture.data).decode("ascii")
        pictures.append(told)
    handles = [
        {"uri": handle.uri, "name": handle.name, "size_bytes": handle.size_bytes}
        for handle in reply.handles
    ]
    return {"text": reply.text, "data": reply.data, "pictures": pictures, "handles": handles}
