"""The parts of the browser server that decide on bytes and text alone."""

from __future__ import annotations

import base64
import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_mcp.errors import GhostError, InvalidArgument, PermissionRefused, ProtocolFailure
from ghost_servers.browser import messages
from ghost_servers.browser.address import allowed, failed, intended
from ghost_servers.browser.downloads import safe_name
from ghost_servers.browser.messages import Messages
from ghost_servers.browser.outline import Line, compare, excerpt, near, parse
from ghost_servers.browser.text import bounded, clean

# --- what a browser sends ------------------------------------------------------------------------


def passed(stream: bytes, size: int) -> bytes:
    """What comes through when the stream arrives in pieces of that size."""
    filter_ = Messages()
    return b"".join(filter_.feed(stream[i : i + size]) for i in range(0, len(stream), size))


def picture(size: int, tail: bytes = b'"},"sessionId":"0AF"}') -> bytes:
    return b'{"id":7,"result":{"data":"' + b"QUFB" * (size // 4) + tail


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=5), st.integers(1, 64))
def test_objects_pass_whatever_the_pieces(values: list[Any], size: int) -> None:
    stream = b"".join(json.dumps(value).encode() + b"\0" for value in values)
    objects = [json.dumps(value).encode() + b"\0" for value in values if isinstance(value, dict)]
    assert passed(stream, size) == b"".join(objects)


@given(st.binary(max_size=400), st.integers(1, 64))
def test_nothing_but_objects_passes(stream: bytes, size: int) -> None:
    out = passed(stream, size)
    assert out == b"" or out.endswith(b"\0")
    assert all(isinstance(json.loads(part), dict) for part in out.split(b"\0")[:-1])


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"junk",
        b"{",
        b'{"id":NaN}',
        b'{"id":"\xff"}',
        b'{"id":1}'.decode().encode("utf-16"),
        b"[" * 100_000,
        b'{"x":"' + b"x" * messages.MAX_MESSAGE + b'"}',
        picture(messages.MAX_MESSAGE).replace(b'"id"', b'"no"'),
    ],
    ids=["empty", "word", "half", "constant", "bytes", "utf16", "deep", "large", "like-a-picture"],
)
def test_junk_is_left_out_and_what_follows_passes(junk: bytes) -> None:
    assert passed(junk + b'\0{"id":2}\0', 65_536) == b'{"id":2}\0'


@pytest.mark.parametrize("size", [1 << 20, 1 << 22])
@pytest.mark.parametrize("chunk", [4_096, 65_536, 1 << 24])
def test_a_picture_passes_in_pieces(size: int, chunk: int) -> None:
    stream = picture(size) + b"\0" + b'{"id":8}\0'
    assert passed(stream, chunk) == stream


@pytest.mark.parametrize("tail", [b'",!', b'"}},"x":1}', b'"}}' + b"x" * 300, b""])
def test_a_picture_that_turns_into_something_else_ends_the_browser(tail: bytes) -> None:
    with pytest.raises(ProtocolFailure):
        passed(picture(1 << 21, tail) + b"\0", 65_536)


def test_a_picture_without_end_ends_the_browser() -> None:
    filter_ = Messages()
    filter_.feed(picture(1 << 21, b""))
    with pytest.raises(ProtocolFailure):
        for _ in range(messages.MAX_PICTURE >> 20):
            filter_.feed(b"A" * (1 << 20))


# --- text ----------------------------------------------------------------------------------------


@given(st.text(), st.integers(1, 50))
def test_clean_text_is_one_bounded_printable_line(text: str, limit: int) -> None:
    shown = clean(text, limit)
    assert len(shown) <= limit
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in shown)
    assert len(shown.splitlines()) <= 1


def test_characters_that_hide_others_are_gone() -> None:
    assert clean("a\u202eb\u200bc\x1b[31md\ud800e", 40) == "a b c [31md e"


def test_bounded_says_how_many_are_left_out() -> None:
    assert bounded(["aaaa", "bbbb", "cccc"], 10) == ["aaaa", "bbbb", "[1 more]"]
    assert bounded(["aaaa"], 10) == ["aaaa"]


@pytest.mark.parametrize(
    ("suggested", "name"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\evil\\x.exe", "x.exe"),
        ("a\0b\n.txt", "a b .txt"),
        (".bashrc", "bashrc"),
        ("...", "download"),
        ("", "download"),
        (None, "download"),
        ("$(rm -rf).sh", "_(rm -rf).sh"),
        ("x" * 300 + ".tar.gz", "x" * 93 + ".tar.gz"),
        ("日本語.txt", "日本語.txt"),
    ],
)
def test_names_of_downloads_are_only_names(suggested: object, name: str) -> None:
    assert safe_name(suggested) == name


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_url", "meant"),
    [
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1:80/x", "http://127.0.0.1:80/x"),
        ("app.localhost/x", "http://app.localhost/x"),
        ("example.org", "https://example.org"),
        ("example.org:8080/x", "https://example.org:8080/x"),
        ("//example.org/", "http://example.org/"),
        ("HTTP://Example.org", "HTTP://Example.org"),
        ("about:blank", "about:blank"),
    ],
)
def test_what_a_caller_means(given_url: str, meant: str) -> None:
    assert intended(given_url) == meant


