# Only this file fetches images that others have published.
"""Gets an image into the engine, and says how much of it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docker.utils import parse_repository_tag

from ghost_mcp.backends.docker.engine import Engine
from ghost_mcp.errors import BackendUnavailable, CaveNotFound, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    import docker

__all__ = ["pull"]

UNKNOWN = "manifest unknown"


async def pull(reference: str, progress: Callable[[int, int], None]) -> str:
    """Fetch an image; returns its id. ``progress`` hears how many of how many bytes are there.

    Raises InvalidArgument when there is none of that name, BackendUnavailable when no registry answers.
    """
    engine = await Engine.open()
    try:
        return await engine.ask(lambda client: _pull(client, reference, progress))
    except (CaveNotFound, BackendUnavailable) as exc:
        # What the engine does not find is an image here; some have no more than the registry's word for it.
        if isinstance(exc, BackendUnavailable) and UNKNOWN not in exc.message:
            raise
        raise InvalidArgument(f"cannot get {reference[:200]}: {exc.message}") from exc
    finally:
        await engine.aclose()


def _pull(client: docker.APIClient, reference: str, progress: Callable[[int, int], None]) -> str:
    repository, tag = parse_repository_tag(reference)
    layers: dict[str, tuple[int, int]] = {}
    for line in client.pull(repository, tag or "latest", stream=True, decode=True):
        if "error" in line:
            raise InvalidArgument(f"cannot get {reference[:200]}: {line['error'][:300]}")
        told: Any = line.get("progressDetail") or {}
        if told.get("total"):
            layers[line["id"]] = (told.get("current", 0), told["total"])
            progress(*(sum(part) for part in zip(*layers.values(), strict=True)))
    found: str = client.inspect_image(reference)["Id"]  # type: ignore[no-untyped-call]
    return found
