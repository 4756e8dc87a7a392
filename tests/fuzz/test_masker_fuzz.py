"""The masker against a naive one: what to look for, where, and however a stream is cut."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from ghost_mcp.secrets.masker import EDGE, Masker
from ghost_mcp.secrets.needles import needles

# Few letters, so that needles overlap, begin like each other and repeat themselves.
VALUES = st.dictionaries(
    st.sampled_from(["A", "B", "LONG_NAME"]),
    st.one_of(
        st.text("ab", min_size=6, max_size=40).map(str.encode),
        st.text("ab \n%", min_size=1, max_size=60).map(str.encode),
        st.binary(min_size=6, max_size=90),
    ),
    min_size=1,
    max_size=3,
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, bytes], bytes, list[int]]:
    """Values, data that has something to do with them, and where it is cut."""
    values = draw(VALUES)
    looked_for = sorted(needles(values)) or [b"ab"]
    needle = st.sampled_from(looked_for)
    piece = st.one_of(
        needle,
        st.tuples(needle, st.integers(0, 90)).map(lambda two: two[0][: two[1]]),
        st.tuples(needle, st.integers(0, 90)).map(lambda two: two[0][two[1] :]),
        st.text("ab", max_size=8).map(str.encode),
        st.binary(max_size=8),
    )
    data = b"".join(draw(st.lists(piece, max_size=8)))
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=8).map(sorted))
    return values, data, cuts


def covered(values: dict[str, bytes], data: bytes) -> list[bool]:
    """Which bytes are to be masked: those of every occurrence of every needle."""
    found = [False] * len(data)
    for needle in needles(values):
        for at in range(len(data) - len(needle) + 1):
            if data[at : at + len(needle)] == needle:
                found[at : at + len(needle)] = [True] * len(needle)
    return found


def naive(values: dict[str, bytes], data: bytes) -> bytes:
    """Each run of covered bytes is a label and asterisks; needles that only touch have a label each."""
    named = needles(values)
    spans = [
        (at, at + len(needle), name)
        for needle, name in named.items()
        for at in range(len(data))
        if data.startswith(needle, at)
    ]
    out, end, label = bytearray(), 0, ""
    runs: list[list[int]] = []
    labels: list[str] = []
    for start, stop, name in sorted(spans, key=lambda span: (span[0], -span[1])):
        if runs and start < runs[-1][1]:
            runs[-1][1] = max(runs[-1][1], stop)
        else:
            runs.append([start, stop])
            labels.append(name)
    for (start, stop), name in zip(runs, labels, strict=True):
        label = f"[secret {name}]"
        label = label if len(label) <= stop - start else ""
        out += data[end:start] + label.ljust(stop - start, "*").encode()
        end = stop
    return bytes(out + data[end:])


@given(cases())
def test_the_whole(case: tuple[dict[str, bytes], bytes, list[int]]) -> None:
    values, data, _ = case
    assert Masker(values).mask(data) == naive(values, data)


@given(cases())
@example(({"A": b"ab" * 20}, b"ab" * 200, list(range(0, 400, 3))))
def test_a_stream_however_it_is_cut(case: tuple[dict[str, bytes], bytes, list[int]]) -> None:
    """All of a secret is masked, but the fewer than EDGE bytes that came last before a cut; nothing else is."""
    values, data, cuts = case
    feed = Masker(values).feed()
    out, taken = b"", 0
    longest = max(map(len, needles(values)), default=0)
    pieces = [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    for piece in pieces:
        taken += len(piece)
        out += feed.feed(piece)
        assert taken - len(out) <= 2 * longest
        assert len(out) <= taken
    out += feed.flush()
    assert len(out) == len(data)
    mine = covered(values, data)
    masks = b"*[]ecrt secretABLONG_NAME"
    for at, byte in enumerate(out):
        if not mine[at]:
            assert byte == data[at]
        elif not any(at < cut < at + EDGE for cut in cuts):
            assert byte in masks
    if not cuts and len(data) <= longest:
        assert out == naive(values, data)
    for needle in needles(values):  # of no occurrence more is seen than its first bytes
        for at in range(len(data) - len(needle) + 1):
            if data.startswith(needle, at) and len(needle) > 2 * EDGE:
                assert out[at + EDGE : at + len(needle)] != needle[EDGE:]


@given(cases(), st.booleans(), st.booleans())
def test_a_window_masks_what_was_cut(
    case: tuple[dict[str, bytes], bytes, list[int]], begins: bool, ends: bool
) -> None:
    """What is masked of the whole is masked of the range, but for less than EDGE bytes at its cuts."""
    values, data, cuts = case
    start, stop = (cuts[0], cuts[-1]) if cuts else (0, len(data))
    begins, ends = begins or start == 0, ends or stop == len(data)
    if (begins and start) or (ends and stop < len(data)):
        begins, ends = start == 0, stop == len(data)
    out = Masker(values).window(data[start:stop], begins=begins, ends=ends)
    assert len(out) == stop - start
    for needle in needles(values):
        for at in range(len(data) - len(needle) + 1):
            if data.startswith(needle, at):
                low, high = max(at, start), min(at + len(needle), stop)
                if high - low >= EDGE:
                    seen = out[low - start : high - start]
                    assert seen != data[low:high] or set(seen) <= set(b"*[]")


@given(VALUES, st.text(max_size=40), st.text(max_size=40))
def test_texts_stay_texts(values: dict[str, bytes], before: str, after: str) -> None:
    masker = Masker(values)
    for value in values.values():
        text = before + value.decode("utf-8", "replace") + after
        masked = masker.text(text)
        assert masker.value({text: [text, 1, None]}) == {masked: [masked, 1, None]}
        core = value.strip()
        if len(core) >= 6:
            assert core.decode("utf-8", "replace") not in masked or set(core) <= set(b"*[]secrt ")
