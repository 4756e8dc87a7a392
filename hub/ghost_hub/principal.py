# Whoever a request comes from is a Principal; nothing in the hub decides by anything else.
"""Who asks: an owner, and what the token allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ghost_mcp.errors import InvalidArgument, PermissionRefused, Unauthenticated

__all__ = ["LOCAL", "NOBODY", "PRINCIPAL", "SCOPES", "Principal", "check_scopes", "principal_of"]

#: Each scope includes those before it: look, use the tools, make and end caves, see all of the hub.
SCOPES = ("read", "use", "manage", "admin")
#: Where the guard puts the principal in an ASGI scope.
PRINCIPAL = "ghost.principal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """``owner`` is empty for the user of this machine. ``token_id`` names the token, never its value."""

    owner: str
    scope: str
    token_id: str = ""

    def may(self, scope: str) -> bool:
        return SCOPES.index(scope) <= SCOPES.index(self.scope)

    def need(self, scope: str) -> None:
        """Raises PermissionRefused when the token does not allow it."""
        if not self.may(scope):
            raise PermissionRefused(
                f"this token may not do that: it has the scope {self.scope}, {scope} is needed",
                hint=f"Make another: ghost token create --scope {scope}",
            )


#: Who everybody is where there is no authentication.
LOCAL = Principal(owner="", scope="admin")
#: Who asks without a token, at the few addresses that tell nothing.
NOBODY = Principal(owner="", scope="read", token_id="nobody")  # noqa: S106


def check_scopes(words: Iterable[str]) -> str:
    """The highest of some scopes, which includes the others. Raises InvalidArgument."""
    given = list(words)
    if not given or (unknown := [word for word in given if word not in SCOPES]):
        raise InvalidArgument(
            f"not a scope: {unknown[0][:40]!r}" if given else "a token needs a scope",
            hint=f"There are {', '.join(SCOPES)}; each includes those before it.",
        )
    return max(given, key=SCOPES.index)


def principal_of(scope: Mapping[str, Any]) -> Principal:
    """The principal of an ASGI scope. Raises Unauthenticated where the guard did not put one: fail closed."""
    found = scope.get(PRINCIPAL)
    if not isinstance(found, Principal):
        raise Unauthenticated("nobody has said who asks")
    return found
