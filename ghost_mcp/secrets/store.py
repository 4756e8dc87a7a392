# The store is one file that is replaced in one step: every change is there wholly or not at all.
"""Sealed values in ``STATE/secrets``: ``store`` (records under one seal), ``seen``, ``lock``, mostly ``key``.

What the seal and ``seen`` (the newest generation that was written) make fail closed: a changed byte, a record
taken out, swapped, moved to another name or owner, or put back from an older store, and an older store as a
whole. Not detected: an older store together with the ``seen`` of its time, by a process that starts after it.

A rotation keeps two keys where keys are kept, writes the store under the new one (the commit), and then drops
the old key. Killed before the commit, the old key opens the store; after it, the new one does.
"""

from __future__ import annotations

import json
import os
import re
import time
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ghost_mcp.errors import InvalidArgument, LimitExceeded, NotFound, PermissionRefused
from ghost_mcp.secrets import files
from ghost_mcp.secrets.keys import find_keys
from ghost_mcp.secrets.seal import MAC_CHARS, SALT_BYTES, Record, Seal, tampered
from ghost_mcp.spec import check_name

if TYPE_CHECKING:
    from pathlib import Path

    from ghost_mcp.secrets.keys import Keys

__all__ = ["MAX_VALUE_BYTES", "SecretInfo", "SecretStore"]

MAX_VALUE_BYTES = 4 << 20
MAX_RECORDS = 10_000
MAX_TOTAL_BYTES = 128 << 20
_MAX_FILE_BYTES = 2 * MAX_TOTAL_BYTES
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_FORMAT = 1

_Key = tuple[str, str]  # owner, name


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretInfo:
    """What is told of a secret. A version is never given twice in a store; times are seconds since the epoch."""

    owner: str
    name: str
    version: int
    created_at: float
    updated_at: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """The store at one moment, under the seal it was found with, or is to be written with."""

    seal: Seal
    generation: int
    records: Mapping[_Key, Record]


class SecretStore:
    """The secrets of one state folder, of all owners. Any number of processes may use it at once.

    Every method may block for a disk and, with a passphrase, for a tenth of a second. They raise
    PermissionRefused, ``secrets_tampered`` for a store that is not as Ghost left it, and TimedOut.
    """

    def __init__(self, folder: Path, keys: Keys | None = None) -> None:
        self._folder = folder
        self._given_keys = keys
        self._store, self._seen_file = folder / "store", folder / "seen"
        self._seen = 0

    @property
    def exists(self) -> bool:
        """Whether anything was ever set here. Costs one look at the disk."""
        return self._seen_file.exists() or self._store.exists()

    @property
    def _keys(self) -> Keys:
        if self._given_keys is None:
            self._given_keys = find_keys(self._folder)
        return self._given_keys

    # --- reading ---------------------------------------------------------------------------------

    def get(self, owner: str, names: Iterable[str]) -> dict[str, bytes]:
        """The values of those that are set."""
        content = self._read()
        found = ((name, content.records.get((owner, name))) for name in names) if content else ()
        return {name: content.seal.open(record) for name, record in found if content and record}

    def infos(self, owner: str) -> list[SecretInfo]:
        """What is told of an owner's secrets, by name."""
        content = self._read()
        records = content.records.values() if content else ()
        return [_info(record) for record in sorted(records, key=_name) if record.owner == owner]

    def _read(self) -> _Content | None:
        if not self.exists:
            return None
        with files.locked(self._folder, shared=True):
            return self._load()

    # --- writing ---------------------------------------------------------------------------------

    def set(self, owner: str, values: Mapping[str, bytes]) -> list[SecretInfo]:
        """Set all of them, in one step. Raises InvalidArgument, LimitExceeded."""
        _check(owner, values)
        now = time.time()

        def change(content: _Content) -> dict[_Key, Record]:
            records = dict(content.records)
            for name, value in values.items():
                old = records.get((owner, name))
                records[owner, name] = content.seal.close(
                    owner,
                    name,
                    content.generation,
                    value,
                    created_at=now if old is None else old.created_at,
                    updated_at=now,
                )
            return records

        written = self._change(change)
        return [_info(written.records[owner, name]) for name in values]

    def remove(self, owner: str, names: Iterable[str]) -> None:
        """Remove all of them, in one step: their records are gone from the file. Raises NotFound."""

        def change(content: _Content) -> dict[_Key, Record]:
            records = dict(content.records)
            for name in dict.fromkeys(names):
                if records.pop((owner, name), None) is None:
                    raise NotFound(
                        f"no such secret: {name[:128]}",
                        hint="See: ghost secret list",
                        code="secret_not_found",
                    )
            return records

        self._change(change)

    def rotate(self) -> int:
        """Seal everything under a new key and forget the old one; returns how many secrets there are."""
        self._make_folder()
        with files.locked(self._folder):
            old = self._open()
            values = {key: old.seal.open(record) for key, record in old.records.items()}
            salt = os.urandom(SALT_BYTES)
            root = self._keys.stage(salt)
            seal = Seal(root, salt)
            records = {
                key: seal.close(
                    *key,
                    record.version,
                    values[key],
                    created_at=record.created_at,
                    updated_at=record.updated_at,
                )
                for key, record in old.records.items()
            }
            self._write(_Content(seal=seal, generation=old.generation + 1, records=records))
            self._keys.settle(root)
        return len(records)

    def _change(self, change: Callable[[_Content], dict[_Key, Record]]) -> _Content:
        """Replace the records by what ``change`` makes of them; it is given the generation it writes."""
        self._make_folder()
        with files.locked(self._folder):
            old = self._open()
            new = replace(old, generation=old.generation + 1)
            new = replace(new, records=change(new))
            total = sum(len(record.sealed) for record in new.records.values())
            if len(new.records) > MAX_RECORDS or total > MAX_TOTAL_BYTES:
                raise LimitExceeded(
                    f"the store holds at most {MAX_RECORDS} secrets and {MAX_TOTAL_BYTES >> 20} MiB"
                )
            self._write(new)
            return new

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # --- the file; the caller holds the lock -----------------------------------------------------

    def _open(self) -> _Content:
        """For a writer: what is there, or the first of all stores. Ends a rotation that was cut short."""
        content = self._load()
        if content is None:
            salt = os.urandom(SALT_BYTES)
            root = next(iter(self._keys.load(salt)), None)
            if root is None:
                root = self._keys.stage(salt)
            files.replace(self._seen_file, b"0\n")
            return _Content(seal=Seal(root, salt), generation=0, records={})
        self._keys.settle(content.seal.root)
        return content

    def _load(self) -> _Content | None:
        data = files.read_private(self._store, _MAX_FILE_BYTES)
        written = _generation(files.read_private(self._seen_file, 64))
        newest = max(self._seen, written)
        if data is None:
            if newest > 0:
                raise tampered("its file is missing")
            return None
        content = _parse(data, self._seal_of)
        if written < 0 or content.generation < newest:
            raise tampered(
                f"it is of generation {content.generation}, the newest is {max(newest, 0)}; "
                f"if you put it back yourself, write {content.generation} into {self._seen_file}"
            )
        self._seen = content.generation
        return content

    def _seal_of(self, salt: bytes, key_id: str) -> Seal:
        """The key that was used. Raises PermissionRefused ``wrong_key``."""
        for root in self._keys.load(salt):
            seal = Seal(root, salt)
            if seal.key_id == key_id:
                return seal
        raise PermissionRefused(
            f"the secrets in {self._folder} are sealed with another key, or theirs is gone",
            hint="Give Ghost the key file, the variable or the keyring they were set with.",
            code="wrong_key",
        )

    def _write(self, content: _Content) -> None:
        files.replace(self._store, _render(content))
        self._seen = content.generation
        files.replace(self._seen_file, f"{content.generation}\n".encode())