@pytest.mark.parametrize(
    "url", ["", " ", "http://", "http://[", "a b", "http://a\nb", "x" * 3000, "http:///path"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InvalidArgument):
        intended(url)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "FiLe:/x", "javascript:1", "data:,x", "blob:http://x/1", "about:config"]
    + ["view-source:http://x", "chrome://x", "filesystem:http://x", "ftp://x", "ws://x", "mailto:a@b"],
)  # fmt: skip
def test_schemes_that_are_refused(url: str) -> None:
    with pytest.raises(PermissionRefused):
        intended(url)


def test_where_a_tab_may_stay() -> None:
    for url in ("http://x/", "https://x/", "about:blank", "", "chrome-error://chromewebdata/"):
        assert allowed(url)
    for url in (
        "file:///x",
        "chrome://version/",
        "data:text/html,x",
        "about:srcdoc",
        "devtools://x",
    ):
        assert not allowed(url)


@pytest.mark.parametrize(
    ("url", "error", "network", "code"),
    [
        ("http://a.org/", "ERR_NAME_NOT_RESOLVED", "none", "network_refused"),
        ("http://a.org/", "ERR_NAME_NOT_RESOLVED", "open", "host_not_found"),
        ("http://localhost:1/", "ERR_CONNECTION_REFUSED", "none", "connection_refused"),
        ("http://a.org/", "ERR_UNSAFE_REDIRECT", "open", "permission_refused"),
        ("http://a.org/", "ERR_TIMED_OUT", "open", "timed_out"),
        ("http://a.org/", "ERR_ODD", "open", "load_failed"),
    ],
)
def test_what_a_failed_load_means(url: str, error: str, network: str, code: str) -> None:
    told = failed(url, f"Page.goto: net::{error} at {url}", network=network)
    assert isinstance(told, GhostError)
    assert told.code == code


# --- outlines ------------------------------------------------------------------------------------


def lines(*items: dict[str, Any]) -> list[Line]:
    return parse(list(items))


def button(ref: str, name: str, **more: Any) -> dict[str, Any]:
    return {"ref": ref, "role": "button", "name": name, "at": 0, **more}


def test_changes_name_what_came_went_and_differs() -> None:
    before = lines(
        button("e1", "Save"), button("e2", "Go", focused=True), {"role": "text", "name": "a"}
    )
    after = lines(
        button("e1", "Save", states=["disabled"]),
        button("e2", "Go"),
        button("e3", "New", focused=True),
        {"role": "text", "name": "b"},
    )
    assert compare(before, after).splitlines() == [
        '~ e1 button "Save" [disabled]',
        '+ e3 button "New" [focused]',
        "+ b",
        "- a",
    ]
    assert compare(after, after) == ""


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12))
def test_an_outline_does_not_differ_from_itself(rows: list[tuple[str, bool]]) -> None:
    made = lines(
        *(
            button(f"e{n}", name) if acting else {"role": "text", "name": name}
            for n, (name, acting) in enumerate(rows)
        )
    )
    assert compare(made, made) == ""
    assert compare([], made).count("+ ") == len(made)


def test_an_excerpt_begins_where_the_window_is() -> None:
    made = lines(
        *({"role": "text", "name": f"line {n}", "at": -1 if n < 50 else 0} for n in range(400))
    )
    shown = excerpt(made, 500)
    assert len(shown) <= 520
    assert shown.startswith("[50 lines above]\nline 50\n")
    assert shown.endswith("more lines: scroll to see them]")


def test_items_of_a_tampered_page_become_lines_all_the_same() -> None:
    odd: list[Any] = [None, 3, [], {}, {"ref": {"a": 1}, "role": 5, "name": ["x"], "at": "z"}]
    odd += [{"role": "x" * 100, "name": "n" * 1000, "options": "no", "states": [None], "more": -1}]
    made = parse(odd)
    assert len(made) == 3
    assert all(len(line.text) < 400 for line in made)
    assert parse("nonsense") == []


def test_near_names_are_found_by_what_a_reference_stood_for() -> None:
    made = lines(button("e5", "Save file"), button("e6", "Close"))
    assert [line.ref for line in near('button "Save"', made)] == ["e5"]


def test_pictures_are_what_chromium_sends() -> None:
    sent = {"id": 7, "result": {"data": base64.b64encode(bytes(3)).decode()}, "sessionId": "0AF"}
    assert json.dumps(sent, separators=(",", ":")).encode() == picture(4).replace(b"QUFB", b"AAAA")
