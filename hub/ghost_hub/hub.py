# Only this file puts the hub together: Ghost, its caves by owner, the calls, and the MCP server over them.
"""The hub as all of its transports see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread

from ghost_hub.metrics import Metrics
from ghost_hub.monitor import Monitor
from ghost_hub.owned import Caller, OwnerCaves
from ghost_hub.preview import PreviewHosts
from ghost_hub.principal import principal_of
from ghost_hub.quota import Concurrency, allowed
from ghost_hub.rest.events import Events
from ghost_hub.server import hub_calls, hub_server
from ghost_hub.settings import Bounds
from ghost_mcp import tracing
from ghost_mcp.backends.local.door import state_folder
from ghost_mcp.errors import GhostError, Unauthenticated
from ghost_mcp.ghost import Ghost
from ghost_mcp.places import Places
from ghost_mcp.secrets import StoredSecrets

if TYPE_CHECKING:
    from ghost_hub.principal import Principal
    from ghost_mcp.backends.base import Backend
    from ghost_mcp.calls import Layer
    from ghost_servers.serving import Context

__all__ = ["PIN", "Hub"]

#: Where a route, or the header Ghost-Cave, puts the name of the cave in an ASGI scope.
PIN = "ghost.cave"
_HEADER = b"ghost-cave"


class Hub:
    """Use it as an async context manager. ``layers`` go around each call, inside of what is enforced here."""

    def __init__(
        self,
        *,
        backend: str | Backend | None = None,
        pool_size: int = 0,
        bounds: Bounds | None = None,
        layers: Sequence[Layer] = (),
        ghost: Ghost | None = None,
    ) -> None:
        self.bounds = bounds or Bounds()
        # Who asks over the network gets what was set for it, never a variable of this process.
        stored = StoredSecrets(Path(state_folder()), environment=False)
        self.ghost = ghost or Ghost(backend=backend, pool_size=pool_size, secrets=stored)
        self.places = Places(self.ghost)
        self.events = Events(self.places)
        self.monitor = Monitor(self.ghost)
        quota = Concurrency(self.bounds.calls_per_owner)
        self.metrics = Metrics()
        self.calls = hub_calls([*layers, self.metrics, self.events, allowed, quota])
        self.server = hub_server(self.calls, self._of_context)
        self.previews = PreviewHosts(self, "", None)
        self._owners: dict[str, OwnerCaves] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._stack.enter_async_context(self.ghost)
            await self._stack.enter_async_context(self.places)
            tasks = await self._stack.enter_async_context(anyio.create_task_group())
            self._stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(self.monitor.run)
            with suppress(GhostError):  # /ready says what is missing; it may come later
                await self.ghost.backend()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()
        await anyio.to_thread.run_sync(
            tracing.flush
        )  # the signal that ended us leaves no later time

    def owned(self, owner: str) -> OwnerCaves:
        """The caves of an owner."""
        if owner not in self._owners:
            self._owners[owner] = OwnerCaves(
                self.places,
                owner,
                most=self.bounds.caves_per_owner,
                idle_timeout_s=self.bounds.idle_timeout_s,
            )
        return self._owners[owner]

    def caller(self, principal: Principal, cave: str | None = None) -> Caller:
        """The caves that a principal may use; ``cave`` is the one for calls that name none."""
        return Caller(principal, self.owned(principal.owner), cave)

    def of_scope(self, scope: Mapping[str, Any]) -> Caller:
        """The caves of whoever sent a request. Raises Unauthenticated when the guard has not seen it."""
        pin = scope.get(PIN)
        if pin is None:
            pin = next((v.decode("latin-1") for k, v in scope["headers"] if k == _HEADER), None)
        return self.caller(principal_of(scope), pin)

    def _of_context(self, context: Context) -> Caller:
        request = context.request
        if request is None:
            raise Unauthenticated("this call did not come by a request")
        return self.of_scope(request.scope)
