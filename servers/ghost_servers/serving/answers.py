# Only this file turns an answer of Ghost into one of MCP, and bounds it.
"""Reply and GhostError as tool results, tools as listed tools, GhostError as a JSON-RPC error."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcp import MCPError
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolResult,
    ContentBlock,
    ImageContent,
    ResourceLink,
    TextContent,
    ToolAnnotations,
)
from mcp.types import Tool as ListedTool
from pydantic_core import PydanticSerializationError, to_json

from ghost_mcp.calls import foreseen
from ghost_mcp.errors import (
    GhostError,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    PermissionRefused,
)
from ghost_mcp.reply import MAX_TEXT_CHARS, Picture, Reply, clip, size_text

if TYPE_CHECKING:
    from ghost_mcp.calls import Answer
    from ghost_mcp.tool import Tool

__all__ = [
    "MAX_PICTURES_BYTES",
    "MAX_TEXT_BYTES",
    "answered",
    "failed",
    "listed",
    "protocol_error",
    "rendered",
]

_LONE = re.compile("[\ud800-\udfff]")

# Tools keep to reply.MAX_TEXT_CHARS; these are the hard bounds behind them, text and data each.
MAX_TEXT_BYTES = 256_000
MAX_PICTURES_BYTES = 5_000_000  # as base64, all pictures of one answer together


def listed(name: str, tool: Tool) -> ListedTool:
    """A tool as clients see it, under its published name, with all four hints said."""
    return ListedTool(
        name=name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.input_schema,
        output_schema=tool.output_schema,
        annotations=ToolAnnotations(
            read_only_hint=tool.effect == "read",
            destructive_hint=tool.effect == "destroy",
            idempotent_hint=tool.idempotent,
            open_world_hint=tool.open_world,
        ),
    )


def rendered(name: str, answer: Answer) -> CallToolResult:
    """How a call of the tool ``name`` ended, as its result."""
    if isinstance(answer.outcome, GhostError):
        return failed(answer.outcome, answer.note)
    try:
        return answered(answer.outcome, answer.note)
    except Exception as exc:  # noqa: BLE001 - foreseen() logs what nobody foresaw
        return failed(foreseen(exc, name), answer.note)


def answered(reply: Reply, note: str = "") -> CallToolResult:
    """A tool's answer. Raises LimitExceeded when its data is beyond the hard bound."""
    data, size_bytes = _sound(reply.data)
    if size_bytes > MAX_TEXT_BYTES:
        raise LimitExceeded(
            f"the call was carried out, but its answer is larger than {MAX_TEXT_BYTES} bytes",
            hint="Ask for less at once.",
            code="too_large",
        )
    content: list[ContentBlock] = [TextContent(text=text) for text in (note, _text(reply)) if text]
    content += _pictures(reply.pictures)
    content += [
        ResourceLink(
            uri=handle.uri, name=handle.name, size=handle.size_bytes, mime_type=handle.mime_type
        )
        for handle in reply.handles
    ]
    return CallToolResult(content=content, structured_content=data)


def failed(error: GhostError, note: str = "") -> CallToolResult:
    """An error as a result, so that the model sees it: its text, and the same structured."""
    text, _ = clip(_sound(error.render())[0], MAX_TEXT_CHARS)
    told, size_bytes = _sound(error.as_dict())
    if size_bytes > MAX_TEXT_BYTES:
        told = {"code": error.code, "message": text, "hint": "", "retryable": error.retryable}
    return CallToolResult(
        content=[TextContent(text=part) for part in (note, text) if part],
        structured_content={"error": told},
        is_error=True,
    )


def protocol_error(error: GhostError, **about: str) -> MCPError:
    """An error of a request that has no result to carry it, with ``about`` what was asked for."""
    asked_wrong = isinstance(error, InvalidArgument | NotFound | PermissionRefused)
    return MCPError(
        code=INVALID_PARAMS if asked_wrong else INTERNAL_ERROR,
        message=clip(_sound(error.render())[0], MAX_TEXT_CHARS)[0],
        data=_sound({**error.as_dict(), **about})[0],
    )


def _text(reply: Reply) -> str:
    text: str
    text, size_bytes = _sound(reply.text)
    return text if size_bytes <= MAX_TEXT_BYTES else clip(text, MAX_TEXT_BYTES // 4)[0]


def _pictures(pictures: list[Picture]) -> list[ContentBlock]:
    """The pictures that fit, and a line for each that does not."""
    shown: list[ContentBlock] = []
    room = MAX_PICTURES_BYTES
    for picture in pictures:
        size = -(-len(picture.data) // 3) * 4
        if size > room:
            text = f"[a picture of {size_text(len(picture.data))} is too large to show]"
            shown.append(TextContent(text=text))
            continue
        room -= size
        encoded = base64.b64encode(picture.data).decode("ascii")
        shown.append(ImageContent(data=encoded, mime_type=picture.mime_type))
    return shown


def _sound(value: Any) -> tuple[Any, int]:
    """The value and its size as JSON, without what JSON cannot carry: lone surrogates, as odd file names give."""
    try:
        return value, len(to_json(value))
    except PydanticSerializationError:
        mended = _mend(value)
        return mended, len(to_json(mended))


def _mend(value: Any) -> Any:
    if isinstance(value, str):
        return _LONE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_mend(key): _mend(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mend(item) for item in value]
    return value
