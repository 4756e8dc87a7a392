# Every request passes here before any route: addressed to us, from a page of ours or none, by somebody known.
"""The outermost layer of the hub over HTTP: Host, Origin, token, rate and size, in that order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qs, urlsplit

import anyio
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.responses import RedirectResponse

from ghost_hub.answered import Answered, Refused
from ghost_hub.pages import signed_out
from ghost_hub.passing import Body, Held, Lasting
from ghost_hub.preview import PREVIEW
from ghost_hub.preview.asking import asked_at_home
from ghost_hub.principal import LOCAL, NOBODY, PRINCIPAL, Principal
from ghost_hub.problem import problem
from ghost_hub.quota import Rates
from ghost_mcp.errors import (
    BackendUnavailable,
    GhostError,
    InvalidArgument,
    PermissionRefused,
    QuotaExceeded,
    TimedOut,
    Unauthenticated,
)

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ghost_hub.preview import PreviewHosts
    from ghost_hub.settings import HubSettings

__all__ = ["Guard", "Verifier"]

# Whether it lives and is ready must be answered to a supervisor that has no token; it tells nothing else.
OPEN_PATHS = frozenset({"/health", "/ready"})
# A browser may come to these with its token in the address.
ENTRANCES = frozenset({"/", "/vnc.html"})


# So many bodies of full size of one owner are held at once.
BODIES = 8


class Verifier(Protocol):
    """Where tokens are known. The tokens of this hub are one; a verifier of OAuth 2 tokens can be another."""

    def verify(self, value: str) -> Principal | None:
        """Who a token stands for, or None."""

    def standing(self, token_id: str) -> tuple[Principal, bytes] | None:
        """Who the token of that id stands for while it is valid, and a key that no client knows; or None."""


class Guard:
    """An ASGI application around another. ``verifier`` None is no authentication: everybody is the local user."""

    def __init__(
        self,
        app: ASGIApp,
        settings: HubSettings,
        verifier: Verifier | None,
        previews: PreviewHosts | None = None,
    ) -> None:
        self._app = app
        self._previews = previews
        self._hosts = frozenset(settings.hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in settings.allowed_origins)
        self._verifier = verifier
        self._body_bytes = settings.bounds.body_bytes
        self._held = Held(BODIES * self._body_bytes)
        self._rates = Rates(settings.bounds.requests_per_s, settings.bounds.requests_burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            again = self._admit(scope)
        except Answered as answered:
            await answered.answer(scope, receive, send)
            return
        except Refused as refused:
            await _refuse(scope, receive, send, refused)
            return
        app = self._app if self._previews is None or PREVIEW not in scope else self._previews.app
        lasting = Lasting(receive, send, again)
        if scope["type"] != "http":
            try:
                await app(scope, lasting.receive, lasting.send)
            except Exception:
                # Alone, however many were told of it: the server knows it so.
                if lasting.gone is not None:
                    raise lasting.gone from None
                if not lasting.cut:
                    raise
            return
        body = Body(scope, receive, lasting.send, self._body_bytes, self._held)
        try:
            await app(scope, body.receive, body.send)
        except Exception:
            if body.refused is None and not lasting.cut:
                raise
        except anyio.get_cancelled_exc_class():
            # The hub was told to end, and its patience with calls is over: nothing is cancelled here for another reason.
            if body.answered:
                raise
            await _refuse(scope, receive, send, Refused(_ending()), {"Connection": "close"})
        finally:
            body.over()
        if body.refused is not None and not body.answered:
            late = isinstance(body.refused.error, TimedOut)
            more = {"Connection": "close"} if late else {}
            await _refuse(scope, receive, send, body.refused, more)

    def _admit(self, scope: Scope) -> Callable[[], Principal]:
        """Who asks goes into the scope. Returns what looks again. Raises Refused, Answered."""
        previews = self._previews
        if previews is not None and previews.addressed(scope, self._hosts):
            again = previews.admit(scope)
        else:
            again = self._check(scope)
        principal = again()
        scope[PRINCIPAL] = principal
        scope["user"] = _user(principal)
        # A flood by strangers must not take its supervisor's answers from it.
        wait_s = 0.0 if principal is NOBODY else self._rates.take(principal.token_id)
        if wait_s:
            raise Refused(
                QuotaExceeded(
                    "too many requests with this token", hint=f"Try again in {wait_s:.1f} s."
                ),
                wait_s=wait_s,
            )
        return again

    def _check(self, scope: Scope) -> Callable[[], Principal]:
        """The request of a client of the hub itself. Raises Refused."""
        host = origin = authorization = cookie = site = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value if host is None else b""
            elif name == b"origin":
                origin = value
            elif name == b"authorization":
                authorization = value
            elif name == b"cookie":
                cookie = value
            elif name == b"sec-fetch-site":
                site = value
        self._check_host(host)
        if origin is not None:
            self._check_origin(origin, host or b"")
        elif self._verifier is None and not asked_at_home(scope):
            # No token tells a page's pictures and scripts from what the person's programs ask.
            raise Refused(_foreign())
        if authorization is None and cookie is not None:
            authorization = _from_cookie(scope, cookie, host or b"", origin, site)
        return partial(self._principal, scope, authorization)

    def _check_host(self, host: bytes | None) -> None:
        name, port = _split(host or b"")
        if name not in self._hosts or not (port == "" or port.isdigit()):
            raise Refused(
                InvalidArgument(
                    "this request is addressed to another host",
                    hint="Use the address that ghost serve prints, or add the name to allowed_hosts.",
                    code="wrong_host",
                ),
                status=421,
            )

    def _check_origin(self, origin: bytes, host: bytes) -> None:
        """A page may call us when it is ours: the same host and port, or one that the operator has listed."""
        text = origin.decode("latin-1").lower()
        try:
            parts = urlsplit(text)
            same = (
                parts.scheme in ("http", "https") and parts.netloc == host.decode("latin-1").lower()
            )
            same = same and not (parts.path or parts.query or parts.fragment)
        except ValueError:
            same = False
        if not same and text not in self._origins:
            raise Refused(_foreign())

    def _enter(self, scope: Scope) -> None:
        """Raises Answered for the address that ``ghost serve`` prints, as long as its token is valid."""
        value = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if self._verifier is None or not value or self._verifier.verify(value) is None:
            return
        host = next(v.decode("latin-1") for k, v in scope["headers"] if k == b"host")
        words = scope["query_string"].decode("latin-1").split("&")
        rest = "&".join(word for word in words if not word.startswith("token="))
        where = f"{scope['path']}?{rest}" if rest else scope["path"]
        answer = RedirectResponse(
            where, 303, {"Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
        )
        answer.set_cookie(
            cookie_name(host),
            value,
            httponly=True,
            samesite="strict",
            secure=scope["scheme"] == "https",
        )
        raise Answered(answer)

    def _principal(self, scope: Scope, authorization: bytes | None) -> Principal:
        if self._verifier is None:
            return LOCAL
        if authorization is None and scope["path"] in ENTRANCES and scope["query_string"]:
            self._enter(scope)
        if authorization is None:
            if scope["path"] in OPEN_PATHS:
                return NOBODY
            raise Refused(
                Unauthenticated(
                    "a token is needed",
                    hint="Send the header Authorization: Bearer TOKEN; ghost token create makes one.",
                )
            )
        kind, _, value = authorization.decode("latin-1").partition(" ")
        try:
            principal = self._verifier.verify(value.strip()) if kind.lower() == "bearer" else None
        except GhostError as error:
            raise Refused(error) from error
        if principal is None:
            raise Refused(
                Unauthenticated(
                    "the token is not valid: unknown, revoked or expired",
                    hint="See: ghost token list, ghost token create",
                )
            )
        return principal


@lru_cache(1024)
def _user(principal: Principal) -> AuthenticatedUser:
    """The principal as the SDK knows it, which binds sessions to this: another owner's session is not there."""
    token = AccessToken(
        token="",
        client_id=f"owner:{principal.owner}",
        scopes=[principal.scope],
        subject=principal.owner,
    )
    return AuthenticatedUser(token)


