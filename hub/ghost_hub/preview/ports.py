# What a cave says of itself is hostile: numbers are taken out of it, and nothing else.
"""Which ports of a cave something listens on, so that a person need not remember them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghost_mcp.errors import LimitExceeded, NotFound

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave

__all__ = ["listening"]

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
LOOK_S = 5.0
MOST_BYTES = 1 << 20
_LISTENS = "0A"
#: Loopback and any, of IPv4 and IPv6, as those tables write them: elsewhere a preview does not dial.
_HERE = frozenset(("0100007F", "00000000", "0" * 32, "0" * 24 + "01000000"))


async def listening(cave: Cave) -> list[int]:
    """The ports, lowest first; none where the cave has no ``cat`` or too many sockets to look through."""
    try:
        said = await cave.exec(["cat", *_TABLES], timeout_s=LOOK_S, limit_bytes=MOST_BYTES)
    except (NotFound, LimitExceeded):
        return []
    return sorted({port for line in said.stdout.splitlines() if (port := _port(line))})


def _port(line: str) -> int:
    """The port of a line, 0 when nobody listens there."""
    words = line.split()
    if len(words) < 4 or words[3] != _LISTENS:
        return 0
    address, _, port = words[1].partition(":")
    try:
        number = int(port, 16)
    except ValueError:
        return 0
    return number if address in _HERE and 0 < number < 1 << 16 else 0
