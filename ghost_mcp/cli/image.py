# Ghost's own container images, for people.
"""``ghost image``: ``build``, ``list``, ``pull``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from ghost_mcp import images
from ghost_mcp.cli.output import age
from ghost_mcp.errors import InvalidArgument, map_os_errors
from ghost_mcp.reply import size_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from ghost_mcp.cli.output import Output
    from ghost_mcp.images import Image

__all__ = ["run"]


def run(options: argparse.Namespace, out: Output) -> int:
    if options.action == "build":
        _show(anyio.run(_build, options, out), out)
        return 0
    if options.base or options.fresh or options.sbom:
        raise InvalidArgument(
            f"--base, --fresh and --sbom are not for ghost image {options.action}"
        )
    if options.action == "pull":
        pulled = anyio.run(_pull, options.names, out)
        if out.json:
            out.document(pulled)
        return 0
    if options.names:
        raise InvalidArgument("ghost image list takes no names")
    _show(anyio.run(images.listed), out)
    return 0


async def _pull(references: Sequence[str], out: Output) -> dict[str, str]:
    """Get images from where they are published; returns their ids."""
    if not references:
        raise InvalidArgument("which image?", hint="For example: ghost image pull debian:12")
    pulled = {}
    for reference in references:
        pulled[reference] = await images.pull(reference, _tenths(reference, out))
        out.line(f"pulled {reference}")
    return pulled


def _tenths(reference: str, out: Output) -> Callable[[int, int], None]:
    """Says how much is there, at each tenth."""
    last = 0

    def told(done: int, whole: int) -> None:
        nonlocal last
        tenth = 10 * done // whole if whole else 0
        if tenth > last:
            last = tenth
            out.note(f"{reference}: {tenth * 10} % of {size_text(whole)}")

    return told


async def _build(options: argparse.Namespace, out: Output) -> tuple[Image, ...]:
    if not options.names:
        raise InvalidArgument(
            "which image?",
            hint=f"For example: ghost image build slim. There are: {', '.join(images.NAMES)}.",
        )
    made = []
    for name in options.names:
        image = await images.build(name, base=options.base, fresh=options.fresh, report=out.note)
        made.append(image)
        if options.sbom:
            bill = await images.bill_of_materials(image)
            out.note(f"wrote {_write(Path(options.sbom, f'ghost-{name}.cdx.json'), bill)}")
    return tuple(made)


def _write(path: Path, data: bytes) -> Path:
    with map_os_errors("cannot write the bill of materials"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return path


def _show(found: tuple[Image, ...], out: Output) -> None:
    if out.json:
        out.document([image.as_dict() for image in found])
    elif not found:
        out.note("no images of Ghost; make one: ghost image build slim")
    else:
        rows = [
            (
                image.references[0] if image.references else f"({image.name}, replaced)",
                size_text(image.size_bytes),
                f"{age(time.time() - image.created_at_s)} ago",
                "yes" if image.current else "no",
                image.digest,
            )
            for image in found
        ]
        out.table(("IMAGE", "SIZE", "CREATED", "CURRENT", "DIGEST"), rows)
