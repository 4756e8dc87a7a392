# Only this file decides what hub and converter say to each other. Both ends import it; it imports nothing slow.
"""One request and one answer for each connection: a JSON head behind its length, then raw bytes.

A head is ``{size, ...}``: so many bytes follow it. A request's head is ``{op, name, media_type, charset, ...}``
with the document behind it; an answer's is ``{ok: true, ...}`` with text or pictures behind it, or
``{ok: false, code, message, hint}`` with the codes of Ghost's errors.
"""

from __future__ import annotations

import json
import struct
from typing import Any

MAX_DOCUMENT = 64 << 20
MAX_ANSWER = 64 << 20
MAX_HEAD = 1 << 20
PREFIX = 4
# What one conversion may take: a small document MIN_CPU_S of processor time, a large one up to MAX_CPU_S.
MIN_CPU_S, MAX_CPU_S = 8, 60
# Twice as long by the clock; a converter that says nothing until then is given up.
MAX_WALL_S = 2 * MAX_CPU_S


class BadFrame(Exception):
    """The other end broke the rules above."""


def pack(head: dict[str, Any]) -> bytes:
    """A head on the wire. Raises BadFrame when it is too large."""
    data = json.dumps(head, separators=(",", ":")).encode()
    if len(data) > MAX_HEAD:
        raise BadFrame("a head that is too large")
    return struct.pack("!I", len(data)) + data


def head_size(prefix: bytes) -> int:
    """How many bytes the head has. Raises BadFrame."""
    size: int = struct.unpack("!I", prefix)[0]
    if size > MAX_HEAD:
        raise BadFrame("a head that is too large")
    return size


def unpack(data: bytes, limit: int) -> dict[str, Any]:
    """A head, with a ``size`` of at most ``limit``. Raises BadFrame."""
    try:
        head = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise BadFrame("a head that is not JSON") from exc
    size = head.get("size") if isinstance(head, dict) else None
    if not isinstance(head, dict) or not isinstance(size, int) or not 0 <= size <= limit:
        raise BadFrame("a head without a size that is allowed")
    return head
