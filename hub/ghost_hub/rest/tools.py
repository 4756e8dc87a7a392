# Nothing is implemented here: each route makes the call that the tool of its row makes over MCP.
"""The sixteen tools by REST, with the words of the mission's examples."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from ghost_hub.rest.row import Ask, Row, answer
from ghost_mcp import tracing
from ghost_mcp.errors import GhostError, InvalidArgument

if TYPE_CHECKING:
    from ghost_mcp.calls import Answer, Calls
    from ghost_mcp.reply import Reply

__all__ = ["execute", "rows"]

#: Words that the mission's examples use, and the tool's own.
ALIASES = {"timeout": "timeout_s"}
CONTENT = "content_base64"

# (method, path, tool)
ROUTES = (
    ("POST", "/v1/shell/exec", "shell_exec"),
    ("POST", "/v1/shell/sessions", "shell_create_session"),
    ("POST", "/v1/shell/kill", "shell_kill"),
    ("POST", "/v1/file/read", "file_read"),
    ("POST", "/v1/file/write", "file_write"),
    ("POST", "/v1/file/list", "file_list"),
    ("POST", "/v1/file/search", "file_search"),
    ("POST", "/v1/file/replace", "file_replace"),
    ("POST", "/v1/browser/navigate", "browser_navigate"),
    ("POST", "/v1/browser/screenshot", "browser_screenshot"),
    ("GET", "/v1/browser/screenshot", "browser_screenshot"),
    ("POST", "/v1/browser/click", "browser_click"),
    ("POST", "/v1/browser/type", "browser_type"),
    ("POST", "/v1/browser/scroll", "browser_scroll"),
    ("POST", "/v1/markitdown/convert", "markitdown_convert"),
    ("POST", "/v1/markitdown/extract_text", "markitdown_extract_text"),
    ("POST", "/v1/markitdown/extract_images", "markitdown_extract_images"),
)
EXAMPLES: dict[str, dict[str, Any]] = {
    "shell_exec": {"command": 'python -c "print(2+2)"', "timeout": 30},
    "shell_create_session": {"name": "build"},
    "shell_kill": {"session": "build"},
    "file_read": {"path": "notes.txt"},
    "file_write": {"path": "notes.txt", "content": "hello\n"},
    "file_list": {"path": "."},
    "file_search": {"pattern": "hello"},
    "file_replace": {"path": "notes.txt", "old": "hello", "new": "good day"},
    "browser_navigate": {"url": "http://localhost:5000"},
    "browser_click": {"text": "Next"},
    "browser_type": {"text": "ghost", "submit": True},
    "browser_scroll": {"direction": "down"},
    "markitdown_convert": {"path": "report.docx"},
    "markitdown_extract_text": {"path": "report.pdf"},
    "markitdown_extract_images": {"path": "report.pptx"},
}


def rows(calls: Calls) -> list[Row]:
    """The rows of the tools, and of calling any of them by name."""
    return [
        *(_row(calls, *one) for one in ROUTES),
        Row(
            method="DELETE",
            path="/v1/shell/sessions/{session}",
            summary="End a session and what runs in it.",
            tag="shell",
            scope="use",
            handler=_end_session,
            result=_result(calls, "shell_kill"),
        ),
        Row(
            method="POST",
            path="/mcp/execute",
            summary="Call a tool by its name, with the arguments it has over MCP.",
            tag="mcp",
            scope="read",
            handler=_execute,
            body={
                "type": "object",
                "properties": {
                    "tool": {"type": "string", "enum": sorted(calls.tools)},
                    "arguments": {"type": "object"},
                    "cave": {"type": "string"},
                },
                "required": ["tool"],
                "additionalProperties": False,
            },
            result={"type": "object"},
            example={"tool": "shell_exec", "arguments": {"command": "uname -a"}},
        ),
    ]


def _row(calls: Calls, method: str, path: str, name: str) -> Row:
    tool = calls.tools[name]

    async def handler(ask: Ask) -> Response:
        given = dict(ask.request.query_params) if method == "GET" else await ask.json()
        return await execute(ask, name, _own_words(given))

    schema = _body(tool.input_schema) if method == "POST" else None
    return Row(
        method=method,
        path=path,
        summary=tool.title + ".",
        tag=name.partition("_")[0],
        scope="read" if tool.effect == "read" else "use",
        handler=handler,
        body=schema,
        result=_result(calls, name),
        query={"cave": {"type": "string"}} if method == "GET" else {},
        example=EXAMPLES.get(name),
    )


def _body(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The tool's own schema, and the other words that are understood."""
    properties = dict(schema["properties"])
    for word, own in ALIASES.items():
        if own in properties:
            properties[word] = properties[own]
    required = list(schema.get("required", ()))
    if "encoding" in properties and "content" in properties:
        properties[CONTENT] = {"type": "string", "contentEncoding": "base64"}
        required.remove("content")
    shown = {**schema, "properties": properties, "required": required}
    if not required:
        del shown["required"]
    return shown


