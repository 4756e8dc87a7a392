# Only this file says which headers cross between a person and a program in a cave, and what becomes of them.
"""Headers of a forwarded request and of its answer.

The program sees what it would see on its own machine: ``Host`` and the ``Origin`` of its own pages are
``localhost:PORT``, so that a server's guard against DNS rebinding needs no setting. Where it is reached in truth is
in ``X-Forwarded-For``, ``-Proto``, ``-Host`` and ``-Prefix``. What belongs to the hub never reaches it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ghost_mcp.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from anyio.abc import ByteStream

__all__ = [
    "KEEP_AUTHORIZATION",
    "Headers",
    "Upstream",
    "answer_headers",
    "request_headers",
    "target",
]

Headers = list[tuple[bytes, bytes]]

#: Where the door of own origins says that a request's Authorization is the program's, not the hub's.
KEEP_AUTHORIZATION = "ghost.keep_authorization"
#: RFC 9110, section 7.6.1, and those that older programs use.
HOP_BY_HOP = frozenset(
    (
        *(
            b"connection",
            b"keep-alive",
            b"proxy-connection",
            b"transfer-encoding",
            b"te",
            b"trailer",
        ),
        *(b"upgrade", b"proxy-authenticate", b"proxy-authorization", b"proxy-authentication-info"),
    )
)
#: Set here, whatever the client says.
_OURS = frozenset(
    (b"host", b"expect", b"forwarded", b"content-length", b"authorization", b"cookie")
)
#: A program in a cave does not decide about the hub's host, its other ports or its sibling hosts; nor does it tell a
#: server before the hub to answer with a file or an address of its own.
_NOT_ITS = frozenset(
    (b"strict-transport-security", b"clear-site-data", b"alt-svc", b"public-key-pins", b"nel")
    + (b"report-to", b"reporting-endpoints", b"server", b"date")
    + (b"x-accel-redirect", b"x-sendfile", b"x-lighttpd-send-file")
)
#: What a browser keeps for a whole origin, and asks the person for in its name: of the hub's own, no program says it.
_ORIGIN_WIDE = (
    *(b"access-control-", b"service-worker-allowed", b"www-authenticate", b"set-login"),
    *(b"accept-ch", b"critical-ch", b"origin-agent-cluster", b"use-as-dictionary"),
    *(b"secure-session-", b"sec-session-"),
)
#: Pages under a path of the hub's own origin run with an origin of their own: they cannot use the person's cookie.
SANDBOX = b"sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"
_OWN_COOKIES = (b"ghost-", b"__host-ghost-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A program in a cave, and under which address it is shown.

    ``dial`` connects to it; ``host`` is what it is told as its own. ``prefix`` is the path it is shown under, without
    a final slash; with ``strip`` the program does not see it. ``shared`` says that this is the hub's own origin.
    """

    dial: Callable[[], AbstractAsyncContextManager[ByteStream]]
    host: str
    prefix: str = ""
    strip: bool = True
    shared: bool = True


