# Every connection of a cave to the outside is made, bounded and written down here, whatever was spoken to ask for it.
"""One cave's connections: asked for by target, carried both ways, each step of them in the ledger."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.egress.dial import Dialler, Refused, Unreachable
from ghost_mcp.egress.flow import Counted, Exhausted, Meter
from ghost_mcp.egress.refusals import NEVER, NOT_PUBLIC, rule_for

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from ghost_mcp.egress.ledger import Ledger
    from ghost_mcp.egress.policy import Policy, Target
    from ghost_mcp.secrets.masker import Masker
    from ghost_mcp.spec import NetworkPolicy

__all__ = ["BROKEN", "Gateway", "carry"]

BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)
IDLE_S = 600.0  # without a byte either way


class Gateway:
    """Reaches out for one cave. ``cave`` is the name that ``ghost allow`` knows it by.

    ``masker`` knows the cave's secrets: a program can ask for a name that has one in it, which is not written down.
    """

    def __init__(
        self,
        cave: str,
        network: NetworkPolicy,
        policy: Callable[[], Policy],
        ledger: Ledger,
        masker: Masker | None = None,
    ) -> None:
        self._cave = cave
        self._most = network.connections
        self._open = 0
        self._meter = Meter(network)
        self._dialler = Dialler(policy)
        self._ledger = ledger
        self._masker = masker

    @asynccontextmanager
    async def reach(self, target: Target, how: str) -> AsyncIterator[Counted]:
        """A connection, closed with the block. Raises Refused, Unreachable, and Exhausted within the block."""
        note = self._notes(str(target), how)
        if self._open >= self._most:
            why = f"the cave has {self._most} connections open, as many as it may"
            note("failed", why=why)
            raise Unreachable(why)
        self._open += 1
        try:
            try:
                reached = await self._dialler.reach(target)
            except Refused as exc:
                note("refused", address=exc.address, **self.refusal(exc))
                raise
            except Unreachable as exc:
                note("failed", why=str(exc))
                raise
            note("open", address=str(reached.address), rule=reached.rule)
            async with reached.stream:
                far = Counted(reached.stream, self._meter)
                try:
                    yield far
                finally:
                    note("closed", **far.summary())
        finally:
            self._open -= 1

    def _notes(self, target: str, how: str) -> Callable[..., None]:
        """Writes steps of one connection into the ledger."""
        number = secrets.token_hex(4)

        def note(event: str, **more: Any) -> None:
            told: dict[str, Any] = {"how": how, "target": target, **more}
            told = told if self._masker is None else self._masker.value(told)
            self._ledger.write(event=event, id=number, **told)

        return note

    def refusal(self, error: Refused) -> dict[str, Any]:
        """A refusal as data: what was blocked, by which rule, why, and what would allow it."""
        return {
            "blocked": error.target,
            "rule": error.verdict.rule,
            "why": error.verdict.why,
            "how_to_allow": _how_to_allow(error, self._cave),
        }


def _how_to_allow(error: Refused, cave: str) -> str:
    if error.verdict.rule == NEVER:
        return "Nothing allows it."
    target = error.target
    if error.verdict.rule == NOT_PUBLIC:
        host = f"[{error.address}]" if ":" in error.address else error.address
        target = f"{host}:{target.rpartition(':')[2]}"
    return f"On the machine that runs Ghost: ghost allow {cave} {rule_for(target)}"


async def carry(near: ByteStream, far: Counted) -> None:
    """Carry bytes both ways until both have ended, or nothing has passed for IDLE_S. Raises Exhausted."""
    exhausted: list[Exhausted] = []

    async def copy(source: ByteStream, sink: ByteStream) -> None:
        try:
            while True:
                await sink.send(await source.receive())
        except anyio.EndOfStream:
            with suppress(*BROKEN):
                await sink.send_eof()
            return
        except BROKEN:
            pass
        except Exhausted as exc:
            exhausted.append(exc)
        tasks.cancel_scope.cancel()

    # One task more, not three: for most tunnels that is most of what they cost.
    with far.idle_for(IDLE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(copy, far, near)
            await copy(near, far)
    if exhausted:
        raise exhausted[0]
