# An engine's images are the truth about what was built: each of ours says by its labels what it is made from.
"""The images of this engine that Ghost has built."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ghost_mcp._version import __version__
from ghost_mcp.images import sources

if TYPE_CHECKING:
    import docker

__all__ = [
    "BASE",
    "INPUTS",
    "NAME",
    "NAMES",
    "Image",
    "bill_of_materials",
    "find",
    "inputs_of",
    "listed",
    "reference",
]

NAMES = ("runtime", "slim", "desktop", "full")
NAME, INPUTS, BASE = "ghost.image", "ghost.inputs", "ghost.base"
MAX_BILL_BYTES = 16 << 20
_NO_TAG = "<none>:<none>"
_BILLS = ("/sbom.cdx.json", "/usr/share/ghost/sbom.cdx.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that Ghost built. ``digest`` is the engine's id of its content; ``inputs`` of what it is made from."""

    name: str
    references: tuple[str, ...]
    digest: str
    inputs: str
    base: str
    size_bytes: int
    created_at_s: int

    @property
    def current(self) -> bool:
        """Whether it is made from the very files of this Ghost."""
        return self.inputs == inputs_of(self.name, self.base)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "current": self.current}


def inputs_of(name: str, base: str) -> str:
    """Changes with whatever an image is made from; ``base`` is empty for Debian's own."""
    return sources.key(name, base, __version__)


def reference(name: str) -> str:
    """What a cave's ``image`` says to get it."""
    return f"ghost-{name}:latest"


async def listed() -> tuple[Image, ...]:
    """Ghost's images, newest first. Raises BackendUnavailable without an engine."""
    from ghost_mcp.backends.docker.engine import Engine

    engine = await Engine.open()
    try:
        seen = await engine.ask(lambda client: client.images(filters={"label": NAME}))
    finally:
        await engine.aclose()
    found = [image for one in seen if (image := _image(one)) is not None]
    return tuple(sorted(found, key=lambda image: -image.created_at_s))


async def find(name: str, inputs: str) -> Image | None:
    """The image that is called so, when it was made from these inputs."""
    for image in await listed():
        if reference(name) in image.references and image.inputs == inputs:
            return image
    return None


def _image(seen: Mapping[str, Any]) -> Image | None:
    """None for an image that somebody made from one of ours: it has our labels, but a name of its own."""
    labels, tags = seen["Labels"] or {}, [tag for tag in seen["RepoTags"] or () if tag != _NO_TAG]
    name = labels[NAME]
    ours = [tag for tag in sorted(tags, reverse=True) if tag.startswith(f"ghost-{name}:")]
    if tags and not ours:
        return None
    return Image(
        name=name,
        references=tuple(ours),
        digest=seen["Id"],
        inputs=labels.get(INPUTS, ""),
        base=labels.get(BASE, ""),
        size_bytes=seen["Size"],
        created_at_s=seen["Created"],
    )


async def bill_of_materials(image: Image) -> bytes:
    """What is in the image, as CycloneDX 1.6 JSON. Raises NotFound for one that has none."""
    from ghost_mcp.backends.docker.engine import Engine

    engine = await Engine.open()
    try:
        return await engine.ask(lambda client: _copied(client, image))
    finally:
        await engine.aclose()


def _copied(client: docker.APIClient, image: Image) -> bytes:
    path = _BILLS[0] if image.name == "runtime" else _BILLS[1]
    made = client.create_container(image.digest, command=["none"])
    try:
        packed = b"".join(client.get_archive(made, path)[0])
    finally:
        client.remove_container(made)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        member = archive.next()
        content = archive.extractfile(member) if member is not None else None
        return b"" if content is None else content.read(MAX_BILL_BYTES)
