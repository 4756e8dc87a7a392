# An image in a cave is hostile: its first bytes are read here, it is never decoded in this process.
"""Which image a file is, and how large it would be."""

from __future__ import annotations

import struct
from dataclasses import dataclass

# What clients and models take; larger ones would break their conversation.
MAX_BYTES = 3 << 20
MAX_SIDE = 8000
HEAD_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHead:
    """Media type and size in pixels; (0, 0) when the first bytes do not say."""

    mime_type: str
    width: int = 0
    height: int = 0

    @property
    def fits(self) -> bool:
        return 0 < self.width <= MAX_SIDE and 0 < self.height <= MAX_SIDE


def sniff(data: bytes) -> ImageHead | None:
    """What image the first bytes of a file belong to: PNG, JPEG, GIF, WebP, or none."""
    for begins, mime_type, size in _KINDS:
        if data.startswith(begins) and (mime_type != "image/webp" or data[8:12] == b"WEBP"):
            try:
                width, height = size(data)
            except (struct.error, IndexError):
                width = height = 0
            return ImageHead(mime_type=mime_type, width=width, height=height)
    return None


def _png(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _jpeg(data: bytes) -> tuple[int, int]:
    """The size in the first frame header; the segments before it are passed over."""
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", data, at)
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if marker < 0xFF01 or length < 2:
            return 0, 0
        at += 2 + length


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, 24)
        return 1 + low_w + (high_w << 16), 1 + low_h + (high_h << 16)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


_KINDS = (
    (b"\x89PNG\r\n\x1a\n", "image/png", _png),
    (b"\xff\xd8\xff", "image/jpeg", _jpeg),
    (b"GIF87a", "image/gif", _gif),
    (b"GIF89a", "image/gif", _gif),
    (b"RIFF", "image/webp", _webp),
)
