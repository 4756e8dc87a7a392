# What a command wrote is kept in its cave. Only this file makes and reads the addresses of kept outputs.
"""Kept outputs: their URI ``ghost://caves/{cave}/outputs/{command}/{stdout|stderr}``, range reads, search.

What comes back was written by a program in a cave: it is data, bounded and made fit for JSON here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from ghost_mcp.errors import InvalidArgument, ProtocolFailure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ghost_mcp.cave import Cave

__all__ = [
    "MAX_RANGE",
    "Output",
    "Piece",
    "clean",
    "decode",
    "is_output",
    "looks_binary",
    "read_output",
    "search_output",
    "whole_characters",
    "whole_number",
]

Channel = Literal["stdout", "stderr"]
NUMBERS: dict[Channel, int] = {"stdout": 1, "stderr": 2}
MAX_RANGE = 3 << 16
_SCHEME = "ghost://"
_URI = re.compile(
    r"ghost://caves/(?P<cave>[a-z0-9-]{1,40})/outputs/(?P<command>c[0-9]{1,12})/(?P<channel>stdout|stderr)"
)
# A share of bytes that no text has: NUL, other control bytes but those of terminals, bad UTF-8.
_BINARY_SHARE = 0.1
_SURROGATE = re.compile("[\ud800-\udfff]")
_ODD = re.compile("[\x00-\x06\x0e-\x1a\x1c-\x1f\ufffd]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One channel of one command: what a handle stands for."""

    cave: str
    command: str
    channel: Channel

    @property
    def uri(self) -> str:
        return f"ghost://caves/{self.cave}/outputs/{self.command}/{self.channel}"

    @classmethod
    def parse(cls, uri: str) -> Self:
        """The output that a URI names. Raises InvalidArgument."""
        found = _URI.fullmatch(uri)
        if found is None:
            raise InvalidArgument(
                f"not the URI of an output: {uri[:200]!r}",
                hint="It looks like ghost://caves/NAME/outputs/c1/stdout.",
            )
        channel: Channel = "stdout" if found["channel"] == "stdout" else "stderr"
        return cls(cave=found["cave"], command=found["command"], channel=channel)

    @classmethod
    def of_channel(cls, cave: str, command: str, number: int) -> Self:
        """By the channel's number at the warden."""
        return cls(cave=cave, command=command, channel="stderr" if number == 2 else "stdout")

    def of(self, cave: Cave) -> Self:
        """Itself, when it is an output of that cave. Raises InvalidArgument."""
        if self.cave not in (cave.name, cave.id):
            raise InvalidArgument(
                f"that is an output of the cave {self.cave}, not of {cave.name}",
                hint=f"Set cave to {self.cave}.",
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A range of an output. ``gap`` is the range of it that was not kept; ``offset`` lies behind it when
    the range asked for began in it. ``lost``: the cave's disk was full, more may be missing."""

    data: bytes
    offset: int
    size: int
    gap: tuple[int, int] | None
    running: bool
    lost: bool


def is_output(path: str) -> bool:
    """Whether a path is meant as the URI of an output."""
    return path.startswith(_SCHEME)


async def read_output(
    cave: Cave, output: Output, *, offset: int = 0, count: int = MAX_RANGE
) -> Piece:
    """At most ``count`` (and MAX_RANGE) bytes from ``offset``; fewer at the gap and at the end.

    Raises NotFound ``command_not_found`` when the cave no longer keeps it, InvalidArgument.
    """
    head, data = await cave.call(
        "output",
        {
            "id": output.command,
            "channel": NUMBERS[output.channel],
            "offset": offset,
            "count": min(count, MAX_RANGE),
        },
    )
    return Piece(
        data=data,
        offset=whole_number(head, "offset"),
        size=whole_number(head, "size"),
        gap=_gap(head.get("gap")),
        running=bool(head.get("running")),
        lost=bool(head.get("lost")),
    )


async def search_output(
    cave: Cave, output: Output, head: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Search it like a file: ``(records, answer)`` of the warden's ``search``. Raises as read_output does."""
    return await cave.records(
        "search", {**head, "output": output.command, "channel": NUMBERS[output.channel]}
    )


def decode(data: bytes, *, begins: bool = True, ends: bool = True) -> str:
    """Text that any JSON can hold: NUL and bad UTF-8 become U+FFFD; ANSI sequences stay.

    ``begins`` and ``ends`` as for :func:`whole_characters`.
    """
    data = whole_characters(data, begins=begins, ends=ends)
    return data.decode("utf-8", "replace").replace("\0", "\ufffd")


def whole_characters(data: bytes, *, begins: bool, ends: bool) -> bytes:
    """The data without characters that were cut in two.

    ``begins`` and ``ends`` say whether it starts and stops where the whole does: there nothing was cut.
    """
    start = 0
    while not begins and start < min(3, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start : len(data) if ends else len(data) - _cut_tail(data)]


def _cut_tail(data: bytes) -> int:
    """How many bytes at the end are the beginning of a character."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < length else 0
        if byte < 0x80:
            return 0
    return 0


def looks_binary(text: str) -> bool:
    """Whether a decoded text is data that no one reads."""
    return len(_ODD.findall(text)) > len(text) * _BINARY_SHARE


def clean(text: object, limit: int = 4096) -> str:
    """A name that a cave chose, as a bounded text that any JSON can hold."""
    return _SURROGATE.sub("\ufffd", str(text)[:limit])


def whole_number(head: Mapping[str, Any], key: str) -> int:
    """A count that a warden answered with. Raises ProtocolFailure for anything else."""
    value = head.get(key)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ProtocolFailure(f"the warden answered without {key}")
    return value


def _gap(told: object) -> tuple[int, int] | None:
    """Raises ProtocolFailure for what is neither a range nor nothing."""
    if told is None:
        return None
    if not isinstance(told, list) or len(told) != 2:
        raise ProtocolFailure("the warden answered with a gap that is none")
    start, end = (whole_number({"gap": bound}, "gap") for bound in told)
    return start, end
