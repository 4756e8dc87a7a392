"""What a file becomes by edits, and the diff that says so: checked by applying it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_mcp.warden import edits

TEXTS = st.text("ab \n", max_size=60)
# Positions, sorted and paired to spans, and what comes there.
SPANS = st.lists(st.tuples(st.integers(0, 60), st.text("xy\n", max_size=5)), max_size=6)


def spans(text: str, drawn: list[tuple[int, str]]) -> list[tuple[int, int, str]]:
    """Spans of the text in order, none overlapping another."""
    positions = sorted(min(position, len(text)) for position, _ in drawn)
    pairs = zip(positions[::2], positions[1::2], strict=False)
    return [(a, b, new) for (a, b), (_, new) in zip(pairs, drawn, strict=False)]


def patched(old: str, diff: str) -> str:
    """The text a unified diff makes of ``old``. Each hunk's own lines and counts are checked."""
    lines = old.splitlines(keepends=True)
    made: list[str] = []
    at = 0
    for hunk in re.split(r"^(?=@@ )", diff, flags=re.MULTILINE)[1:]:
        header, *body = hunk.splitlines(keepends=True)
        found = re.fullmatch(r"@@ -(\d+),(\d+) \+(\d+),(\d+) @@\n", header)
        assert found is not None
        start, removed, new_start, added = map(int, found.groups())
        start -= bool(removed)
        made += lines[at:start]
        assert len(made) == new_start - bool(added)
        before: list[tuple[str, str]] = []
        after: list[tuple[str, str]] = []
        last = ""
        for line in body:
            if line.startswith("\\"):
                for side in (before, after):
                    if side and side[-1][0] == last:
                        side[-1] = (last, side[-1][1].removesuffix("\n"))
                continue
            last = line[0]
            for signs, side in ((" -", before), (" +", after)):
                if last in signs:
                    side.append((last, line[1:]))
        assert [text for _, text in before] == lines[start : start + removed]
        assert len(after) == added
        made += [text for _, text in after]
        at = start + removed
    return "".join(made + lines[at:])


@given(TEXTS, st.lists(SPANS, min_size=1, max_size=3))
def test_the_diff_of_any_edits_makes_the_new_text(
    old: str, rounds: list[list[tuple[int, str]]]
) -> None:
    text = old
    changes: list[tuple[int, int, int, int]] = []
    for drawn in rounds:
        text, made = edits._apply(text, spans(text, drawn))
        changes = edits.compose(changes, made)
    pieces, at = [], 0
    for a, b, c, d in changes:
        pieces += [old[at:a], text[c:d]]
        at = b
    assert "".join([*pieces, old[at:]]) == text
    diff, cut = edits.unified(old, text, changes, "f")
    assert not cut
    assert patched(old, diff) == text
    assert bool(diff) == (old != text)


def test_lines_an_edit_repeats_are_context() -> None:
    old = "a\nb\nc\nd\n"
    text, changes = edits._apply(old, [(0, 6, "a\nB\nc\n")])
    assert edits.unified(old, text, changes, "f") == (
        "--- f\n+++ f\n@@ -1,4 +1,4 @@\n a\n-b\n+B\n c\n d\n",
        False,
    )


def test_a_long_diff_is_cut_between_lines() -> None:
    old = "".join(f"line {n}\n" for n in range(1000))
    text, changes = edits._apply(old, edits._equal(old, "line", "Line"))
    diff, cut = edits.unified(old, text, changes, "f")
    assert cut
    assert len(diff) < edits.DIFF_CHARS + 100
    assert diff.endswith("\n")


def test_a_long_line_is_shortened() -> None:
    old = "x" * 10_000
    text, changes = edits._apply(old, [(0, 1, "y")])
    diff, cut = edits.unified(old, text, changes, "f")
    assert not cut
    assert "[... 9700 more]" in diff


@pytest.mark.parametrize(
    ("text", "old", "hint"),
    [
        ("a\n  b\nc\n", "a\nb\nc", "Line 2 is '  b' where old has 'b'."),
        ("a\nb\n", "a\nb\nc", "Line 3 is '' where old has 'c'."),
        ("first\nsecond line\n", "secnd line", "Most alike is line 2: 'second line'."),
        ("first\n", "quite another", ""),
        ("tab\there\n", "tab here", "Most alike is line 1: 'tab\\there'."),
    ],
)
def test_what_was_meant_is_guessed(text: str, old: str, hint: str) -> None:
    assert edits._nearest(text, old) == hint
