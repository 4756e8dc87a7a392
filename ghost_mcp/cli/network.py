# Commands on a cave's network. Who follows it, or runs a program in it, also serves it meanwhile.
"""``allow`` and ``egress``, and the network's service during ``exec``."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from ghost_mcp.cli.caves import on_ghost
from ghost_mcp.errors import InvalidArgument

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Iterator

    from ghost_mcp.cli.output import Output
    from ghost_mcp.egress.ledger import Grant
    from ghost_mcp.ghost import Ghost

__all__ = ["allow", "egress", "served"]


def allow(options: argparse.Namespace, out: Output) -> int:
    from ghost_mcp.spec import parse_span

    for_s = None if options.span is None else parse_span(options.span)

    async def act(ghost: Ghost) -> tuple[str, Grant]:
        cave = await ghost.get(options.cave)
        return cave.info.full_name, cave.allow(options.rule, for_s=for_s)

    name, grant = on_ghost(options.backend, act)
    if out.json:
        out.document({"name": name, "rule": grant.rule, "until": grant.until})
    else:
        span = "as long as it is there" if options.span is None else f"for {options.span}"
        out.line(f"{name} may reach {grant.rule} {span}")
    return 0


def egress(options: argparse.Namespace, out: Output) -> int:
    if options.follow and out.json:
        raise InvalidArgument("--follow and --json exclude each other", hint="Leave one out.")

    async def act(ghost: Ghost) -> list[dict[str, Any]]:
        cave = await ghost.get(options.cave)
        if not options.follow:
            return cave.connections()
        await ghost.link(cave.id)
        async for record in cave.watch_connections():
            out.line(_line(record))
        return []

    records = on_ghost(options.backend, act)
    if out.json:
        out.document(records)
    elif not options.follow:
        for record in records:
            out.line(_line(record))
        if not records:
            out.note("no connections")
    return 0


def _line(record: dict[str, Any]) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(record["at"]))
    return f"{when}  {record['event']:<8} {record['how']:<8} {record['target']}  {_told(record)}".rstrip()


def _told(record: dict[str, Any]) -> str:
    """What people want to know of a step."""
    if record["event"] == "open":
        return f"{record['address']} by {record['rule']}"
    if record["event"] == "closed":
        moved = f"{record['sent_bytes']} B out, {record['received_bytes']} B in"
        return f"{moved}, {record['seconds']:.1f} s" + (record["why"] and f": {record['why']}")
    return str(record["why"])


@contextmanager
def served(name: str, backend: str | None) -> Iterator[None]:
    """Serve a cave's network during the block, beside what the caller does."""
    from anyio.from_thread import start_blocking_portal

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_served(name, backend)),
    ):
        yield


@asynccontextmanager
async def _served(name: str, backend: str | None) -> AsyncIterator[None]:
    from ghost_mcp.ghost import Ghost

    async with Ghost(backend=backend) as ghost:
        await ghost.link((await ghost.get(name)).id)
        yield
