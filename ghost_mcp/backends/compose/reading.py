# Only this file reads a compose file. Nothing in it is followed: no include, no extends, no other file.
"""A compose file of the owner's as a Project."""

from __future__ import annotations

from pathlib import Path

from ghost_mcp.errors import InvalidArgument, map_os_errors
from ghost_mcp.spec import PROJECT_BYTES, Project

__all__ = ["read"]

MAX_VALUES = 20_000  # aliases can make much of little


def read(path: str, service: str) -> Project:
    """The project of that file, in which ``service`` is the cave. Raises InvalidArgument."""
    import yaml

    file = Path(path).absolute()
    with map_os_errors("cannot read the compose file"):
        text = _text(file)
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise InvalidArgument(f"{file.name} is no YAML: {str(exc)[:300]}") from exc
    if not isinstance(found, dict):
        raise InvalidArgument(f"{file.name} is no compose file", hint="It begins with: services:")
    _count(found)
    return Project(file=found, service=service, folder=str(file.parent))


def _text(file: Path) -> str:
    with file.open("rb") as opened:
        raw = opened.read(PROJECT_BYTES + 1)
    if len(raw) > PROJECT_BYTES:
        raise InvalidArgument(f"{file.name} is larger than {PROJECT_BYTES >> 10} KiB")
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise InvalidArgument(f"{file.name} is no text") from exc


def _count(value: object) -> None:
    """Refuse what is far larger than its text. Raises InvalidArgument."""
    left, waiting = MAX_VALUES, [value]
    while waiting:
        one = waiting.pop()
        left -= 1
        if left < 0:
            raise InvalidArgument(f"a compose file of at most {MAX_VALUES} values, please")
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
