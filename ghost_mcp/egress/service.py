# Only this file connects a cave's way out to the world: a cave whose spec has no network gets nobody attached.
"""Serving one cave's way out over its link, for as long as the link lives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.egress.gateway import BROKEN, Gateway
from ghost_mcp.egress.http import serve_http
from ghost_mcp.egress.policy import Policy, known_rules
from ghost_mcp.egress.socks import VERSION, serve_socks
from ghost_mcp.errors import GhostError

if TYPE_CHECKING:
    from anyio.abc import ByteStream, TaskGroup, TaskStatus

    from ghost_mcp.egress.ledger import Ledger
    from ghost_mcp.spec import CaveInfo, NetworkPolicy
    from ghost_mcp.warden.link import Link
    from ghost_mcp.warden.linkstream import LinkStream

__all__ = ["attach", "current_policy", "serve"]

FIRST_S = 60.0
LINGER_S = 5.0
#: So many connections may be there beside those that lead somewhere: not asked for yet, or between two requests.
SPARE = 256
_log = logging.getLogger(__name__)


def current_policy(network: NetworkPolicy, ledger: Ledger) -> Callable[[], Policy]:
    """What a cave may reach now: its own rules and what it was granted since."""
    own = known_rules(network.allow)

    def now() -> Policy:
        granted = known_rules(grant.rule for grant in ledger.grants())
        return Policy(open=network.mode == "open", rules=(*own, *granted))

    return now


async def attach(link: Link, info: CaveInfo, ledger: Ledger, tasks: TaskGroup) -> None:
    """Serve a cave from now on, in ``tasks``, until its link ends. Does nothing for a cave without a network."""
    network = info.spec.network
    if network.mode == "none":
        return
    ledger.prepare()
    policy = current_policy(network, ledger)
    gateway = Gateway(info.full_name, network, policy, ledger, link.masker)

    async def hold(*, task_status: TaskStatus[None]) -> None:
        with suppress(GhostError):
            async with link.stream("egress") as stream:
                await stream.note()
                task_status.started()
                await stream.answer()
                return
        with suppress(RuntimeError):  # started before: the link has ended
            task_status.started()

    link.on_accept = _Accepted(gateway, link, network.connections + SPARE, tasks).one
    await tasks.start(hold, name=f"egress of {info.name}")


class _Accepted:
    """The connections of one cave that are here, wherever they lead, ``most`` at once: each may hold half a head."""

    def __init__(self, gateway: Gateway, link: Link, most: int, tasks: TaskGroup) -> None:
        self._gateway, self._link, self._tasks = gateway, link, tasks
        self._left = most

    def one(self, stream: LinkStream, head: dict[str, Any]) -> None:
        if self._left:
            self._left -= 1
            self._tasks.start_soon(self._serve, stream, name=f"egress of {self._link.name}")
        else:
            self._tasks.start_soon(self._turn_away, stream)

    async def _serve(self, stream: LinkStream) -> None:
        from ghost_mcp.warden.linkstream import Piped

        try:
            await serve(self._gateway, Piped(stream))
        except Exception:  # noqa: BLE001 - one connection fails, never the hub
            _log.exception("a connection of cave %s failed inside", self._link.name)
        finally:
            self._left += 1
            await self._turn_away(stream)

    async def _turn_away(self, stream: LinkStream) -> None:
        with anyio.CancelScope(shield=True), suppress(GhostError):
            await self._link.give_up(stream)


async def serve(gateway: Gateway, near: ByteStream) -> None:
    """Serve one connection to its end, whatever it speaks, and wait a moment until its other end has read all."""
    with suppress(*BROKEN, anyio.EndOfStream):
        first = b""
        with anyio.move_on_after(FIRST_S):
            first = await near.receive()
        if first[:1] == bytes([VERSION]):
            await serve_socks(gateway, near, first)
        elif first:
            await serve_http(gateway, near, first)
    with suppress(*BROKEN, anyio.EndOfStream), anyio.move_on_after(LINGER_S):
        await near.send_eof()
        while True:
            await near.receive()
