# Only this file knows where the root key comes from. It is never derived from anything that is in the store.
"""Root keys: a private file, an environment variable, a passphrase, or the operating system's keyring.

``$GHOST_SECRETS_KEY`` is empty for the file ``key`` beside the store, ``file:PATH`` for another one,
``keyring``, or 32 bytes in base64 or hex; ``$GHOST_SECRETS_PASSPHRASE`` is a passphrase instead.
"""

from __future__ import annotations

import base64
import binascii
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from ghost_mcp.errors import BackendUnavailable, Conflict, InvalidArgument, Unsupported
from ghost_mcp.secrets.files import read_private, replace
from ghost_mcp.secrets.seal import KEY_BYTES, from_passphrase

__all__ = ["FileKeys", "GivenKey", "KeyringKeys", "Keys", "Passphrase", "find_keys"]

KEY, PASSPHRASE, NEXT = "GHOST_SECRETS_KEY", "GHOST_SECRETS_PASSPHRASE", "_NEXT"
LEAST_PASSPHRASE = 12
_MAX_FILE = 4096


class Keys(Protocol):
    """Where root keys are kept. Its caller holds the store's lock."""

    def load(self, salt: bytes) -> tuple[bytes, ...]:
        """The keys there are, at most two: a rotation may have been cut short. Empty before the first use."""

    def stage(self, salt: bytes) -> bytes:
        """A new key, kept beside the one there is until settle(). Raises Unsupported."""

    def settle(self, key: bytes) -> None:
        """From now on there is only this key."""


class _Written(ABC):
    """Keys as lines of base64 in one text that is replaced in one step."""

    def load(self, salt: bytes) -> tuple[bytes, ...]:
        text = self._read()
        return () if text is None else tuple(_parse(line) for line in text.split()[:2])

    def stage(self, salt: bytes) -> bytes:
        key = os.urandom(KEY_BYTES)
        self._write([*self.load(salt)[:1], key])
        return key

    def settle(self, key: bytes) -> None:
        if self.load(b"") != (key,):
            self._write([key])

    def _write(self, keys: list[bytes]) -> None:
        self._replace("".join(base64.b64encode(key).decode() + "\n" for key in keys))

    @abstractmethod
    def _read(self) -> str | None:
        """What is kept, None when nothing is."""

    @abstractmethod
    def _replace(self, text: str) -> None:
        """Keep this instead, in one step."""


class FileKeys(_Written):
    """A file of mode 0600. One that others may read is refused."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _read(self) -> str | None:
        data = read_private(self._path, _MAX_FILE)
        return None if data is None else data.decode("ascii", "replace")

    def _replace(self, text: str) -> None:
        replace(self._path, text.encode())


class KeyringKeys(_Written):
    """An entry of the operating system's keyring, one for each store."""

    def __init__(self, store: Path) -> None:
        try:
            import keyring
            from keyring.errors import KeyringError
        except ImportError as exc:
            raise BackendUnavailable(
                "the package keyring is not installed", hint="pip install 'ghost-mcp[keyring]'"
            ) from exc
        self._keyring, self._error = keyring, KeyringError
        self._entry = ("ghost secrets", str(store.absolute()))

    def _read(self) -> str | None:
        try:
            text: str | None = self._keyring.get_password(*self._entry)
        except self._error as exc:
            raise BackendUnavailable(f"the keyring does not answer: {exc}") from exc
        return text

    def _replace(self, text: str) -> None:
        try:
            self._keyring.set_password(*self._entry, text)
        except self._error as exc:
            raise BackendUnavailable(f"the keyring took no key: {exc}") from exc


class GivenKey:
    """A key that the caller keeps. A rotation needs the next one too; then the caller has to give that one."""

    def __init__(self, key: bytes, following: bytes | None = None, *, name: str = KEY) -> None:
        self._key, self._following, self._name = key, following, name

    def load(self, salt: bytes) -> tuple[bytes, ...]:
        return tuple(
            self._root(key, salt) for key in (self._key, self._following) if key is not None
        )

    def stage(self, salt: bytes) -> bytes:
        if self._following is None or self._following == self._key:
            raise Unsupported(
                f"the next key is not given: the one there is comes from ${self._name}",
                hint=f"Set ${self._name}{NEXT} to the new one, rotate, then use it as ${self._name}.",
            )
        return self._root(self._following, salt)

    def settle(self, key: bytes) -> None:
        return

    def _root(self, key: bytes, salt: bytes) -> bytes:
        return key


class Passphrase(GivenKey):
    """Made a key by scrypt, with the store's salt."""

    def _root(self, key: bytes, salt: bytes) -> bytes:
        return _stretched(key, salt)


@lru_cache(maxsize=4)
def _stretched(passphrase: bytes, salt: bytes) -> bytes:
    """A tenth of a second once for each store, not for each use."""
    return from_passphrase(passphrase, salt)


def find_keys(folder: Path, environment: Mapping[str, str] = os.environ) -> Keys:
    """Where the environment says the key of the store in ``folder`` is. Raises InvalidArgument."""
    given, passphrase = environment.get(KEY, ""), environment.get(PASSPHRASE, "")
    if given and passphrase:
        raise Conflict(f"${KEY} and ${PASSPHRASE} are both set", hint="Leave one out.")
    if passphrase:
        following = environment.get(PASSPHRASE + NEXT)
        return Passphrase(
            _phrase(passphrase), _phrase(following) if following else None, name=PASSPHRASE
        )
    if not given:
        return FileKeys(folder / "key")
    if given == "keyring":
        return KeyringKeys(folder)
    if given.startswith("file:"):
        return FileKeys(Path(given[5:]).expanduser().absolute())
    following = environment.get(KEY + NEXT)
    return GivenKey(_parse(given), _parse(following) if following else None)


def _phrase(text: str) -> bytes:
    if len(text) < LEAST_PASSPHRASE:
        raise InvalidArgument(
            f"the passphrase has fewer than {LEAST_PASSPHRASE} characters",
            hint="Take some random words.",
        )
    return os.fsencode(text)


def _parse(text: str) -> bytes:
    """Raises InvalidArgument; the text is not repeated."""
    for decode in (binascii.unhexlify, lambda given: base64.b64decode(given, validate=True)):
        try:
            key = decode(text.encode())
        except (ValueError, UnicodeEncodeError):
            continue
        if len(key) == KEY_BYTES:
            return key
    raise InvalidArgument(
        "the key of the secret store is not 32 bytes in base64 or hex",
        hint="Make one with: openssl rand -base64 32",
    )
