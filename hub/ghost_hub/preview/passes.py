# Only this file decides who may see a preview. Nothing is kept but which tickets have been used.
"""Tickets and cookies of previews: what they say is signed with a key that belongs to a token of the hub.

So a preview ends when its token does, at every hub that reads the same tokens; and none of them has to remember whom
it let in. A pass is good for one cave (by its id: a new cave of the same name is another one) and one target in it. A
ticket stands in an address and is therefore good for a minute and for one use, of each hub; it is turned into a cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ghost_hub.principal import LOCAL, Principal
from ghost_mcp.errors import QuotaExceeded

if TYPE_CHECKING:
    from ghost_hub.guard import Verifier

__all__ = ["COOKIE_S", "TICKET_S", "Pass", "Passes"]

TICKET_S = 60.0
COOKIE_S = 12 * 3600.0
#: Tickets of one token that are remembered as used; they are forgotten when their time is over.
MOST_USED = 1_000
LONGEST = 1_000
_LOCAL_KEY = secrets.token_bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Who may see what: ``target`` is a port or the name of a service. ``expires_at`` is seconds since the epoch."""

    principal: Principal
    cave_id: str
    target: str
    expires_at: float


class Passes:
    """What a hub gives out. ``verifier`` None is a hub without tokens: then they are good while this process lives."""

    def __init__(self, verifier: Verifier | None, clock: Callable[[], float] = time.time) -> None:
        self._verifier, self._clock = verifier, clock
        self._used: dict[str, dict[str, float]] = {}

    def ticket(self, principal: Principal, cave_id: str, target: str) -> tuple[str, float]:
        """A new ticket, and when it ends."""
        return self._sign("ticket", principal, cave_id, target, TICKET_S)

    def cookie(self, shown: Pass) -> tuple[str, float]:
        """What a ticket is turned into, and when it ends."""
        return self._sign("cookie", shown.principal, shown.cave_id, shown.target, COOKIE_S)

    def redeem(self, value: str, target: str) -> Pass | None:
        """The pass of a ticket for that target, which is used by this. Raises QuotaExceeded."""
        found = self._read("ticket", value, target)
        if found is None:
            return None
        now = self._clock()
        used = self._used.setdefault(found.principal.token_id, {})
        for nonce in [nonce for nonce, until in used.items() if until < now]:
            del used[nonce]
        nonce = hashlib.sha256(value.encode()).hexdigest()
        if nonce in used:
            return None
        if len(used) >= MOST_USED:
            raise QuotaExceeded(
                "too many previews were opened with this token", hint="Try again in a minute."
            )
        used[nonce] = found.expires_at
        return found

    def known(self, value: str, target: str) -> Pass | None:
        """The pass of a cookie for that target, as long as its token is valid."""
        return self._read("cookie", value, target)

    def _sign(
        self, kind: str, principal: Principal, cave_id: str, target: str, life_s: float
    ) -> tuple[str, float]:
        standing = self._standing(principal.token_id)
        key = (
            standing[1] if standing else secrets.token_bytes(32)
        )  # revoked this moment: good for nothing
        until = float(int(self._clock() + life_s))
        said = [kind, principal.token_id, cave_id, target, until, secrets.token_hex(16)]
        body = urlsafe_b64encode(json.dumps(said, separators=(",", ":")).encode())
        return f"{body.decode().rstrip('=')}.{_mac(key, body)}", until

    def _read(self, kind: str, value: str, target: str) -> Pass | None:
        text, _, mac = value.partition(".")
        if len(value) > LONGEST or not value.isascii():
            return None
        body = text.encode() + b"=" * (-len(text) % 4)
        try:
            said_kind, token_id, cave_id, said_target, until, _ = json.loads(
                urlsafe_b64decode(body)
            )
        except (ValueError, TypeError, RecursionError):
            return None
        standing = self._standing(token_id) if isinstance(token_id, str) else None
        # One of an unknown token takes as long as one that is forged.
        same = hmac.compare_digest(mac, _mac(standing[1] if standing else b"", body))
        if standing is None or not same:
            return None
        if (said_kind, said_target) != (kind, target) or self._clock() >= until:
            return None
        return Pass(principal=standing[0], cave_id=cave_id, target=target, expires_at=until)

    def _standing(self, token_id: str) -> tuple[Principal, bytes] | None:
        if self._verifier is None:
            return LOCAL, _LOCAL_KEY
        return self._verifier.standing(token_id)


def _mac(key: bytes, body: bytes) -> str:
    own = hmac.digest(key, b"ghost preview", "sha256")
    return urlsafe_b64encode(hmac.digest(own, body, "sha256")).decode().rstrip("=")
