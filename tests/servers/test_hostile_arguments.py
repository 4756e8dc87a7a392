"""Arguments that cost their sender little: what they may cost the process that serves everybody."""

from __future__ import annotations

import time

import pytest

from ghost_mcp.errors import InvalidArgument
from ghost_servers.file.search import MAX_GLOB, _globs
from ghost_servers.markitdown.tools import _page_range


def test_a_glob_does_not_multiply() -> None:
    """Each of the alternatives would have all that stands around them."""
    with pytest.raises(InvalidArgument, match=f"{MAX_GLOB} characters"):
        _globs(["{" + "," * 8_000 + "}" + "x" * 40_000])
    with pytest.raises(InvalidArgument, match="100 globs"):
        _globs(["{" + "," * 900 + "}"])
    assert _globs(["*.{md,txt}", "{a,b}{c,d}"]) == ("*.md", "*.txt", "ac", "ad", "bc", "bd")


def test_what_is_no_page_range_is_refused_at_once() -> None:
    began = time.process_time()
    with pytest.raises(InvalidArgument, match="not a page range"):
        _page_range("1" + " " * 20_000 + "x")
    assert time.process_time() - began < 2
    assert _page_range(" 2 - 5 ") == (2, 5)
