"""What an error tells to whom."""

from __future__ import annotations

import pytest

from ghost_mcp.errors import CaveNotFound

THERE = ["mine", "alice/secret-project", "mallory/one"]


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        (
            "nowhere",
            "Caves here: alice/secret-project, mallory/one, mine.",
        ),  # the user of the machine
        ("mallory/two", "Caves here: mallory/one."),
        ("bob/two", "There are none: ghost create NAME"),
        # Of a cave that another of its owner's calls has just removed, engines are asked by id.
        ("0123456789abcdef", ""),
    ],
)
def test_who_does_not_find_a_cave_is_told_of_none_of_others(asked: str, hint: str) -> None:
    assert CaveNotFound.among(asked, THERE).hint == hint
