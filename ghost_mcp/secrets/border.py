# Only this file decides what of a cave's answers is masked: everything, but what is a protocol of its own.
"""What one operation of a warden answers, on its way out of the cave."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ghost_mcp.secrets.masker import Feed, Masker

__all__ = ["Border"]

# A dialled port belongs to whoever speaks its protocol: a preview, a desktop, a registry behind the egress.
_RAW = frozenset({"dial", "listen", "secrets"})
# What the browser says on its DevTools pipe is read by Ghost; what is made of it is masked as a tool's answer.
_RAW_CHANNEL = 4
_RANGES = frozenset({"read", "output"})
_REPORTS = frozenset({"exec", "command"})


class Border:
    """Masks what comes on one stream: data by channel, heads and bodies."""

    @classmethod
    def of(cls, masker: Masker, op: str, asked: Mapping[str, Any]) -> Self | None:
        """For one operation; None when what it answers passes as it is."""
        return None if op in _RAW else cls(masker, op, asked)

    def __init__(self, masker: Masker, op: str, asked: Mapping[str, Any]) -> None:
        self._masker = masker
        self._op = op
        self._offset = asked.get("offset") or 0
        self._cut = op in _RANGES and asked.get("count") is not None
        self._feeds: dict[int, Feed] = {}

    def data(self, channel: int, data: bytes) -> bytes:
        """What of the channel can be let go now, maybe nothing."""
        if channel == _RAW_CHANNEL:
            return data
        if channel not in self._feeds:
            begins = self._op not in _RANGES or self._offset == 0
            self._feeds[channel] = self._masker.feed(begins=begins, ends=not self._cut)
        return self._feeds[channel].feed(data)

    def holding(self, channel: int) -> bool:
        return channel in self._feeds and self._feeds[channel].holding

    def rest(self, channels: Container[int] | None = None) -> tuple[int, bytes] | None:
        """What is still held of one of these channels, which have ended; None when nothing is."""
        for channel, feed in self._feeds.items():
            if feed.holding and (channels is None or channel in channels):
                return channel, feed.flush()
        return None

    def answer(self, head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        masked: dict[str, Any] = self._masker.value(head)
        return masked, self._body(head, body) if body else body

    def _body(self, head: Mapping[str, Any], body: bytes) -> bytes:
        if self._op in _RANGES:
            start, size = _count(head.get("offset", self._offset)), head.get("size")
            ends = not head.get("running") and size == start + len(body)
            return self._masker.window(body, begins=start == 0, ends=ends)
        if self._op in _REPORTS and isinstance(head.get("output"), Mapping):
            return self._excerpts(head, body)
        return self._masker.mask(body)

    def _excerpts(self, head: Mapping[str, Any], body: bytes) -> bytes:
        """Of each channel its beginning and its end, or all of it, one behind the other."""
        at, pieces, running = 0, [], bool(head.get("running"))
        for told in head["output"].values():
            told = told if isinstance(told, Mapping) else {}
            first, second = _count(told.get("head")), _count(told.get("tail"))
            for size, begins, ends in (
                (first, told.get("from") == 0, not second and not running),
                (second, False, not running),
            ):
                pieces.append(self._masker.window(body[at : at + size], begins=begins, ends=ends))
                at += size
        return b"".join(pieces) + self._masker.mask(body[at:])


def _count(told: object) -> int:
    """What a warden calls a size: hostile, so that anything else counts as nothing."""
    return told if type(told) is int and 0 <= told < 1 << 32 else 0
