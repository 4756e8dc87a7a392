# Only this file decides where the value of a cave's secret comes from.
"""From the names in a CaveSpec to values: what was set for the owner, else, for this machine's own user, a variable."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import anyio

from ghost_mcp.errors import InvalidArgument, LimitExceeded

if TYPE_CHECKING:
    from pathlib import Path

    from ghost_mcp.secrets.store import SecretStore

__all__ = ["SecretSource", "StoredSecrets", "check_values"]

#: What the programs of a cave can take: one variable as the kernel limits it, and all of them in one message.
MAX_VALUE_BYTES = 120_000
MAX_TOTAL_BYTES = 180_000
_OWN = "GHOST_"


class SecretSource(Protocol):
    """Where a Ghost gets the values of secrets from."""

    async def resolve(self, owner: str, names: Sequence[str]) -> dict[str, bytes]:
        """The value of each. Raises InvalidArgument for one that has none."""


class StoredSecrets:
    """The store below a state folder. ``environment``: a caller without owner may also name variables of ours.

    A hub that serves others is to leave that out: its own variables are none of theirs.
    """

    def __init__(self, state_dir: Path, *, environment: bool) -> None:
        self._folder = state_dir / "secrets"
        self._environment = environment
        self._store: SecretStore | None = None

    async def resolve(self, owner: str, names: Sequence[str]) -> dict[str, bytes]:
        if not names:
            return {}
        values = await anyio.to_thread.run_sync(self._stored, owner, names)
        for name in names:
            if name not in values:
                values[name] = self._variable(owner, name)
        return values

    def _stored(self, owner: str, names: Sequence[str]) -> dict[str, bytes]:
        if not self._folder.is_dir():
            return {}
        if self._store is None:  # kept: it remembers the newest generation it has seen
            from ghost_mcp.secrets.store import SecretStore  # loads the cryptography

            self._store = SecretStore(self._folder)
        return self._store.get(owner, names)

    def _variable(self, owner: str, name: str) -> bytes:
        allowed = self._environment and not owner and not name.startswith(_OWN)
        value = os.environb.get(name.encode()) if allowed else None
        if value is None:
            whose = f" --owner {owner}" if owner else ""
            also = (
                f", or as the variable {name} of whoever creates or starts the cave"
                if allowed
                else ""
            )
            raise InvalidArgument(
                f"no value for the secret {name}",
                hint=f"Set it: ghost secret set {name}{whose}{also}.",
            )
        return value


def check_values(values: Mapping[str, bytes]) -> None:
    """Whether programs can have these in their environment. Raises InvalidArgument, LimitExceeded."""
    for name, value in values.items():
        if b"\0" in value:
            raise InvalidArgument(
                f"the secret {name} holds a NUL, which no variable can",
                hint="Encode it, in base64 say.",
            )
        if len(value) > MAX_VALUE_BYTES:
            raise LimitExceeded(
                f"the secret {name} is larger than the {MAX_VALUE_BYTES} bytes a variable can hold",
                hint="Write it to a file in the cave instead.",
                code="too_large",
            )
    if sum(map(len, values.values())) > MAX_TOTAL_BYTES:
        raise LimitExceeded(
            f"the cave's secrets are larger than {MAX_TOTAL_BYTES} bytes together", code="too_large"
        )
