"""Who may only look at a desktop: what of RFB passes, however it is cut into pieces."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_hub.desktop.rfb import ViewOnly
from ghost_mcp.errors import PermissionRefused

HELLO = b"RFB 003.008\n" + b"\x01" + b"\x01"
PASSES = (
    b"\x00" + bytes(19),  # the format of pixels
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


@given(st.lists(st.sampled_from(PASSES + CHANGES), max_size=12), st.data())
def test_only_what_changes_nothing_passes(messages: list[bytes], data: st.DataObject) -> None:
    whole = HELLO + b"".join(messages)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=8).map(sorted))
    viewer = ViewOnly()
    said = b"".join(viewer.feed(whole[a:b]) for a, b in pairwise([0, *cuts, len(whole)]))
    assert said == HELLO + b"".join(one for one in messages if one in PASSES)


def test_nobody_is_sent_away() -> None:
    assert ViewOnly().feed(HELLO[:-1] + b"\x00") == HELLO


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
    ],
)
def test_what_is_not_known_ends_it(said: bytes) -> None:
    with pytest.raises(PermissionRefused):
        ViewOnly().feed(said)
