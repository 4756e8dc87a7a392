# Only what is over is collected: a cave that is stopped waits for its owner, one that has ended does not.
"""``gc``: find what is over on every engine that answers, and remove it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ghost_mcp.errors import BackendUnavailable, Unsupported

if TYPE_CHECKING:
    import argparse

    from ghost_mcp.cli.output import Output
    from ghost_mcp.ghost import Ghost

__all__ = ["gc"]


def gc(options: argparse.Namespace, out: Output) -> int:
    import anyio

    from ghost_mcp.backends.registry import BUILTIN
    from ghost_mcp.ghost import Ghost

    found: dict[str, Any] = {}
    missing: dict[str, str] = {}

    async def act() -> None:
        async with Ghost(backend=options.backend) as ghost:
            for name in [options.backend] if options.backend else BUILTIN:
                try:
                    found[name] = await _collect(ghost, name, remove=not options.dry_run)
                except (BackendUnavailable, Unsupported) as exc:
                    if options.backend:
                        raise
                    missing[name] = str(exc)

    with out.progress("looking"):
        anyio.run(act)
    if out.json:
        out.document({"removed": not options.dry_run, "found": found, "not_asked": missing})
    verb = "would remove" if options.dry_run else "removed"
    for name, kinds in found.items():
        for kind, names in kinds.items():
            for one in names:
                out.line(f"{verb} {name} {kind}: {one}")
    for name, why in missing.items():
        out.note(f"{name} was not asked: {why}")
    return 0


async def _collect(ghost: Ghost, name: str, *, remove: bool) -> dict[str, list[str]]:
    """The ended caves of one backend and what else it has left, by kind."""
    from ghost_mcp.lifecycle import State

    backend = await ghost.backend(name)
    left = await backend.leftovers(remove=False)  # first: to list is to sweep
    ended = [info for info in await backend.list() if info.state is State.ENDED]
    for info in ended if remove else ():
        await backend.destroy(info.id)
    return {
        "caves": [info.full_name for info in ended],
        "leftovers": list(dict.fromkeys([*left, *await backend.leftovers(remove=remove)])),
    }
