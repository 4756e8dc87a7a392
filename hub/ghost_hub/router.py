# Which route answers is Starlette's decision; here it is made once for each address that has no parameters.
"""A router that looks addresses up: to try some fifty routes in turn costs more than most requests do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.routing import Match, Route, Router

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["Addresses"]


class Addresses(Router):
    """Starlette's router, with the same answers. Its routes are those that it is made with."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        plain = [one for one in self.routes if isinstance(one, Route) and not one.param_convertors]
        asked = [(method, one.path) for one in plain for method in one.methods or ()]
        self._known = {one: self._first(*one) for one in asked}

    def _first(self, method: str, path: str) -> tuple[Route, Scope] | None:
        """The route that Starlette would come to, and what it would put into the scope. None for a mount."""
        for route in self.routes:
            match, found = route.matches({"type": "http", "method": method, "path": path})
            if match is Match.FULL:
                return (route, found) if isinstance(route, Route) else None
        return None

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        known = None
        if scope["type"] == "http" and not scope.get("root_path"):
            known = self._known.get((scope["method"], scope["path"]))
        if known is None:
            await super().app(scope, receive, send)
            return
        route, found = known
        scope.update(found, path_params={**found["path_params"]}, router=self, route=route)
        await route.handle(scope, receive, send)
