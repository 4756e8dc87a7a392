"""The warden's runtime as an image, for engines and clusters that take it from one."""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker

from ghost_mcp.warden import runtime

__all__ = ["runtime_image"]


def runtime_image(engine: docker.APIClient, cache: Path) -> Iterator[str]:
    """An image with nothing but /.ghost; it goes at the end."""
    cache.mkdir(parents=True, exist_ok=True)
    folder = runtime.build_runtime(cache)
    (folder / "ld.so").chmod(0o755)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(folder, ".ghost", filter=_roots)
    name = f"ghost-test-runtime-{secrets.token_hex(4)}"
    engine.import_image_from_data(packed.getvalue(), repository=name, tag="latest")
    yield f"{name}:latest"
    engine.remove_image(f"{name}:latest", force=True)


def _roots(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    return entry
