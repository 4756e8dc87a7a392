# Files of any size, in and out, piece by piece: nothing here holds a whole one.
"""``/v1/filesystem/upload`` and ``/v1/filesystem/download``: the routes, and what the document says of them."""

from __future__ import annotations

from ghost_hub.rest.download import STATUSES, download
from ghost_hub.rest.row import JSON, MULTIPART, RAW, Row
from ghost_hub.rest.upload import upload

__all__ = ["rows"]

ANY = "*/*"


def rows() -> list[Row]:
    path = {"type": "string", "description": "In /workspace, or absolute."}
    version = {
        "type": "string",
        "description": "The version that was read: 409 when the file is another by now.",
    }
    cave = {"type": "string", "description": "Which of your caves; your default one when left out."}
    written = {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "created": {"type": "boolean"},
            "size": {"type": "integer"},
            "version": {"type": "string"},
        },
    }
    shape = {
        "type": "object",
        "properties": {
            "path": path,
            "content_base64": {"type": "string", "contentEncoding": "base64"},
            "version": version,
            "cave": cave,
        },
        "required": ["path", "content_base64"],
        "additionalProperties": False,
    }
    query = {"path": path, "cave": cave}
    tag = "filesystem"
    told = "A file as it is, or a range of it; 409 when it changes meanwhile."
    return [
        Row(method="POST", statuses=(200, 201), path="/v1/filesystem/upload", summary="Write a file of any size, wholly or not at all.", tag=tag, scope="use", handler=upload, operation=True, body=shape, body_media=(JSON, MULTIPART, RAW), result=written, query={**query, "version": version}, example={"path": "data.bin", "content_base64": "AAEC"}),
        Row(method="GET", path="/v1/filesystem/download", summary=told, tag=tag, scope="read", handler=download, operation=True, media=ANY, statuses=STATUSES, query=query),
        Row(method="HEAD", path="/v1/filesystem/download", summary="What a file is, without its content.", tag=tag, scope="read", handler=download, media=ANY, statuses=STATUSES, query=query),
        Row(method="POST", path="/v1/filesystem/download", summary=told, tag=tag, scope="read", handler=download, operation=True, media=ANY, statuses=STATUSES, body={"type": "object", "properties": query, "required": ["path"], "additionalProperties": False}, example={"path": "data.bin"}),
    ]  # fmt: skip
