"""Addresses of kept outputs, and bytes made fit to show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_mcp.errors import InvalidArgument, ProtocolFailure
from ghost_mcp.outputs import (
    Output,
    clean,
    decode,
    is_output,
    looks_binary,
    whole_characters,
    whole_number,
)


def test_an_address_is_what_it_was_made_of() -> None:
    output = Output(cave="my-cave", command="c12", channel="stderr")
    assert output.uri == "ghost://caves/my-cave/outputs/c12/stderr"
    assert is_output(output.uri)
    assert Output.parse(output.uri) == output


@pytest.mark.parametrize(
    "uri",
    [
        "ghost://caves/a/outputs/c1/stdin",
        "ghost://caves/a/outputs/c1/stdout/",
        "ghost://caves/a/outputs/c1/stdout\n",
        "ghost://caves/A/outputs/c1/stdout",
        "ghost://caves/a/outputs/c1?x/stdout",
        "ghost://caves/a/../b/outputs/c1/stdout",
        "ghost://caves/a/outputs/c1234567890123/stdout",
    ],
)
def test_nothing_else_is_an_address(uri: str) -> None:
    with pytest.raises(InvalidArgument):
        Output.parse(uri)


@given(st.text(max_size=20), st.integers(0, 80), st.integers(0, 80))
def test_a_cut_through_a_text_shows_whole_characters(text: str, start: int, end: int) -> None:
    data = text.encode()
    cut = data[start:end]
    whole = whole_characters(cut, begins=start == 0, ends=end >= len(data))
    assert whole.decode() in text
    assert len(cut) - len(whole) <= 6


@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_any_bytes_can_be_shown(data: bytes, begins: bool, ends: bool) -> None:
    shown = decode(data, begins=begins, ends=ends)
    shown.encode()
    assert "\0" not in shown


def test_text_is_told_from_data() -> None:
    assert looks_binary(decode(bytes(range(256))))
    assert looks_binary(decode("text".encode("utf-16")))
    assert not looks_binary("")
    assert not looks_binary(
        decode(b"\x1b[1;31mred\x1b[0m\r\n\t\x07 and a stray \xff in a long line")
    )


def test_names_are_bounded_and_clean() -> None:
    assert clean("a\udcff", 10) == "a\ufffd"
    assert clean("x" * 100, 10) == "x" * 10
    assert clean("\ud83d") == "\ufffd"


@pytest.mark.parametrize("value", [None, -1, 1.0, True, "1", 1 << 62])
def test_a_count_is_a_count(value: object) -> None:
    with pytest.raises(ProtocolFailure):
        whole_number({"n": value}, "n")
