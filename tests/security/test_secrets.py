"""Secrets, group S: sealed at rest, seen by nobody but a cave's programs, whatever is tried on the store."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ghost_mcp import GhostError
from ghost_mcp.errors import PermissionRefused
from ghost_mcp.secrets.keys import FileKeys, GivenKey, Passphrase
from ghost_mcp.secrets.seal import Seal
from ghost_mcp.secrets.store import SecretStore
from tests.security.canary import canary, forms, holding
from tests.security.results import LONG

ROTATOR = Path(__file__).parent / "rotator.py"
SEED = 20_261_125


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "secrets"


@pytest.fixture
def store(folder: Path) -> SecretStore:
    return SecretStore(folder, FileKeys(folder / "key"))


def again(folder: Path) -> SecretStore:
    """The store as another process finds it."""
    return SecretStore(folder, FileKeys(folder / "key"))


# --- S1: at rest ---------------------------------------------------------------------------------


def test_s1_nothing_in_the_clear_and_what_is_deleted_is_gone(
    store: SecretStore, folder: Path
) -> None:
    value, other = canary(), canary()
    store.set("", {"API_KEY": value})
    store.set("ada", {"API_KEY": other})
    sealed = base64.b64decode(
        json.loads((folder / "store").read_bytes().split(b"\n")[0])["records"][0][6]
    )
    assert holding(folder, [*forms(value), *forms(other)]) == []
    assert (store.get("", ["API_KEY"]), again(folder).get("ada", ["API_KEY"])) == (
        {"API_KEY": value},
        {"API_KEY": other},
    )
    store.remove("", ["API_KEY"])
    assert again(folder).get("", ["API_KEY"]) == {}
    assert holding(folder, [base64.b64encode(sealed), sealed, b'["","API_KEY"']) == []
    assert sorted(path.name for path in folder.iterdir()) == ["key", "lock", "seen", "store"]


def test_s1_only_its_owner_may_read_the_key(store: SecretStore, folder: Path) -> None:
    store.set("", {"API_KEY": b"value"})
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {"secrets": 0o700, "key": 0o600, "lock": 0o600, "seen": 0o600, "store": 0o600}
    for mode in (0o640, 0o604, 0o660, 0o602):
        (folder / "key").chmod(mode)
        with pytest.raises(PermissionRefused) as caught:
            again(folder).get("", ["API_KEY"])
        assert "chmod 600" in caught.value.hint
    (folder / "key").chmod(0o600)
    (folder / "key").rename(folder / "real")
    (folder / "key").symlink_to("real")
    with pytest.raises(GhostError):
        again(folder).get("", ["API_KEY"])


@pytest.mark.parametrize(
    "value",
    [
        b"\n",
        b"a\0b",
        b"'\"`$(x)\\",
        bytes(range(256)),
        os.urandom(1 << 20),
        b"x" * (4 << 20),
        b" line\r\n",
    ],
    ids=["newline", "nul", "quotes", "all-bytes", "1-mib", "4-mib", "spaces"],
)
def test_s1_values_are_bytes(store: SecretStore, folder: Path, value: bytes) -> None:
    store.set("", {"V": value})
    assert again(folder).get("", ["V"]) == {"V": value}


# --- S4: AES-GCM ---------------------------------------------------------------------------------


def test_s4_no_nonce_twice(folder: Path) -> None:
    """Over restarts and a backup that was put back: only randomness may be what keeps nonces apart."""
    seen: set[bytes] = set()
    count, backup = 0, folder.with_name("backup")
    for start in range(20):
        store = again(folder)
        for _ in range(5):
            store.set("", {f"S{number}": b"v" for number in range(1000)})
            records = json.loads((folder / "store").read_bytes().split(b"\n")[0])["records"]
            for record in records:
                nonce, sealed = (base64.b64decode(part) for part in record[5:])
                assert (len(nonce), len(sealed)) == (12, 1 + 16)
                seen.add(nonce)
            count += len(records)
        if start == 3:
            shutil.copytree(folder, backup)
        elif start == 7:
            shutil.rmtree(folder)
            shutil.copytree(backup, folder)
    assert count == len(seen) == 100_000


def test_s4_each_changed_byte_fails_closed(store: SecretStore, folder: Path) -> None:
    store.set("", {"A": b"first", "B": b"second"})
    path, whole = folder / "store", (folder / "store").read_bytes()
    for at in range(len(whole)):
        for changed in (whole[at] ^ 1, whole[at] ^ 0x80):
            path.write_bytes(whole[:at] + bytes([changed]) + whole[at + 1 :])
            with pytest.raises(PermissionRefused):
                again(folder).get("", ["A"])
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(PermissionRefused):
            again(folder).get("", ["A"])
    path.write_bytes(whole)
    assert again(folder).get("", ["A"]) == {"A": b"first"}


def test_s4_a_record_opens_only_where_it_was_sealed() -> None:
    """Also for somebody who could renew the seal of the file: owner, name and version are bound to the value."""
    seal = Seal(os.urandom(32), os.urandom(16))
    record = seal.close("ada", "KEY", 7, b"value", created_at=0, updated_at=0)
    assert seal.open(record) == b"value"
    moved = (
        {"owner": "bob"},
        {"owner": ""},
        {"name": "OTHER"},
        {"version": 8},
        {"version": 70},
        {"nonce": record.nonce[:11]},
        {"nonce": record.nonce + b"\0"},
        {"sealed": record.sealed[:-1]},
        {"sealed": record.sealed[:-4]},
        *(
            {"sealed": bytes(b ^ (i == at) for i, b in enumerate(record.sealed))}
            for at in range(21)
        ),
    )
    for change in moved:
        with pytest.raises(PermissionRefused):
            seal.open(record._replace(**change))
    other = Seal(os.urandom(32), seal.salt)
    with pytest.raises(PermissionRefused):
        other.open(record)


def test_s4_an_older_record_or_store_fails_closed(store: SecretStore, folder: Path) -> None:
    path = folder / "store"
    store.set("", {"KEY": b"old"})
    older = path.read_bytes()
    store.set("", {"KEY": b"new"})
    newer = path.read_bytes()

    old_head, new_head = (json.loads(data.split(b"\n")[0]) for data in (older, newer))
    new_head["records"] = old_head["records"]
    replayed = json.dumps(new_head, separators=(",", ":")).encode() + newer[-66:]
    removed = json.dumps({**new_head, "records": []}, separators=(",", ":")).encode() + newer[-66:]
    for data in (replayed, removed, older):
        path.write_bytes(data)
        for found in (store, again(folder)):
            with pytest.raises(PermissionRefused) as caught:
                found.get("", ["KEY"])
            assert caught.value.code == "secrets_tampered"
            with pytest.raises(PermissionRefused):
                found.set("", {"OTHER": b"x"})
    path.rename(folder / "away")
    with pytest.raises(PermissionRefused):
        again(folder).get("", ["KEY"])
    (folder / "away").rename(path)
    path.write_bytes(newer)
    (folder / "seen").unlink()
    with pytest.raises(PermissionRefused):
        again(folder).get("", ["KEY"])
    (folder / "seen").write_text("2\n")
    (folder / "seen").chmod(0o600)
    assert again(folder).get("", ["KEY"]) == {"KEY": b"new"}


# --- S5: rotation --------------------------------------------------------------------------------


def test_s5_the_old_key_opens_nothing_after_a_rotation(store: SecretStore, folder: Path) -> None:
    values = {f"S{number}": os.urandom(40) for number in range(20)}
    store.set("", values)
    before = store.infos("")
    old = (folder / "key").read_bytes()
    assert store.rotate() == 20
    assert again(folder).get("", values) == values
    assert again(folder).infos("") == before
    assert old.strip() not in (folder / "key").read_bytes()
    (folder / "key").write_bytes(old)
    with pytest.raises(PermissionRefused) as caught:
        again(folder).get("", values)
    assert caught.value.code == "wrong_key"


def test_s5_keys_that_their_user_keeps(folder: Path) -> None:
    first, second = os.urandom(32), os.urandom(32)
    SecretStore(folder, GivenKey(first)).set("", {"A": b"value"})
    with pytest.raises(GhostError) as caught:
        SecretStore(folder, GivenKey(first)).rotate()
    assert "GHOST_SECRETS_KEY_NEXT" in caught.value.hint
    SecretStore(folder, GivenKey(first, second)).rotate()
    assert SecretStore(folder, GivenKey(second)).get("", ["A"]) == {"A": b"value"}
    phrase, following = b"four random words", b"four other random words"
    with pytest.raises(PermissionRefused):
        SecretStore(folder, GivenKey(first)).get("", ["A"])
    shutil.rmtree(folder)
    SecretStore(folder, Passphrase(phrase)).set("", {"A": b"value"})
    SecretStore(folder, Passphrase(phrase, following)).rotate()
    assert SecretStore(folder, Passphrase(following)).get("", ["A"]) == {"A": b"value"}
    with pytest.raises(PermissionRefused):
        SecretStore(folder, Passphrase(phrase)).get("", ["A"])


def test_s5_kill_9_at_random_points_of_work_and_rotation(folder: Path) -> None:
    """Killed wherever it is: what was committed is there, nothing else is, and the store is as good as before."""
    chosen = random.Random(SEED)
    SecretStore(folder).set("", {"KEEP": b"kept"})
    known: dict[str, bytes] = {}
    for _ in range(500 if LONG else 10):
        known = _killed(folder, chosen.uniform(0, 0.05), known)
        found = again(folder)
        assert found.get("", ["KEEP"]) == {"KEEP": b"kept"}
        found.set("", {"AFTER": b"x"})
        assert sorted(path.name for path in folder.iterdir()) == ["key", "lock", "seen", "store"]
        assert len((folder / "key").read_text().split()) == 1


def _killed(folder: Path, after_s: float, known: dict[str, bytes]) -> dict[str, bytes]:
    """Let a process work and kill it; returns what is there, which its last words must allow."""
    command = [sys.executable, str(ROTATOR), str(folder), "S"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        lines = [worker.stdout.readline()]
        time.sleep(after_s)
        worker.kill()
        lines += worker.stdout.readlines()
    expected, under_way = dict(known), ["", ""]
    for words in (line.split() for line in lines if line.endswith("\n")):
        if words[0] == "set":
            expected[words[1]] = words[2].encode()
        elif words[0] == "removed":
            expected.pop(words[1], None)
        under_way = words
    names = [f"S{number}" for number in range(8)]
    found = again(folder).get("", names)
    if found != expected:  # the change that was under way may be there as well, wholly
        assert under_way[0] in ("setting", "removing"), (under_way, found, expected)
        if under_way[0] == "setting":
            expected[under_way[1]] = under_way[2].encode()
        else:
            expected.pop(under_way[1])
    assert found == expected
    return found


def test_s5_others_work_on_while_it_rotates(folder: Path) -> None:
    store = SecretStore(folder)
    values = {f"K{number}": os.urandom(200) for number in range(50)}
    store.set("", values)
    command = [sys.executable, str(ROTATOR), str(folder)]
    workers = [
        subprocess.Popen([*command, prefix], stdout=subprocess.DEVNULL) for prefix in ("A", "B")
    ]
    try:
        for _ in range(500 if LONG else 20):
            assert again(folder).get("", values) == values
            store.rotate()
        assert all(worker.poll() is None for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert again(folder).get("", values) == values
