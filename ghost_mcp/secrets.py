# Secret values exist in memory and in the cave's programs only. This file never logs or stores one.
"""Where the values of a CaveSpec's secrets come from: the environment of the process that creates the cave."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ghost_mcp.errors import InvalidArgument

__all__ = ["resolve"]


def resolve(names: Iterable[str]) -> dict[str, bytes]:
    """The value of each secret, from the environment variable of its name. Raises InvalidArgument when unset."""
    values = {}
    for name in names:
        value = os.environb.get(name.encode())
        if value is None:
            raise InvalidArgument(
                f"no value for the secret {name}",
                hint=f"Set the environment variable {name} for the process that creates or starts the cave.",
            )
        values[name] = value
    return values
