"""Who may only look at a desktop: what of RFB passes either way, however it is cut into pieces."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_hub.desktop.rfb import ViewOnly
from ghost_hub.desktop.shown import PIXEL_FORMAT, Shown
from ghost_mcp.errors import PermissionRefused

FORMAT = bytes(4) + PIXEL_FORMAT
HELLO = b"RFB 003.008\n" + b"\x01" + b"\x01"
PASSES = (
    FORMAT,
    FORMAT[:14] + b"\x00\x08\x10" + bytes(3),  # the same in another order
    b"\x02\0" + struct.pack(">H2i", 2, 7, -308),
    b"\x03\x01" + struct.pack(">4H", 0, 0, 1440, 960),
    b"\x96\x01" + bytes(8),
    b"\xf8" + bytes(7) + b"\x03" + b"abc",
)
CHANGES = (
    b"\x04\x01\0\0" + struct.pack(">I", 0xFF0D),
    b"\x05\x01" + struct.pack(">2H", 5, 5),
    b"\x06\0\0\0" + struct.pack(">i", 300) + b"\x03" * 300,
    b"\x06\0\0\0" + struct.pack(">i", -8) + b"\x03" * 8,
    b"\xfb\0" + struct.pack(">2H", 800, 600) + b"\x01\0" + bytes(16),
    b"\xff\0" + struct.pack(">H2I", 1, 0x61, 30),
    b"\xfa\0\x01\x02",
)


def fed(side: ViewOnly | Shown, whole: bytes, data: st.DataObject) -> bytes:
    """What of it passes, fed in pieces."""
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=8).map(sorted))
    return b"".join(side.feed(whole[a:b]) for a, b in pairwise([0, *cuts, len(whole)]))


@given(st.lists(st.sampled_from(PASSES + CHANGES), max_size=12), st.data())
def test_only_what_changes_nothing_passes(messages: list[bytes], data: st.DataObject) -> None:
    said = fed(ViewOnly(), HELLO + b"".join(messages), data)
    assert said == HELLO + FORMAT + b"".join(one for one in messages if one in PASSES)


def test_nobody_is_sent_away() -> None:
    assert ViewOnly().feed(HELLO[:-1] + b"\x00") == HELLO + FORMAT


def test_only_encodings_whose_length_is_known_are_asked_for() -> None:
    viewer = ViewOnly()
    viewer.feed(HELLO)
    asked = b"\x02\0" + struct.pack(">H6i", 6, 7, -260, 16, -26, -1063131698, -308)
    assert viewer.feed(asked) == b"\x02\0" + struct.pack(">H3i", 3, 7, -26, -308)


@pytest.mark.parametrize(
    "said",
    [
        b"RFB 003.003\n",  # after which no way in is named: all that follows would be read one byte off
        b"RFB 003.007\n",
        HELLO[:12] + b"\x02",
        HELLO + b"\x01",
        HELLO + b"\xff\x01",
        HELLO + b"\xfd" + bytes(20),
        HELLO + b"\x02\0\xff\xff",
        HELLO + bytes(4) + b"\x10\x10" + FORMAT[6:],  # two bytes for a pixel
    ],
)
def test_what_is_not_known_ends_it(said: bytes) -> None:
    with pytest.raises(PermissionRefused):
        ViewOnly().feed(said)


# --- what the desktop says ---


def rectangle(encoding: int, data: bytes, width: int = 5, height: int = 3) -> bytes:
    return struct.pack(">4Hi", 1, 2, width, height, encoding) + data


def update(*rectangles: bytes) -> bytes:
    return b"\0\0" + struct.pack(">H", len(rectangles)) + b"".join(rectangles)


# All of it is made of bytes that are the heads of other messages, too.
FILL = b"\x03"
GREETING = (
    b"RFB 003.008\n" + b"\x02\x01\x02" + bytes(4)
    + struct.pack(">2H", 1440, 960) + PIXEL_FORMAT + struct.pack(">I", 5) + b"Ghost"
)  # fmt: skip
HEARD = (
    update(),
    update(rectangle(0, FILL * 60)),
    update(rectangle(1, FILL * 4), rectangle(-239, FILL * 63)),
    update(rectangle(-223, b""), rectangle(-308, b"\x02" + FILL * 35)),
    update(rectangle(-307, struct.pack(">I", 3) + FILL * 3)),
    update(rectangle(7, b"\x80" + FILL * 3), rectangle(7, b"\x90\x83\x01" + FILL * 131)),
    update(rectangle(7, b"\x90\x80\x80\x01" + FILL * 16384)),
    update(rectangle(7, b"\x00\x05" + FILL * 5)),
    update(rectangle(7, b"\x0f" + FILL * 9, 3, 1)),  # too short to be compressed
    update(rectangle(7, b"\x40\x02\x05" + FILL * 5)),
    update(rectangle(7, b"\x50\x01\x01" + FILL * (6 + 3))),  # a palette of two: a bit each
    update(rectangle(7, b"\x60\x01\x03" + FILL * 12 + b"\x07" + FILL * 7)),
    b"\0\0\xff\xff" + rectangle(0, FILL * 60) + rectangle(-224, b""),
    b"\x01\0" + struct.pack(">2H", 0, 2) + FILL * 12,
    b"\x02",
    b"\x96",
    b"\xf8" + bytes(7) + b"\x03" + FILL * 3,
)
COPIED = (
    b"\x03\0\0\0" + struct.pack(">i", 300) + b"\x02" * 300,
    b"\x03\0\0\0" + struct.pack(">i", -8) + b"\x02" * 8,
    b"\x03\0\0\0" + bytes(4),
)


@given(st.lists(st.sampled_from(HEARD + COPIED), max_size=12), st.data())
def test_all_but_what_is_copied_is_heard(messages: list[bytes], data: st.DataObject) -> None:
    heard = fed(Shown(), GREETING + b"".join(messages), data)
    assert heard == GREETING + b"".join(one for one in messages if one in HEARD)


@pytest.mark.parametrize(
    "said",
    [
        b"RFB 003.008\n\x00",
        GREETING[:15] + b"\0\0\0\x01",
        GREETING + b"\x04",
        GREETING + update(rectangle(5, b"")),
        GREETING + update(rectangle(7, b"\xa0")),
    ],
)
def test_what_a_desktop_says_and_is_not_known_ends_it(said: bytes) -> None:
    with pytest.raises(PermissionRefused):
        Shown().feed(said)
