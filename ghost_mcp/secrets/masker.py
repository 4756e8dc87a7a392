# What is masked keeps its length: offsets, sizes and frames around it stay true.
"""Masking known secrets in bytes, texts and streams.

It is a net against accidents, no boundary: a program can write its secret in a form that nobody looks for.

How they are found: each needle of at least ``4 * step + 3`` bytes covers a whole word of four bytes at a
position that is a multiple of ``4 * step``, wherever it stands. So only those words are looked up, in a set of
all that needles have there; what is there is then compared. Shorter needles are looked for one by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ghost_mcp.errors import ProtocolFailure
from ghost_mcp.secrets.border import Border
from ghost_mcp.secrets.needles import needles

__all__ = ["Feed", "Masker", "values_of"]

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
WORD = 4
_LEAST_INDEXED = 2 * WORD - 1
#: So many bytes of a secret at a cut may be seen; more is masked, though the rest of it is not there.
EDGE = 4


@dataclass(frozen=True, slots=True, order=True)
class _Span:
    """Bytes to mask. ``label`` is empty where the label stood before a cut."""

    start: int
    end: int
    label: bytes


class Masker:
    """Knows the secrets of one cave. All that it returns has the length of what it was given."""

    def __init__(self, values: Mapping[str, bytes]) -> None:
        self._values = dict(values)
        self._index: _Index | None = None

    def __repr__(self) -> str:
        return f"Masker({', '.join(self._values)})"

    @property
    def _needles(self) -> _Index:
        """Made at first use: many a cave never writes anything."""
        if self._index is None:
            self._index = _Index(needles(self._values))
        return self._index

    def mask(self, data: bytes) -> bytes:
        """The data with each secret in it masked; the same object when there is none."""
        return _filled(data, _merged(self._needles.spans(data)))

    def window(self, data: bytes, *, begins: bool, ends: bool) -> bytes:
        """A range of something longer, which it ``begins`` or ``ends``: elsewhere a secret may have been cut."""
        index = self._needles
        spans = index.spans(data)
        if not begins and not ends and index.inside(data):
            return b"*" * len(data)
        if not ends and (cut := index.tail(data)):
            spans.append(_Span(len(data) - cut, len(data), b""))
        if not begins and (cut := index.front(data)):
            spans.append(_Span(0, cut, b""))
        return _filled(data, _merged(spans))

    def text(self, text: str) -> str:
        """The text with each secret in it masked; its length in bytes of UTF-8 stays."""
        if len(text) * 4 < self._needles.shortest:
            return text
        data = text.encode("utf-8", "surrogatepass")
        masked = self.mask(data)
        if masked is data:
            return text
        try:
            return masked.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:  # a secret that is no text begins or ends inside a character
            return masked.decode("utf-8", "replace")

    def value(self, value: Any) -> Any:
        """A JSON-like value with every text in it masked, keys too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def border(self, op: str, asked: Mapping[str, Any]) -> Border | None:
        """For what one operation of the cave's warden answers."""
        return Border.of(self, op, asked)

    def feed(self, *, begins: bool = True, ends: bool = True) -> Feed:
        """For a stream that comes in pieces; ``begins`` and ``ends`` as for window()."""
        return Feed(self, begins=begins, ends=ends)


def values_of(head: Mapping[str, Any], body: bytes) -> dict[str, bytes]:
    """What a warden answered to ``secrets``. Raises ProtocolFailure for what no warden answers."""
    sizes = head.get("secrets")
    values = {}
    for name, size in sizes.items() if isinstance(sizes, dict) else ():
        if not NAME.fullmatch(name) or type(size) is not int or not 0 <= size <= len(body):
            raise ProtocolFailure("the warden's answer about secrets cannot be read")
        values[name], body = body[:size], body[size:]
    return values


class Feed:
    """Masks a stream, however it is cut. What may be the beginning of a secret is held back until more comes,
    less than EDGE bytes never: a prompt that happens to begin like one is seen at once."""

    def __init__(self, masker: Masker, *, begins: bool, ends: bool) -> None:
        self._index = masker._needles
        self._bound = 2 * self._index.longest
        self._begins, self._ends = begins, ends
        self._before = (
            b""  # what was let go last, less than EDGE bytes: a secret may have begun in it
        )
        self._held = b""
        self._covered = 0  # so many of the bytes held are known to be masked

    @property
    def holding(self) -> bool:
        """Whether flush() has something to give."""
        return bool(self._held)

    def feed(self, data: bytes) -> bytes:
        """What can be let go now: maybe nothing, maybe more than was given."""
        before = len(self._before)
        data = self._before + self._held + data
        spans = self._index.spans(data)
        if self._covered:
            spans.append(_Span(before, before + self._covered, b""))
        if not self._begins:
            self._begins = True
            if cut := self._index.front(data):
                spans.append(_Span(0, cut, b""))
        spans = _merged(spans)
        cut = max(before, len(data) - self._index.tail(data))
        over = next((span for span in spans if span.start < cut < span.end), None)
        if over is not None and before <= over.start and len(data) - over.start <= self._bound:
            cut, over = over.start, None  # so that its label is in one piece
        self._covered = 0 if over is None else over.end - cut
        self._held = data[cut:]
        self._before = data[max(0, cut - EDGE + 1) : cut]
        return _filled(data, _from(before, spans))[before:cut]

    def flush(self) -> bytes:
        """The rest, at the end."""
        before, held = len(self._before), self._held
        data = self._before + held
        spans = self._index.spans(data)
        covered = len(held) if not self._ends else self._covered
        if covered:
            spans.append(_Span(before, before + covered, b""))
        self._before, self._held, self._covered = b"", b"", 0
        return _filled(data, _from(before, _merged(spans)))[before:]