def target(scope: Mapping[str, Any], upstream: Upstream) -> bytes:
    """The path and query the program is asked for, as they were sent. Raises NotFound for an ambiguous one."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    depth = upstream.prefix.count("/")
    *before, rest = raw.split(b"/", depth + 1) if depth else (b"", raw.removeprefix(b"/"))
    if unquote(b"/".join(before).decode("latin-1")) != upstream.prefix:
        raise NotFound("there is nothing at this address")
    path = b"/" + rest if upstream.strip else raw
    return path + b"?" + query if (query := scope["query_string"]) else path


def request_headers(scope: Mapping[str, Any], upstream: Upstream) -> Headers:
    """What the program is told of a request."""
    given: Headers = scope["headers"]
    named = _connection(given)
    host = _first(given, b"host")
    found = [
        (name, value)
        for name, value in given
        if name not in HOP_BY_HOP
        and name not in _OURS
        and name not in named
        and not name.startswith((b"x-forwarded-", b"ghost-", b"sec-websocket-"))
    ]
    own = f"{_web(scope)}://".encode() + host.lower()
    local = f"http://{upstream.host}".encode()
    found = [(n, local if n == b"origin" and v.lower() == own else v) for n, v in found]
    client = scope.get("client")
    found += [
        (b"host", upstream.host.encode()),
        (b"x-forwarded-for", (client[0] if client else "unknown").encode()),
        (b"x-forwarded-proto", _web(scope).encode()),
        (b"x-forwarded-host", host),
    ]
    if upstream.prefix:
        found.append((b"x-forwarded-prefix", upstream.prefix.encode()))
    authorization = _first(given, b"authorization")
    if authorization and scope.get(KEEP_AUTHORIZATION):
        found.append((b"authorization", authorization))
    # A browser shows this host the cookies of all its ports: none of those is for a cave.
    if (authorization or not upstream.shared) and (cookies := _cookies(given)):
        found.append((b"cookie", cookies))
    return found


def answer_headers(
    given: Iterable[tuple[bytes, bytes]], scope: Mapping[str, Any], upstream: Upstream
) -> Headers:
    """What the person's program is told of an answer."""
    raw = [(name.lower(), value) for name, value in given]
    named = _connection(raw)
    cookies = not upstream.shared or bool(_first(scope["headers"], b"authorization"))
    found: Headers = []
    for name, value in raw:
        if name in HOP_BY_HOP or name in named or name in _NOT_ITS:
            continue
        if upstream.shared and name.startswith(_ORIGIN_WIDE):
            continue
        if name == b"set-cookie":
            if cookies and (kept := _set_cookie(value, upstream)) is not None:
                found.append((name, kept))
        elif name in (b"location", b"content-location"):
            found.append((name, _location(value, scope, upstream)))
        else:
            found.append((name, value))
    if upstream.shared:
        found.append((b"content-security-policy", SANDBOX))
        found.append((b"x-content-type-options", b"nosniff"))
    return found


def _web(scope: Mapping[str, Any]) -> str:
    return "https" if scope["scheme"] in ("https", "wss") else "http"


def _first(headers: Headers, name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")


def _connection(headers: Headers) -> frozenset[bytes]:
    """The names that Connection makes hop-by-hop; it cannot take away what frames the message."""
    words = b",".join(value for name, value in headers if name == b"connection").lower().split(b",")
    return frozenset(word.strip() for word in words) - {b"content-length", b"content-type", b""}


def _cookies(headers: Headers) -> bytes:
    pairs = [
        pair.strip() for name, value in headers if name == b"cookie" for pair in value.split(b";")
    ]
    return b"; ".join(pair for pair in pairs if pair and not pair.lower().startswith(_OWN_COOKIES))


def _set_cookie(value: bytes, upstream: Upstream) -> bytes | None:
    """The cookie for exactly the host it came from, and under the prefix; None when it takes a name of the hub's."""
    first, *rest = (part.strip() for part in value.split(b";"))
    name = first.lower()
    if name.startswith(_OWN_COOKIES) or (upstream.prefix and name.startswith(b"__host-")):
        return None
    kept = [first]
    path = b"/"
    for part in rest:
        key, _, said = part.partition(b"=")
        if key.strip().lower() == b"path":
            path = said.strip() or b"/"
        elif key.strip().lower() != b"domain":
            kept.append(part)
    if upstream.prefix:
        prefix = upstream.prefix.encode()
        inside = not upstream.strip and path.startswith(prefix + b"/")
        path = path if inside else prefix + (path if path.startswith(b"/") else b"/")
    return b"; ".join([*kept, b"Path=" + path])


def _location(value: bytes, scope: Mapping[str, Any], upstream: Upstream) -> bytes:
    """A redirect to the program itself leads back to where it is shown."""
    text = value.decode("latin-1")
    try:
        parts = urlsplit(text)
    except ValueError:
        return value
    port = upstream.host.rpartition(":")[2]
    own = (upstream.host, f"127.0.0.1:{port}", _first(scope["headers"], b"host").decode("latin-1"))
    if parts.netloc:
        if parts.scheme not in ("http", "https") or parts.netloc.lower() not in own:
            return value
        text = parts._replace(scheme="", netloc="").geturl() or "/"
        text = "/" + text.lstrip("/")
    if upstream.strip and text.startswith("/"):
        text = upstream.prefix + text
    return text.encode("latin-1")
