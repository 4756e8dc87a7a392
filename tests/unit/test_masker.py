"""In which forms a secret is found, and what is seen in its place."""

from __future__ import annotations

import base64
import binascii
import html
import json
import os
import secrets
from urllib.parse import quote, quote_plus

import pytest

from ghost_mcp.errors import ProtocolFailure
from ghost_mcp.secrets.masker import EDGE, Masker, values_of

PLAIN = b"sk_live_0123456789abcdefghijklmnopqrstuv"
ODD = 'p@ss/w"rd\\ é&=+ %\u20ac\nsecond line of it'.encode()


def written(value: bytes) -> dict[str, bytes]:
    """What programs make of a value."""
    text = value.decode()
    return {
        "raw": value,
        **{f"base64 after {n}": base64.b64encode(b"x" * n + value + b"tail") for n in range(3)},
        **{f"base64url after {n}": base64.urlsafe_b64encode(b"\xff" * n + value) for n in range(3)},
        "base64 in lines": base64.encodebytes(value * 1),
        "hex": value.hex().encode(),
        "HEX": value.hex().upper().encode(),
        "url": quote(value, safe="").encode(),
        "url, path": quote(value).encode(),
        "form": quote_plus(value).encode(),
        "json": json.dumps({"key": text}).encode(),
        "json, unicode": json.dumps(text, ensure_ascii=False).encode(),
        "python": repr(text).encode(),
        "python bytes": repr(value).encode(),
        "html": html.escape(text).encode(),
        "markdown": text.replace("_", "\\_").encode(),
        "terminal": value.replace(b"\n", b"\r\n"),
        "in an address": b"https://user:" + quote(value, safe="").encode() + b"@example.com/",
    }


@pytest.mark.parametrize("value", [PLAIN, ODD], ids=["plain", "odd"])
def test_each_way_to_write_it_is_found(value: bytes) -> None:
    masker = Masker({"API_KEY": value})
    for how, form in written(value).items():
        masked = masker.mask(b"before " + form + b" after")
        assert b"[secret API_KEY]" in masked, how
        assert len(masked) == len(form) + 13, how
        core = {value, value.hex().encode(), value.hex().upper().encode()}
        core |= {base64.b64encode(value)[4:-4], quote(value, safe="").encode()}
        assert not any(part in masked for part in core), how
        assert masked.startswith(b"before ")
        assert masked.endswith(b" after")


def test_a_value_of_many_lines_is_found_line_by_line() -> None:
    body = [base64.b64encode(secrets.token_bytes(48)) for _ in range(20)]
    value = b"\n".join([b"-----BEGIN KEY-----", *body, b"-----END KEY-----", b""])
    masker = Masker({"PEM": value})
    numbered = b"".join(b"%6d\t%s\n" % pair for pair in enumerate(value.split(b"\n")))
    for text in (value, value.strip(), numbered, base64.encodebytes(value), value.hex().encode()):
        masked = masker.mask(text)
        assert not any(line in masked for line in body)
        assert not any(base64.b64encode(line)[:60] in masked for line in body)
    wrapped = binascii.b2a_hex(value, b"\n", -30)
    assert not any(line in masker.mask(wrapped) for line in wrapped.split(b"\n")[:-1])


def test_a_large_value_is_found_and_little_is_held_back() -> None:
    value = secrets.token_bytes(100_000)
    masker = Masker({"LARGE": value})
    assert value[500:600] not in masker.mask(b"x" + value + b"x")
    feed = masker.feed()
    for at in range(0, len(value), 700):
        given = value[at : at + 700]
        feed.feed(given)
        assert len(feed._held) < 4096


def test_a_value_that_is_no_text_is_found_in_texts() -> None:
    value = b"\xff\xfe-binary-\x80-value"
    masker = Masker({"KEY": value})
    name = os.fsdecode(value)
    for text in (
        name,
        json.dumps(name),
        json.dumps({"path": name}),
        value.decode("utf-8", "replace"),
    ):
        assert "[secret KEY]" in masker.text(f"a {text} b")
    assert masker.value({"path": [name]})["path"][0].strip("*") == "[secret KEY]"


def test_what_is_short_is_left_alone() -> None:
    masker = Masker({"PIN": b"1234", "SPACE": b" \n ", "OK": b"123456"})
    assert masker.mask(b"1234 5 1234567") == b"1234 5 ******7"


def test_two_that_overlap_and_two_that_are_the_same() -> None:
    masker = Masker(
        {"ONE": b"abcdefghijklmnop", "TWO": b"ijklmnopqrstuvwx", "SAME": b"abcdefghijklmnop"}
    )
    assert (
        masker.mask(b"-abcdefghijklmnopqrstuvwx-") == b"-" + b"[secret ONE]".ljust(24, b"*") + b"-"
    )


def test_a_prompt_that_begins_like_a_secret_is_seen_at_once() -> None:
    feed = Masker({"KEY": b"$ ls -l /somewhere"}).feed()
    assert feed.feed(b"$ ") == b"$ "
    assert feed.feed(b"l") == b"l"
    assert feed.feed(b"s") == b""  # EDGE bytes may be more than chance
    assert feed.feed(b"of\n") == b"sof\n"
    assert feed.feed(b"$ ls -l /some") == b""
    assert feed.feed(b"where") == b"[secret KEY]******"
    assert feed.flush() == b""


def test_a_page_that_cuts_a_secret_shows_no_part_of_it() -> None:
    value = secrets.token_hex(32).encode()
    masker = Masker({"KEY": value})
    whole = b"first " + value + b" last"
    for size in (5, 16, 50, 70):
        for at in range(0, len(whole), size):
            page = masker.window(
                whole[at : at + size], begins=at == 0, ends=at + size >= len(whole)
            )
            for part in range(len(value) - EDGE):
                assert value[part : part + EDGE + 1] not in page


def test_nobody_is_shown_the_values() -> None:
    masker = Masker({"KEY": PLAIN})
    assert repr(masker) == "Masker(KEY)"
    assert masker.mask(b"nothing") == b"nothing"
    assert Masker({}).text("any") == "any"


@pytest.mark.parametrize(
    "head",
    [
        {"secrets": {"A": -1}},
        {"secrets": {"A": 10}},
        {"secrets": {"A": "1"}},
        {"secrets": {"A": True}},
        {"secrets": {"A\n": 1}},
        {"secrets": {"A": 1, "B": 2}},
    ],
)
def test_a_warden_that_answers_nonsense(head: dict[str, object]) -> None:
    with pytest.raises(ProtocolFailure):
        values_of(head, b"xy")
    assert values_of({"secrets": []}, b"") == {}
