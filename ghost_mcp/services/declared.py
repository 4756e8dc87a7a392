# Only this file reads what services there are: configs/services.yaml, and a file of the user's over it.
"""Declarations of services, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ghost_mcp.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FILE", "Declared", "declared"]

#: The variable that names a file with services of the user's own.
FILE = "GHOST_SERVICES"
_BUNDLED = "configs/services.yaml"


class Declared(BaseModel):
    """One service as its file declares it; see configs/services.yaml for the words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    about: str = ""
    command: str = Field(min_length=1, max_length=30_000)
    port: int | None = Field(default=None, ge=1, le=65535)
    ask: str = Field(default="", max_length=1000)
    expect: str = Field(default="", max_length=200)
    ready_s: float = Field(default=30.0, gt=0, le=600)
    cwd: str | None = None
    env: Mapping[str, str] = Field(default_factory=dict)
    program: str | None = Field(default=None, pattern=r"^[a-z_]+\.py$")
    programs: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    packages: str = ""
    idle_s: float | None = Field(default=None, gt=0)
    page: str | None = ""

    def source(self) -> bytes:
        """The program of Ghost's own that it runs, or nothing."""
        if self.program is None:
            return b""
        return resources.files("ghost_mcp.services.incave").joinpath(self.program).read_bytes()

    @property
    def way_out(self) -> str:
        """What to do in a cave that lacks it."""
        ways = []
        if self.images:
            image = self.images[0]
            ways.append(
                f"make the cave from an image that has it: --backend docker --image {image} "
                f"(ghost image build {image.removeprefix('ghost-')})"
            )
        if self.packages:
            ways.append(f"install it where the cave's programs come from ({self.packages})")
        text = "; or ".join(ways) or "install what it needs"
        return f"{text[0].upper()}{text[1:]}."


def declared() -> Mapping[str, Declared]:
    """All services by name. Raises InvalidArgument, which says where a file is wrong."""
    return _all(os.environ.get(FILE, ""))


@lru_cache(maxsize=4)
def _all(own: str) -> Mapping[str, Declared]:
    found = _read(_bundled())
    return {**found, **_read(Path(own))} if own else found


def _bundled() -> Path:
    package = Path(__file__).parents[1]
    for top in (package, package.parent):
        if (top / _BUNDLED).is_file():
            return top / _BUNDLED
    raise NotFound("the declarations of services are not here", hint="Install Ghost again.")


def _read(path: Path) -> dict[str, Declared]:
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        services = raw["services"] if isinstance(raw, dict) and set(raw) == {"services"} else None
        if not isinstance(services, dict):
            raise InvalidArgument(f"{path}: not a list of services", hint=f"See {_BUNDLED}.")
        return {str(name): _one(str(name), body) for name, body in services.items()}
    except (OSError, ValueError, yaml.YAMLError) as exc:
        if isinstance(exc, ValidationError):
            first = exc.errors(include_url=False, include_input=False)[0]
            exc = ValueError(f"{_where(first['loc'])}: {first['msg']}")
        raise InvalidArgument(f"cannot read services from {path}: {exc}") from None


def _one(name: str, body: Any) -> Declared:
    if not isinstance(body, dict):
        raise InvalidArgument(
            f"service {name[:64]!r} is not a declaration", hint=f"See {_BUNDLED}."
        )
    return Declared.model_validate({**body, "name": name})


def _where(loc: Sequence[int | str]) -> str:
    return ".".join(map(str, loc))
