# Only this file does cryptography. A record opens under the very owner, name and version it was sealed for.
"""Sealing values with AES-256-GCM under keys derived by HKDF-SHA-256, and the seal of a whole file.

A nonce is 96 random bits for each write, a tag 16 bytes (NIST SP 800-38D); keys for records, for the file and
the key's id are derived apart from each other, with the salt of the file (RFC 5869).
"""

from __future__ import annotations

import hmac
import os
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from ghost_mcp.errors import PermissionRefused

__all__ = [
    "KEY_BYTES",
    "MAC_CHARS",
    "SALT_BYTES",
    "Record",
    "Seal",
    "from_passphrase",
    "tampered",
]

KEY_BYTES = 32
SALT_BYTES = 16
MAC_CHARS = 64
_NONCE_BYTES = 12
_ID_BYTES = 8
# RFC 7914: 32 MiB and about a tenth of a second for each guess.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 15, 8, 1


class Record(NamedTuple):
    """One sealed value. Times are seconds since the epoch; all but ``sealed`` is readable by whoever reads the file."""

    owner: str
    name: str
    version: int
    created_at: float
    updated_at: float
    nonce: bytes
    sealed: bytes


def tampered(what: str) -> PermissionRefused:
    """The refusal of what was not written by a holder of the key."""
    return PermissionRefused(
        f"the secret store is not as Ghost left it: {what}",
        hint="Nothing of it is used. Restore its folder as a whole from a backup, or remove the folder "
        "to begin anew.",
        code="secrets_tampered",
    )


def from_passphrase(passphrase: bytes, salt: bytes) -> bytes:
    """A root key from a passphrase."""
    made = Scrypt(salt=salt, length=KEY_BYTES, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P)
    return made.derive(passphrase)


def _derive(root: bytes, salt: bytes, purpose: bytes, size: int) -> bytes:
    info = b"ghost secrets 1: " + purpose
    return HKDF(algorithm=SHA256(), length=size, salt=salt, info=info).derive(root)


def _bound(owner: str, name: str, version: int) -> bytes:
    """The associated data. Neither an owner nor a name holds a NUL."""
    return f"ghost secret 1\0{owner}\0{name}\0{version}".encode()


class Seal:
    """What one root key and one salt give. ``key_id`` names the pair and tells nothing of the key."""

    def __init__(self, root: bytes, salt: bytes) -> None:
        self.root, self.salt = root, salt
        self.key_id = _derive(root, salt, b"id", _ID_BYTES).hex()
        self._cipher = AESGCM(_derive(root, salt, b"records", KEY_BYTES))
        self._file_key = _derive(root, salt, b"file", KEY_BYTES)

    def close(
        self,
        owner: str,
        name: str,
        version: int,
        value: bytes,
        *,
        created_at: float,
        updated_at: float,
    ) -> Record:
        """The value as a record, under a nonce of its own."""
        nonce = os.urandom(_NONCE_BYTES)
        return Record(
            owner=owner,
            name=name,
            version=version,
            created_at=created_at,
            updated_at=updated_at,
            nonce=nonce,
            sealed=self._cipher.encrypt(nonce, value, _bound(owner, name, version)),
        )

    def open(self, record: Record) -> bytes:
        """The value. Raises PermissionRefused ``secrets_tampered``."""
        if len(record.nonce) != _NONCE_BYTES:
            raise tampered(f"the record of {record.name} has no proper nonce")
        try:
            bound = _bound(record.owner, record.name, record.version)
            return self._cipher.decrypt(record.nonce, record.sealed, bound)
        except InvalidTag:
            raise tampered(f"the record of {record.name} does not open") from None

    def mac(self, data: bytes) -> str:
        """The seal of a whole file, MAC_CHARS of hex."""
        return hmac.new(self._file_key, data, sha256).hexdigest()

    def check(self, data: bytes, mac: str) -> None:
        """Raises PermissionRefused ``secrets_tampered``."""
        if not hmac.compare_digest(self.mac(data).encode(), mac.encode("utf-8", "replace")):
            raise tampered("its seal is broken")