class _Index:
    """The needles, and where to look for them."""

    def __init__(self, named: Mapping[bytes, str]) -> None:
        self._labels = {needle: f"[secret {name}]".encode() for needle, name in named.items()}
        self.shortest = min(map(len, named), default=1 << 62)
        self.longest = max(map(len, named), default=0)
        self._short = [needle for needle in named if len(needle) < _LEAST_INDEXED]
        long = [needle for needle in named if len(needle) >= _LEAST_INDEXED]
        least = min(map(len, long), default=_LEAST_INDEXED)
        self._step = (least - WORD + 1) // WORD
        self._places: dict[int, list[tuple[bytes, int]]] = {}
        reach = WORD * self._step
        for needle in long:
            for start in range(WORD):
                whole = (len(needle) - start) // WORD * WORD
                words = memoryview(needle)[start : start + whole].cast("I").tolist()
                for at, word in zip(range(start, reach, WORD), words, strict=False):
                    self._places.setdefault(word, []).append((needle, at))
        self._words = frozenset(self._places)
        self._heads: dict[bytes, list[bytes]] = {}
        self._tails: dict[bytes, list[bytes]] = {}
        for needle in named:
            self._heads.setdefault(needle[:EDGE], []).append(needle)
            self._tails.setdefault(needle[-EDGE:], []).append(needle)

    def spans(self, data: bytes) -> list[_Span]:
        """Every occurrence of every needle."""
        if len(data) < self.shortest:
            return []
        found = self._indexed(data) if self._words else []
        for needle in self._short:
            at = data.find(needle)
            while at >= 0:
                found.append(_Span(at, at + len(needle), self._labels[needle]))
                at = data.find(needle, at + 1)
        return found

    def _indexed(self, data: bytes) -> list[_Span]:
        words = memoryview(data)[: len(data) // WORD * WORD].cast("I")[:: self._step]
        if self._words.isdisjoint(words):
            return []
        found = []
        for number, word in enumerate(words):
            if word in self._words:
                for needle, offset in self._places[word]:
                    at = number * WORD * self._step - offset
                    if at >= 0 and data.startswith(needle, at):
                        found.append(_Span(at, at + len(needle), self._labels[needle]))
        return found

    def tail(self, data: bytes) -> int:
        """How many bytes at the end are the beginning of a needle, EDGE at least; 0 when none are."""
        for at in range(max(0, len(data) - self.longest + 1), len(data) - EDGE + 1):
            heads = self._heads.get(data[at : at + EDGE], ())
            rest = data[at:]
            if any(len(needle) > len(rest) and needle.startswith(rest) for needle in heads):
                return len(rest)
        return 0

    def front(self, data: bytes) -> int:
        """How many bytes at the beginning are the end of a needle, EDGE at least; 0 when none are."""
        for end in range(min(len(data), self.longest - 1), EDGE - 1, -1):
            tails = self._tails.get(data[end - EDGE : end], ())
            if any(needle.endswith(data[:end]) for needle in tails):
                return end
        return 0

    def inside(self, data: bytes) -> bool:
        """Whether it is a piece out of the middle of a needle, EDGE bytes at least."""
        return EDGE <= len(data) < self.longest and any(data in needle for needle in self._labels)


def _merged(spans: list[_Span]) -> list[_Span]:
    """Spans that overlap are one, under the label of the first, and longest, of them."""
    merged: list[_Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end, not span.label)):
        if merged and span.start < merged[-1].end:
            last = merged[-1]
            merged[-1] = _Span(last.start, max(last.end, span.end), last.label)
        else:
            merged.append(span)
    return merged


def _from(start: int, spans: list[_Span]) -> list[_Span]:
    """What of them lies behind ``start``: what stood before it was let go."""
    return [
        _Span(max(start, span.start), span.end, span.label) for span in spans if span.end > start
    ]


def _filled(data: bytes, spans: list[_Span]) -> bytes:
    """The data with each span as its label and asterisks, or asterisks alone where the label does not fit."""
    if not spans:
        return data
    out = bytearray(data)
    for span in spans:
        size = span.end - span.start
        label = span.label if len(span.label) <= size else b""
        out[span.start : span.end] = label.ljust(size, b"*")
    return bytes(out)
