"""write: a whole file, or its next part."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from ghost_mcp.errors import InvalidArgument
from ghost_mcp.outputs import clean, is_output, whole_number
from ghost_mcp.reply import Reply, size_text
from ghost_mcp.tool import Call, tool


class WriteResult(TypedDict, total=False):
    path: str
    created: bool
    size: int
    version: str


@tool(title="Write a file", effect="destroy", result=WriteResult)
async def write(
    call: Call,
    *,
    path: str,
    content: str,
    mode: Literal["create", "overwrite", "append"] = "overwrite",
    encoding: Literal["utf-8", "base64"] = "utf-8",
    permissions: Annotated[str | None, Field(description="Octal, e.g. 755.")] = None,
    version: Annotated[str | None, Field(description="As read; refuses if changed.")] = None,
) -> Reply:
    """Write a whole file; makes its folders. To change a part, use replace."""
    if is_output(path):
        raise InvalidArgument("an output cannot be written")
    done = await call.cave.write(
        path,
        content.encode() if encoding == "utf-8" else _decoded(content),
        mode=mode,
        parents=True,
        permissions=_octal(permissions),
        version=version,
    )
    data: dict[str, Any] = {
        "path": clean(done.get("path")),
        "created": done.get("created") is True,
        "size": whole_number(done, "size"),
        "version": clean(done.get("version"), 100),
    }
    verb = "created" if data["created"] else "appended to" if mode == "append" else "overwrote"
    size = size_text(data["size"])
    return Reply(text=f"{verb} {data['path']}: {size}, version {data['version']}", data=data)


def _octal(permissions: str | None) -> int | None:
    if permissions is not None and not re.fullmatch("[0-7]{3}", permissions):
        raise InvalidArgument("permissions are three octal digits, such as 644 or 755")
    return None if permissions is None else int(permissions, 8)


def _decoded(content: str) -> bytes:
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument(
            "content is not base64", hint="Leave encoding out for text."
        ) from None