def _own_words(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in the tool's own words. Raises InvalidArgument when both are given."""
    found = dict(given)
    for word, own in ALIASES.items():
        if word in found:
            if own in found:
                raise InvalidArgument(f"{word} and {own} are the same: give one")
            found[own] = found.pop(word)
    if CONTENT in found:
        if "content" in found or "encoding" in found:
            raise InvalidArgument(f"{CONTENT} goes without content and encoding")
        found |= {"content": found.pop(CONTENT), "encoding": "base64"}
    return found


async def execute(ask: Ask, name: str, arguments: Mapping[str, Any]) -> Response:
    """Call a tool and render what comes of it. Raises the GhostError that the call ended with."""
    with tracing.calling(name, ask.request.headers) as tell:
        done = await ask.hub.calls.run(ask.caves, name, arguments)
        tell(done.outcome)
    if isinstance(done.outcome, GhostError):
        raise done.outcome
    picture = _picture(ask, done.outcome)
    return picture or answer(_told(done, done.outcome))


def _picture(ask: Ask, reply: Reply) -> Response | None:
    """The picture itself, for a client that asks for nothing but one."""
    if reply.pictures and ask.request.headers.get("accept", "").startswith("image/"):
        first = reply.pictures[0]
        return Response(first.data, media_type=first.mime_type, headers={"Vary": "Accept"})
    return None


def _told(done: Answer, reply: Reply) -> dict[str, Any]:
    told = dict(reply.data)
    if reply.pictures:
        told["pictures"] = [
            {"mime_type": one.mime_type, "data_base64": base64.b64encode(one.data).decode("ascii")}
            for one in reply.pictures
        ]
    if done.note:
        told["cave_note"] = done.note
    return told


def _result(calls: Calls, name: str) -> dict[str, Any]:
    schema = dict(calls.tools[name].output_schema)
    picture = {
        "type": "object",
        "properties": {"mime_type": {"type": "string"}, "data_base64": {"type": "string"}},
    }
    schema["properties"] = {
        **schema.get("properties", {}),
        "pictures": {"type": "array", "items": picture},
        "cave_note": {"type": "string"},
    }
    return schema


async def _end_session(ask: Ask) -> Response:
    return await execute(ask, "shell_kill", {"session": ask.request.path_params["session"]})


async def _execute(ask: Ask) -> Response:
    given = await ask.json()
    if unknown := sorted(set(given) - {"tool", "arguments", "cave"}):
        raise InvalidArgument(f"unknown: {unknown[0][:64]!r}", hint="Known: tool, arguments, cave.")
    name, arguments = given.get("tool"), given.get("arguments", {})
    if not isinstance(name, str):
        raise InvalidArgument("tool: the name of a tool is needed", hint="See /mcp/tools.")
    if not isinstance(arguments, dict):
        raise InvalidArgument("arguments: must be an object")
    if given.get("cave") is not None:
        arguments = {**arguments, "cave": given["cave"]}
    return await execute(ask, name, arguments)
