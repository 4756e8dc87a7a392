"""The bodies of REST against a hub that serves: whatever comes is answered, and never with a failure of ours."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.serving import Served

# A browser for each example would take too long, and so would a service's start.
LEFT_OUT = ("/v1/browser", "/v1/jupyter", "/services", "/v1/filesystem/upload")
HOSTILE = st.sampled_from(
    [
        *(None, True, -1, 0, 10**30, -(2**63), 1e308, 0.1, [], {}, [[]], {"a": {"b": []}}),
        *("", " ", "\0", "a\0b", "\ud800", "x" * 5000, "..", "../../../etc/shadow", "~root"),
        *("/proc/self/environ", "/run/ghost/warden.sock", "//proc/1/mem", "/.ghost", "file:///x"),
        *("$(id)", "`id`", "%00", "%2e%2e/", "\u202egpj", "A" * 300 + "/" + "B" * 300),
    ]
)
NOTHING = b'{"path": ' + b"[" * 5000 + b"]" * 5000 + b"}"


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx2.Client]:
    """A client of an owner of its own, whose caves end with the test."""
    token = served.make_token(owner=f"fuzz-{secrets.token_hex(3)}")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=served.url, headers=headers, timeout=60) as client:
        yield client
        for cave in client.get("/v1/caves").json()["caves"]:
            client.delete(f"/v1/caves/{cave['id']}")


@pytest.fixture(scope="module")
def shapes(http: httpx2.Client) -> list[tuple[str, list[str]]]:
    """The routes that take a JSON object, and the names that it may have."""
    found = []
    for path, methods in http.get("/openapi.json").json()["paths"].items():
        body = methods.get("post", {}).get("requestBody")
        if body is None or path.startswith(LEFT_OUT) or any(word in path for word in LEFT_OUT):
            continue
        schema = body["content"].get("application/json", {}).get("schema", {})
        found.append((path, sorted(schema.get("properties", {}))))
    assert len(found) > 8
    return found


def bodies(names: list[str]) -> st.SearchStrategy[bytes]:
    """Bytes, JSON that is no object, and objects with the right names and the wrong values."""
    value = HOSTILE | st.text(max_size=20) | st.integers() | st.floats()
    name = st.sampled_from([*names, "cave", "extra", "__proto__"])
    told = st.dictionaries(name, value, max_size=5) | value
    return st.binary(max_size=60) | told.map(lambda one: json.dumps(one).encode())


def checked(served: Served, answer: httpx2.Response) -> None:
    """An answer that may be given to a stranger."""
    assert answer.status_code < 500, (answer.request.url, answer.text[:500])
    assert str(served.state) not in answer.text
    assert "Traceback" not in answer.text
    if answer.status_code >= 400:
        told: dict[str, Any] = answer.json()
        assert told["code"], told
        assert told["status"] == answer.status_code


@pytest.mark.timeout(300)
def test_whatever_is_sent_is_answered(
    served: Served, http: httpx2.Client, shapes: list[tuple[str, list[str]]]
) -> None:
    chosen = st.sampled_from(shapes).flatmap(
        lambda shape: st.tuples(st.just(shape[0]), bodies(shape[1]))
    )

    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
    @given(chosen)
    @example(("/v1/file/read", NOTHING))
    @example(("/v1/file/read", b'{"path": "a", "path": "../../etc/shadow"}'))
    @example(("/v1/caves", b'{"limits": {"memory_bytes": 1e999}}'))
    def tried(sent: tuple[str, bytes]) -> None:
        path, body = sent
        checked(served, http.post(path.replace("{id}", "default"), content=body, headers=JSON))

    tried()


JSON = {"Content-Type": "application/json"}


@settings(max_examples=60)
@given(path=HOSTILE.filter(lambda one: isinstance(one, str)) | st.text(max_size=30))
@example("..%2f..%2fetc%2fshadow")
def test_a_download_is_of_the_cave(served: Served, http: httpx2.Client, path: str) -> None:
    """Also what is written in an address: no path leads out, and none is a failure of ours."""
    text = path.encode("utf-8", "replace").decode()
    answer = http.get("/v1/filesystem/download", params={"path": text})
    assert answer.status_code < 500, (path, answer.text[:500])
    assert b"root:$" not in answer.content
    assert str(served.state).encode() not in answer.content
