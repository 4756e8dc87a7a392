"""The targets against bytes at random, and against each input that is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CORPUS, TARGETS

KEPT = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_kept_passes(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_bytes_at_random_pass(name: str) -> None:
    pieces = [path.read_bytes() for path in KEPT if path.parent.name == name]

    @settings(max_examples=100)
    @given(st.lists(st.sampled_from(pieces) | st.binary(max_size=40), max_size=4).map(b"".join))
    def tried(data: bytes) -> None:
        TARGETS[name](data)

    tried()


def test_each_target_has_a_corpus() -> None:
    assert {path.parent.name for path in KEPT} == set(TARGETS)