def cookie_name(host: str) -> str:
    """Cookies are shared by all ports of a host: each hub has a name of its own."""
    return f"ghost-token-{_split(host.encode('latin-1', 'replace'))[1] or '0'}"


def _from_cookie(
    scope: Scope, cookie: bytes, host: bytes, origin: bytes | None, site: bytes | None
) -> bytes | None:
    """The token of a browser that has entered, as the header would carry it.

    A browser sends cookies with what foreign pages ask for too: nothing but our own pages, and what the person
    types, may use them. (Origin has been checked; SameSite does not tell the ports of a host apart.)
    """
    if site not in (None, b"same-origin", b"none"):
        return None
    if origin is None and (scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")):
        return None
    name = cookie_name(host.decode("latin-1")).encode()
    for pair in cookie.split(b";"):
        key, _, value = pair.strip().partition(b"=")
        if key == name:
            return b"Bearer " + value
    return None


def _split(host: bytes) -> tuple[str, str]:
    """Name and port of a Host header, the name in lower case; a final dot is not ours to forgive."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        name, bracket, port = text.partition("]")
        return name + bracket, port.removeprefix(":") if port.startswith(":") else port and "?"
    name, colon, port = text.partition(":")
    return name, port if port or not colon else "?"


def _is_browser(scope: Scope) -> bool:
    """That a person has gone to an address, and not a script: what a page asks for says that it takes anything."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return False
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


async def _refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    refused: Refused,
    more: Mapping[str, str] | None = None,
) -> None:
    headers = dict(more or {})
    if refused.wait_s:
        headers["Retry-After"] = str(max(1, round(refused.wait_s)))
    answer = problem(refused.error, status=refused.status, headers=headers)
    if isinstance(refused.error, Unauthenticated) and _is_browser(scope):
        answer = signed_out(refused.error.message)
    if scope["type"] == "websocket":
        if "websocket.http.response" in scope.get("extensions", {}):
            await answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})
        return
    await answer(scope, receive, send)


def _foreign() -> GhostError:
    return PermissionRefused(
        "pages of another origin may not call this hub",
        hint="Add the origin to allowed_origins if it should.",
        code="wrong_origin",
    )


def _ending() -> GhostError:
    return BackendUnavailable("the hub ends before this was done", hint="Ask again once it serves.")