def _check(owner: str, values: Mapping[str, bytes]) -> None:
    if owner:
        check_name(owner)
    for name, value in values.items():
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"not a secret name: {name[:64]!r}", hint="Use letters, digits and _."
            )
        if not value:
            raise InvalidArgument(f"the value of {name} is empty", hint="Give it on stdin.")
        if len(value) > MAX_VALUE_BYTES:
            raise LimitExceeded(
                f"the value of {name} is larger than {MAX_VALUE_BYTES >> 20} MiB", code="too_large"
            )


def _name(record: Record) -> str:
    return record.name


def _info(record: Record) -> SecretInfo:
    return SecretInfo(
        owner=record.owner,
        name=record.name,
        version=record.version,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def _generation(data: bytes | None) -> int:
    """What ``seen`` says; -1 when it is missing or says nothing."""
    return int(data) if data is not None and re.fullmatch(rb"[0-9]{1,18}\n?", data) else -1


# --- the form of the file: a line of JSON and a line with the seal over it ---------------------------


def _render(content: _Content) -> bytes:
    rows = [
        [
            record.owner,
            record.name,
            record.version,
            record.created_at,
            record.updated_at,
            b2a_base64(record.nonce, newline=False).decode(),
            b2a_base64(record.sealed, newline=False).decode(),
        ]
        for record in content.records.values()
    ]
    head = {
        "format": _FORMAT,
        "salt": content.seal.salt.hex(),
        "key": content.seal.key_id,
        "generation": content.generation,
        "records": rows,
    }
    body = json.dumps(head, separators=(",", ":")).encode()
    return b"%s\n%s\n" % (body, content.seal.mac(body).encode())


def _parse(data: bytes, seal_of: Callable[[bytes, str], Seal]) -> _Content:
    """Nothing of the file is believed before its seal is checked, but which key is to check it."""
    body, mac = data[: -MAC_CHARS - 2], data[-MAC_CHARS - 2 :]
    try:
        head = json.loads(body)
        salt, key_id = bytes.fromhex(head["salt"]), str(head["key"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise tampered("it cannot be read") from None
    seal = seal_of(salt, key_id)
    seal.check(body, mac[1:-1].decode("ascii", "replace") if mac[:1] + mac[-1:] == b"\n\n" else "")
    if head["format"] != _FORMAT:
        raise PermissionRefused("the secrets were set by a newer Ghost", hint="Use that one.")
    records = {
        (row[0], row[1]): Record._make([*row[:5], a2b_base64(row[5]), a2b_base64(row[6])])
        for row in head["records"]
    }
    return _Content(seal=seal, generation=head["generation"], records=records)
