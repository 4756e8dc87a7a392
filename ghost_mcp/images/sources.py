# Only this file says what an image is built from.
"""The build's context: the files of ``configs/images`` and the warden, in a folder of their own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ghost_mcp.errors import NotFound
from ghost_mcp.warden import runtime

__all__ = ["DOCKERFILE", "files", "folder", "key", "write_context"]

_PLACE = "configs/images"
_WARDEN = "ghost_mcp/warden"
_TIME_S = 315_532_800  # 1980
DOCKERFILE = f"{_PLACE}/Dockerfile"


def folder() -> Path:
    """``configs/images``: in the installed package, else in the checkout. Raises NotFound."""
    package = Path(runtime.__file__).parents[1]
    for top in (package, package.parent):
        if (top / DOCKERFILE).is_file():
            return top / _PLACE
    raise NotFound("the files that images are built from are not here", hint="Install Ghost again.")


def files() -> dict[str, Path]:
    """Every file of the context, by its name there: the names are those of the checkout."""
    warden = [*runtime.warden_sources(), Path(runtime.__file__)]
    return _recipe() | {f"{_WARDEN}/{path.name}": path for path in warden}


def _recipe() -> dict[str, Path]:
    here = folder()
    found = [path for path in here.rglob("*") if _wanted(path)]
    return {f"{_PLACE}/{path.relative_to(here).as_posix()}": path for path in found}


def _wanted(path: Path) -> bool:
    return path.is_file() and path.suffix not in {".md", ".in", ".pyc"}


def key(image: str, *circumstances: str) -> str:
    """Changes with whatever the image is built from, and with the circumstances."""
    digest = hashlib.sha256("\0".join((image, *circumstances)).encode())
    # Only one image has the warden in it.
    for name, path in sorted((files() if image == "runtime" else _recipe()).items()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"\0{name}\0{content}".encode())
    return digest.hexdigest()[:16]


def write_context(target: Path) -> None:
    """The context as files whose modes and times do not depend on how Ghost was installed."""
    for name, path in files().items():
        copy, data = target / name, path.read_bytes()
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
        copy.chmod(0o755 if data.startswith(b"#!") else 0o644)
        os.utime(copy, (_TIME_S, _TIME_S))
