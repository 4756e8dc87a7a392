# Only this file reads and writes tokens. A token's value exists once: in what create() returns.
"""Tokens of the hub: one file that holds hashes and who each token stands for, for nobody else to read.

A value is 256 bits of the system's randomness, so one SHA-256 protects it as well as a slow hash would: there is
nothing to guess through. The file is read again when it changes, so that a revoked token is dead at once.
Hubs that stand for one another read the same file, a mounted Secret for example.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ghost_hub.principal import Principal, check_scopes
from ghost_mcp.errors import BackendUnavailable, NotFound
from ghost_mcp.spec import check_name

__all__ = ["Token", "Tokens"]

PREFIX = "ghost"
UNKNOWN = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is known of a token. Times are seconds since the epoch; ``expires_at`` None is never."""

    id: str
    owner: str
    scope: str
    created_at: float
    expires_at: float | None = None
    note: str = ""
    sha256: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For people: without the hash."""
        shown = asdict(self)
        del shown["sha256"]
        return shown


class Tokens:
    """The tokens in one file. Every method may be used by several processes at once.

    ``file`` is one that somebody else looks after: a hub reads it, and makes no first token in it. Its group may
    read it too, for so is a Secret given to a program that is not root.
    """

    def __init__(self, state_folder: str, *, file: str | None = None) -> None:
        self._path = Path(file) if file else Path(state_folder, "hub", "tokens.json")
        self._closed_to = 0o037 if file else 0o077
        self.given = file is not None
        self._stamp: tuple[int, int, int] | None = None
        self._known: dict[str, Token] = {}

    def verify(self, value: str) -> Principal | None:
        """Who a token stands for; None for one that is unknown, revoked or expired.

        An unknown token takes as long as a known one with another secret.
        """
        prefix, _, rest = value.partition("_")
        token_id, _, _ = rest.partition("_")
        token = self._read().get(token_id) if prefix == PREFIX else None
        given = hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()
        same = hmac.compare_digest(given, token.sha256 if token else UNKNOWN)
        if token is None or not same or not _lives(token):
            return None
        return _principal(token)

    def standing(self, token_id: str) -> tuple[Principal, bytes] | None:
        """Who a token stands for while it is valid, and a key of its own, which is kept where its hash is kept."""
        token = self._read().get(token_id)
        if token is None or not _lives(token):
            return None
        return _principal(token), bytes.fromhex(token.sha256)

    def create(
        self,
        *,
        owner: str = "",
        scope: str = "manage",
        expires_s: float | None = None,
        note: str = "",
    ) -> tuple[str, Token]:
        """A new token and its value, which is told nowhere else. Raises InvalidArgument."""
        if owner:
            check_name(owner)
        check_scopes([scope])
        token_id = secrets.token_hex(4)
        value = f"{PREFIX}_{token_id}_{secrets.token_urlsafe(32)}"
        now = time.time()
        token = Token(
            id=token_id,
            owner=owner,
            scope=scope,
            created_at=now,
            expires_at=None if expires_s is None else now + expires_s,
            note=note[:200],
            sha256=hashlib.sha256(value.encode()).hexdigest(),
        )
        with self._changing() as known:
            known[token_id] = token
        return value, token

    def list(self) -> list[Token]:
        """All tokens, oldest first."""
        return sorted(self._read().values(), key=lambda token: token.created_at)

    def revoke(self, token_id: str) -> None:
        """Forget a token. Raises NotFound."""
        with self._changing() as known:
            if known.pop(token_id, None) is None:
                raise NotFound(f"no token {token_id[:40]}", hint="See: ghost token list")

    # --- the file --------------------------------------------------------------------------------

    def _read(self) -> dict[str, Token]:
        try:
            info = os.stat(self._path)
        except FileNotFoundError:
            self._known, self._stamp = {}, None
            return self._known
        stamp = (info.st_mtime_ns, info.st_ino, info.st_size)
        if stamp != self._stamp:
            if info.st_mode & self._closed_to:
                raise BackendUnavailable(
                    f"{self._path} is open to others: its tokens are not used",
                    hint=f"chmod 600 {self._path}",
                )
            self._known, self._stamp = self._parse(self._path.read_bytes()), stamp
        return self._known

    def _parse(self, raw: bytes) -> dict[str, Token]:
        try:
            return {entry["id"]: Token(**entry) for entry in json.loads(raw)["tokens"]}
        except (ValueError, TypeError, KeyError) as exc:
            raise BackendUnavailable(
                f"{self._path} is not a file of tokens", hint="Remove it, and make new tokens."
            ) from exc

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Token]]:
        """The tokens, to be changed; written when the block ends well. One process at a time."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = dict(self._read())
            yield known
            temporary = f"{self._path}.{secrets.token_hex(4)}"
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                json.dump({"tokens": [asdict(token) for token in known.values()]}, file)
                file.flush()
                os.fsync(fd)
            os.rename(temporary, self._path)
        finally:
            os.close(lock)


def _lives(token: Token) -> bool:
    return token.expires_at is None or time.time() < token.expires_at


def _principal(token: Token) -> Principal:
    return Principal(owner=token.owner, scope=token.scope, token_id=token.id)
