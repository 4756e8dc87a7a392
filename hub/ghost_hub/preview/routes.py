# Only this file says by which addresses a port of a cave can be reached, and by whom.
"""``/caves/{cave}/proxy/{port}/``, where the program does not see the prefix, and ``/caves/{cave}/absproxy/{port}/``."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.routing import Mount

from ghost_hub.preview.forward import forward
from ghost_hub.preview.headers import Upstream
from ghost_hub.preview.sockets import refuse_socket
from ghost_hub.principal import principal_of
from ghost_mcp.errors import GhostError, InvalidArgument, NotFound
from ghost_mcp.warden.linkstream import Piped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from anyio.abc import ByteStream
    from starlette.routing import BaseRoute
    from starlette.types import Receive, Scope, Send

    from ghost_hub.hub import Hub
    from ghost_mcp.places import Place

__all__ = ["port_of", "routes"]

_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")


def routes(hub: Hub) -> list[BaseRoute]:
    """The routes of the proxy; both need the scope ``use``."""
    return [
        Mount(f"/caves/{{cave}}/{word}/{{port}}", _Proxy(hub, word, strip=strip))
        for word, strip in (("proxy", True), ("absproxy", False))
    ]


class _Proxy:
    def __init__(self, hub: Hub, word: str, *, strip: bool) -> None:
        self._hub, self._word, self._strip = hub, word, strip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            upstream = await self._upstream(scope)
        except GhostError as error:
            if scope["type"] != "websocket":
                raise
            await receive()
            await refuse_socket(scope, receive, send, error)
            return
        await forward(scope, receive, send, upstream)

    async def _upstream(self, scope: Scope) -> Upstream:
        principal_of(scope).need("use")
        name, word = scope["path_params"]["cave"], scope["path_params"]["port"]
        if not _PORT.match(word) or int(word) > 65535:
            raise NotFound(f"not a port: {word[:40]!r}")
        try:
            place = await self._hub.of_scope(scope).place(name)
        except InvalidArgument as exc:
            raise NotFound(f"no cave named {name[:40]!r}") from exc
        prefix = f"/caves/{name}/{self._word}/{word}"
        return Upstream(
            dial=port_of(place, int(word)),
            host=f"localhost:{word}",
            prefix=prefix,
            strip=self._strip,
        )


def port_of(place: Place, port: int) -> Callable[[], AbstractAsyncContextManager[ByteStream]]:
    """Dials a port on a cave's loopback, over the link: of IPv4, else of IPv6, where some servers listen only."""

    @asynccontextmanager
    async def dial() -> AsyncIterator[ByteStream]:
        async with place.link.stream("dial", {"port": port}) as stream:
            try:
                await stream.note()
            except GhostError as error:
                if error.code != "connection_refused":
                    raise
            else:
                yield Piped(stream)
                return
        async with place.link.stream("dial", {"port": port, "host": "::1"}) as stream:
            try:
                await stream.note()
            except GhostError as error:
                if error.code != "io_error":  # which a cave without IPv6 answers
                    raise
                raise NotFound(error.message, code="connection_refused") from error
            yield Piped(stream)

    return dial
