"""What looks for secrets in all that the tests leave behind does find them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.security.canary import canary, left_in


@pytest.mark.parametrize("place", [0, (1 << 20) - 20])
def test_a_secret_that_is_left_in_any_form_is_found(tmp_path: Path, place: int) -> None:
    value = canary()
    assert left_in(tmp_path) == []
    for form in (
        value,
        base64.b64encode(b"k=" + value),
        value.hex().encode(),
        quote(value, safe="").encode(),
        json.dumps(value.decode()).encode(),
    ):
        file = tmp_path / "log"
        file.write_bytes(bytes(place) + b"k=" + form + b"\n")
        assert left_in(tmp_path) == [file]
        assert left_in(tmp_path.parent, without=(tmp_path.name,)) == []
        file.unlink()
    (tmp_path / "other").write_bytes(value[:-3])
    assert left_in(tmp_path) == []
