# Previews on hosts of their own: what runs there shares no origin with the hub, nor with any other program in a cave.
"""``http://TARGET--CAVE.caves.localhost:8000/``: a port, or a service, of a cave as the whole of an origin.

A browser gets in by a link, which carries a ticket once; :mod:`ghost_hub.preview.passes` says what that is. A program
may show its token of the hub instead, as everywhere. Neither reaches what runs in the cave.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from starlette.responses import RedirectResponse

from ghost_hub.answered import Answered, Refused
from ghost_hub.pages import told
from ghost_hub.preview.asking import (
    TICKET,
    asked_at_home,
    cookie_name,
    cookies,
    header,
    host_name,
    may_use_cookie,
    ticket_of,
    wants_page,
    web,
)
from ghost_hub.preview.forward import forward
from ghost_hub.preview.headers import KEEP_AUTHORIZATION, Upstream
from ghost_hub.preview.naming import DOMAIN, beside, label, port_of_target, split
from ghost_hub.preview.passes import COOKIE_S, Pass, Passes
from ghost_hub.preview.routes import port_of
from ghost_hub.preview.sockets import refuse_socket
from ghost_hub.principal import LOCAL, Principal, principal_of
from ghost_hub.problem import details
from ghost_mcp.errors import (
    CaveNotFound,
    GhostError,
    NotFound,
    PermissionRefused,
    Unauthenticated,
    Unsupported,
)

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ghost_hub.guard import Verifier
    from ghost_hub.hub import Hub
    from ghost_mcp.places import Place

__all__ = ["PREVIEW", "Door", "Link", "PreviewHosts"]

#: Where the guard finds, in an ASGI scope, that a request is a preview's, and which.
PREVIEW = "ghost.preview"
MOST_COOKIES = 8
_TOKEN = b"bearer ghost_"

#: What answers at a service's host instead of the service itself: as an ASGI application, told the cave.
Door = Callable[["Scope", "Receive", "Send", "Place"], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An address for one browser, good for one use until ``expires_at``, in seconds since the epoch."""

    url: str
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a request's host names, and by what pass; None when the request showed a token."""

    target: str
    cave: str
    shown: Pass | None


