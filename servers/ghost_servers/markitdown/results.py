# What the converter answers is as hostile as the document it read: checked here, then saved in the user's cave.
"""Answers of the converter as values, and what becomes a file in the cave."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ghost_mcp.errors import Conflict, GhostError, PermissionRefused, ProtocolFailure
from ghost_servers.markitdown.source import WORKSPACE

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave
    from ghost_servers.markitdown.source import Source

__all__ = [
    "Image",
    "beginning",
    "field_number",
    "field_text",
    "pictures_of",
    "save_images",
    "save_text",
]

MAX_FIELD = 300
FORMATS = frozenset(
    [
        "png",
        "jpg",
        "gif",
        "webp",
        "bmp",
        "tiff",
        "ico",
        "wmf",
        "emf",
        "svg",
        "jpeg2000",
        "avif",
        "bin",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A picture that was in a document. ``width`` and ``height`` are pixels, 0 when unknown."""

    data: bytes
    format: str
    width: int
    height: int
    source: str


def field_text(answer: Mapping[str, Any], key: str) -> str:
    """A short text of the answer, on one line."""
    value = answer.get(key)
    return " ".join(value[:MAX_FIELD].split()) if isinstance(value, str) else ""


def field_number(answer: Mapping[str, Any], key: str) -> int:
    """A count of the answer. Raises ProtocolFailure when it is none."""
    value = answer.get(key)
    if not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise ProtocolFailure(f"the converter answered without {key}")
    return value


def beginning(payload: bytes, limit: int) -> str:
    """The first ``limit`` characters of UTF-8 text; the rest is not even decoded."""
    return payload[: 4 * limit].decode("utf-8", "ignore")[:limit]


def pictures_of(answer: Mapping[str, Any], payload: bytes) -> list[Image]:
    """The pictures of an answer. Raises ProtocolFailure when head and payload do not fit together."""
    described = answer.get("images")
    images = []
    at = 0
    for entry in described if isinstance(described, list) else ():
        if not isinstance(entry, dict):
            raise ProtocolFailure("the converter described a picture badly")
        size, width, height = (field_number(entry, key) for key in ("size", "width", "height"))
        kind = field_text(entry, "format")
        images.append(
            Image(
                data=payload[at : at + size],
                format=kind if kind in FORMATS else "bin",
                width=width,
                height=height,
                source=field_text(entry, "source")[:80],
            )
        )
        at += size
    if at != len(payload):
        raise ProtocolFailure("the converter sent pictures of other sizes than it said")
    return images


async def save_text(cave: Cave, source: Source, data: bytes, wanted: str | None) -> str:
    """Save a result where it is wanted, else beside the document, else in the workspace; the path.

    A file that is there with other content is replaced only when its path was asked for.
    """
    if wanted is not None:
        return str((await cave.write(wanted, data, parents=True))["path"])
    try:
        return await _save_beside(cave, source.path, data)
    except GhostError as exc:
        if not isinstance(exc, PermissionRefused):
            raise
        return await _save_beside(cave, f"{WORKSPACE}/{source.name}", data)


async def _save_beside(cave: Cave, path: str, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()[:8]
    first, second = f"{path}.md", f"{path}.{digest}.md"
    try:
        return str((await cave.write(first, data, mode="create"))["path"])
    except Conflict:
        there = await cave.read(first, count=len(data) + 1)
        if there.data == data:
            return there.path
        # Its name holds its content's digest: what may be there already is the same.
        return str((await cave.write(second, data))["path"])


async def save_images(cave: Cave, folder: str, images: Sequence[Image]) -> list[dict[str, Any]]:
    """Write the pictures into a folder of the cave; what a list of them says.

    A name holds the digest of the content, so that nothing else is ever overwritten.
    """
    listed = []
    for number, image in enumerate(images, 1):
        name = f"image-{number:03d}-{hashlib.sha256(image.data).hexdigest()[:8]}.{image.format}"
        answer = await cave.write(posixpath.join(folder, name), image.data, parents=True)
        listed.append(
            {
                "path": str(answer["path"]),
                "size": len(image.data),
                "width": image.width,
                "height": image.height,
                "format": image.format,
                "source": image.source,
            }
        )
    return listed
