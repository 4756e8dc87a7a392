# Only this file says which host shows which program of which cave. Two caves never share a name.
"""``TARGET--CAVE`` as one label of a host name.

TARGET is a port, the name of a service, or SIDE-PORT: a port of a side service. CAVE is the cave's name where that is enough: a cave of the user of this
machine, whose name has no ``--`` in it and does not look like an id. Every other cave, and one whose name would make the
label too long, is called by its id, 16 hexadecimal digits, which no two caves have.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ghost_mcp.errors import InvalidArgument
from ghost_mcp.spec import NAME, is_id

if TYPE_CHECKING:
    from ghost_mcp.spec import CaveInfo

__all__ = ["DOMAIN", "beside", "label", "port_of_target", "split"]

#: What a preview domain may look like: with a scheme, and a port, where people reach the hub by others than it has.
DOMAIN = re.compile(
    r"(?:(https?)://)?((?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*)(?::([0-9]{1,5}))?"
)
_TARGET = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
LONGEST = 63


def label(info: CaveInfo, target: str) -> str:
    """The label that shows ``target`` of a cave. Raises InvalidArgument for one that no host can be named after."""
    if not _is_target(target):
        raise InvalidArgument(
            f"neither a port nor the name of a service: {target[:40]!r}",
            hint="Ports are 1 to 65535.",
        )
    name = info.name
    plain = not info.spec.owner and "--" not in name and not is_id(name)
    if plain and len(target) + 2 + len(name) <= LONGEST:
        return f"{target}--{name}"
    return f"{target}--{info.id}"


def split(text: str) -> tuple[str, str] | None:
    """Target and cave (name or id) of a label; None for one that :func:`label` does not make."""
    target, dashes, cave = text.rpartition("--")
    if not dashes or len(text) > LONGEST or not _is_target(target) or not NAME.match(cave):
        return None
    return target, cave


def port_of_target(target: str) -> int | None:
    """Its number, when a target is a port and no service."""
    return int(target) if target.isdigit() else None


def beside(target: str) -> tuple[str, int] | None:
    """A side service and its port, when a target may be one."""
    name, dash, port = target.rpartition("-")
    if not dash or not _PORT.fullmatch(port) or int(port) > 65535:
        return None
    return name, int(port)


def _is_target(text: str) -> bool:
    if text.isascii() and text.isdigit():
        return _PORT.fullmatch(text) is not None and int(text) <= 65535
    return _TARGET.fullmatch(text) is not None and text != "xn"  # xn-- begins what IDNA writes