class PreviewHosts:
    """The preview hosts of a hub. ``domain`` is that of :data:`naming.DOMAIN`; empty: there are none.

    ``doors`` are the services that a hub shows in another way than by forwarding what a browser asks.
    """

    def __init__(self, hub: Hub, domain: str, verifier: Verifier | None) -> None:
        self._hub, self._verifier = hub, verifier
        found = DOMAIN.fullmatch(domain)
        self._scheme, self._domain, self._port = found.groups("") if found else ("", "", "")
        self._passes = Passes(verifier)
        self.doors: dict[str, Door] = {}
        self.app: ASGIApp = self.serve

    def link(self, scope: Scope, place: Place, target: int | str, path: str = "/") -> Link:
        """A link to a port, or to a service by name, for whoever sent the request ``scope``, under the hub's own port.

        Raises PermissionRefused, InvalidArgument, Unsupported when the hub has no preview hosts.
        """
        principal = principal_of(scope)
        principal.need("use")
        if not self._domain:
            raise Unsupported("this hub has no hosts for previews", hint="Set preview_domain.")
        host = f"{label(place.cave.info, str(target))}.{self._domain}"
        ticket, expires_at = self._passes.ticket(principal, place.cave.id, str(target))
        scheme = self._scheme or web(scope)
        port = self._port or ("" if self._scheme else header(scope, b"host").rpartition(":")[2])
        base = f"{scheme}://{host}:{port}" if port.isdigit() else f"{scheme}://{host}"
        path, _, query = path.partition("?")
        words = f"{query}&" if query else ""
        return Link(url=f"{base}{path}?{words}{TICKET.decode()}={ticket}", expires_at=expires_at)

    # --- what the guard asks ---------------------------------------------------------------------

    def addressed(self, scope: Scope, hosts: Collection[str]) -> bool:
        """Whether a request is for a name below the domain, and not for one of the hub's own."""
        name = host_name(scope)
        return (
            bool(self._domain)
            and name not in hosts
            and name.rstrip(".").endswith(f".{self._domain}")
        )

    def admit(self, scope: Scope) -> Callable[[], Principal]:
        """Let a request in; returns what says whether it still may. Raises Refused, Answered.

        Whoever shows nothing is told nothing of which caves there are.
        """
        scope[PREVIEW] = None
        if self._scheme:  # as people reach it, not as whoever stands before this hub does
            plain = "ws" if scope["type"] == "websocket" else "http"
            scope["scheme"] = f"{plain}s" if self._scheme == "https" else plain
        named = split(host_name(scope).removesuffix(f".{self._domain}"))
        if named is None or [name for name, _ in scope["headers"]].count(b"host") != 1:
            raise Refused(NotFound("there is no preview at this address"))
        self._check_origin(scope)
        target, cave = named
        ticket, clean = ticket_of(scope)
        if ticket:
            self._redeem(scope, target, ticket, clean)
        authorization = header(scope, b"authorization")
        owner = self._bearer(authorization)
        if owner is not None:
            scope[PREVIEW] = _Asked(target=target, cave=cave, shown=None)
            return partial(self._still, authorization)
        shown = self._shown(scope, target)
        if shown is None and (self._verifier is not None or not asked_at_home(scope)):
            raise self._nobody(scope)
        scope[PREVIEW] = _Asked(target=target, cave=cave, shown=shown[1] if shown else None)
        scope[KEEP_AUTHORIZATION] = not authorization.lower().startswith(_TOKEN.decode())
        return partial(self._lasting, shown[0], target) if shown else lambda: LOCAL

    def _check_origin(self, scope: Scope) -> None:
        """A page of this very host, and no other: other ports and caves are other sites."""
        origin = header(scope, b"origin").lower()
        if not origin or origin == f"{web(scope)}://{header(scope, b'host').lower()}":
            return
        # Pages that tell no referrer have this origin even at home, as the browser itself then says.
        if origin == "null" and header(scope, b"sec-fetch-site") == "same-origin":
            return
        raise Refused(
            PermissionRefused("pages of another origin may not call a preview", code="wrong_origin")
        )

    def _redeem(self, scope: Scope, target: str, ticket: str, clean: str) -> None:
        """Raises Answered with a cookie for a good ticket, and without one where there is one already."""
        try:
            found = self._passes.redeem(ticket, target)
        except GhostError as error:
            raise Refused(error) from error
        if found is None and self._shown(scope, target) is None:
            raise self._nobody(scope)
        host = header(scope, b"host")
        answer = RedirectResponse(
            f"{web(scope)}://{host}{clean}",
            303,
            {"Referrer-Policy": "no-referrer", "Cache-Control": "no-store"},
        )
        if found is not None:
            answer.set_cookie(
                cookie_name(host),
                self._passes.cookie(found)[0],
                max_age=int(COOKIE_S),
                httponly=True,
                samesite="lax",
                secure=web(scope) == "https",
            )
        raise Answered(answer)

    def _bearer(self, authorization: str) -> Principal | None:
        """Who a token of the hub stands for. One that is no longer valid is no token of the program's, either."""
        kind, _, value = authorization.partition(" ")
        if self._verifier is None or kind.lower() != "bearer":
            return None
        try:
            return self._verifier.verify(value.strip())
        except GhostError as error:
            raise Refused(error) from error

    def _still(self, authorization: str) -> Principal:
        found = self._bearer(authorization)
        if found is None:
            raise Refused(Unauthenticated("the token is not valid any more"))
        return found

    def _lasting(self, cookie: str, target: str) -> Principal:
        found = self._known(cookie, target)
        if found is None:
            raise Refused(Unauthenticated("this preview has ended"))
        return found.principal

    def _known(self, cookie: str, target: str) -> Pass | None:
        try:
            return self._passes.known(cookie, target)
        except GhostError as error:
            raise Refused(error) from error

    def _shown(self, scope: Scope, target: str) -> tuple[str, Pass] | None:
        """The pass of a browser that was let in before. Others' pages cannot use it, but to lead here."""
        if not may_use_cookie(scope):
            return None
        name = cookie_name(header(scope, b"host"))
        # Another host of the domain can set a cookie of this name beside ours.
        for value in cookies(scope, name)[:MOST_COOKIES]:
            found = self._known(value, target)
            if found is not None:
                return value, found
        return None

    def _nobody(self, scope: Scope) -> Exception:
        error = Unauthenticated(
            "this preview is opened by a link, which is good for one use",
            hint="Get one with `ghost preview CAVE PORT`, or from the dashboard.",
        )
        if wants_page(scope):
            return Answered(told("This preview wants a link", [error.message, error.hint], 401))
        return Refused(error)

    # --- what is behind the guard ----------------------------------------------------------------

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or a WebSocket, that was let in. Raises GhostError before the answer has begun."""
        asked: _Asked = scope[PREVIEW]
        try:
            principal_of(scope).need("use")
            place = await self._place(principal_of(scope), asked)
            door = self.doors.get(asked.target)
            if door is not None:
                await door(scope, receive, send, place)
                return
            upstream = self._upstream(place, asked.target)
        except GhostError as error:
            await _refuse(scope, receive, send, error)
            return
        try:
            await forward(scope, receive, send, upstream)
        except GhostError as error:
            await _refuse(scope, receive, send, error)

    async def _place(self, principal: Principal, asked: _Asked) -> Place:
        try:
            place = await self._hub.owned(principal.owner).place(asked.cave)
        except CaveNotFound:
            place = None
        if place is None or (asked.shown is not None and asked.shown.cave_id != place.cave.id):
            raise NotFound("there is no preview at this address")
        return place

    def _upstream(self, place: Place, target: str) -> Upstream:
        port = port_of_target(target)
        if port is not None:
            return Upstream(
                dial=port_of(place, port), host=f"localhost:{port}", strip=False, shared=False
            )
        try:
            service = place.cave.service(target)
        except NotFound:
            side = beside(target)
            if side is None:
                raise
            name, port = side
            dial = partial(place.cave.dial, port, service=name)
            return Upstream(dial=dial, host=f"{name}:{port}", strip=False, shared=False)
        return Upstream(dial=service.dial, host="localhost", strip=False, shared=False)


async def _refuse(scope: Scope, receive: Receive, send: Send, error: GhostError) -> None:
    """For a person, a page; forward() raises nothing once an answer has begun."""
    if scope["type"] == "websocket":
        await receive()
        await refuse_socket(scope, receive, send, error)
    elif wants_page(scope):
        status = details(error)["status"]
        await told("There is nothing to show", [error.message, error.hint], status)(
            scope, receive, send
        )
    else:
        raise error
