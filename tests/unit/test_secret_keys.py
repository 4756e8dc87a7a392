"""Where the key of the secret store comes from."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend

from ghost_mcp.errors import GhostError
from ghost_mcp.secrets.keys import find_keys
from ghost_mcp.secrets.store import SecretStore

KEY = base64.b64encode(bytes(range(32))).decode()


class Ring(KeyringBackend):
    """A keyring in memory."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.entries[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.entries[service, username]


@pytest.fixture
def ring() -> Iterator[Ring]:
    before = keyring.get_keyring()
    ring = Ring()
    keyring.set_keyring(ring)
    yield ring
    keyring.set_keyring(before)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"GHOST_SECRETS_KEY": KEY},
        {"GHOST_SECRETS_KEY": bytes(range(32)).hex()},
        {"GHOST_SECRETS_PASSPHRASE": "some random words"},
        {"GHOST_SECRETS_KEY": "file:{folder}/elsewhere"},
        {"GHOST_SECRETS_KEY": "keyring"},
    ],
    ids=["file", "base64", "hex", "passphrase", "other file", "keyring"],
)
def test_each_place_gives_the_same_key_again(
    tmp_path: Path, ring: Ring, environment: dict[str, str]
) -> None:
    folder = tmp_path / "secrets"
    given = {name: value.format(folder=tmp_path) for name, value in environment.items()}
    for expected in ({}, {"A": b"value"}):
        store = SecretStore(folder, find_keys(folder, given))
        assert store.get("", ["A"]) == expected
        store.set("", {"A": b"value"})
    for other in (
        {"GHOST_SECRETS_KEY": os.urandom(32).hex()},
        {"GHOST_SECRETS_PASSPHRASE": "x" * 12},
    ):
        with pytest.raises(GhostError) as caught:
            SecretStore(folder, find_keys(folder, other)).get("", ["A"])
        assert caught.value.code == "wrong_key"
    kept = {path.name for path in folder.iterdir()}
    assert ("key" in kept) == (not environment)
    assert len(ring.entries) == (environment.get("GHOST_SECRETS_KEY") == "keyring")


def test_a_keyring_key_is_rotated_in_the_keyring(tmp_path: Path, ring: Ring) -> None:
    folder = tmp_path / "secrets"
    store = SecretStore(folder, find_keys(folder, {"GHOST_SECRETS_KEY": "keyring"}))
    store.set("", {"A": b"value"})
    [before] = ring.entries.values()
    store.rotate()
    [after] = ring.entries.values()
    assert after != before
    assert len(after.split()) == 1
    assert store.get("", ["A"]) == {"A": b"value"}


@pytest.mark.parametrize(
    "environment",
    [
        {"GHOST_SECRETS_KEY": "short"},
        {"GHOST_SECRETS_KEY": KEY + KEY},
        {"GHOST_SECRETS_KEY": "é" * 32},
        {"GHOST_SECRETS_PASSPHRASE": "too short"},
        {"GHOST_SECRETS_KEY": KEY, "GHOST_SECRETS_PASSPHRASE": "some random words"},
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with pytest.raises(GhostError) as caught:
        find_keys(tmp_path, environment)
    for value in environment.values():
        assert value not in caught.value.render()


def test_a_lost_key_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    SecretStore(folder).set("", {"A": b"value"})
    (folder / "key").unlink()
    for act in (lambda store: store.get("", ["A"]), lambda store: store.set("", {"B": b"x"})):
        with pytest.raises(GhostError) as caught:
            act(SecretStore(folder))
        assert caught.value.code == "wrong_key"
    assert not (folder / "key").exists()
