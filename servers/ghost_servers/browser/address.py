# Only this file decides where a tab may go: http, https, and an empty page.
"""URLs: what a caller meant, what is refused and why, what a failed load means."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from ghost_mcp.errors import (
    BackendUnavailable,
    GhostError,
    InvalidArgument,
    NotFound,
    PermissionRefused,
    TimedOut,
)
from ghost_servers.browser.text import clean

__all__ = ["allowed", "failed", "intended"]

MAX_URL = 2_000
BLANK = "about:blank"
# Not a host with its port; but no host is called javascript.
_SCHEME = re.compile(
    r"(javascript|data|file|[a-z][a-z0-9+.-]*(?=:(?!\d+(?:[/?#]|$)))):", re.IGNORECASE
)
_LOCAL = re.compile(
    r"(localhost|[^/]*\.localhost|127\.[\d.]+|\[?::1\]?|0\.0\.0\.0)(:\d+)?(?:[/?#]|$)"
)
_NET_ERROR = re.compile(r"net::(ERR_[A-Z0-9_]+)")
_UNREACHABLE = frozenset(
    {
        "ERR_INTERNET_DISCONNECTED",
        "ERR_NAME_NOT_RESOLVED",
        "ERR_ADDRESS_UNREACHABLE",
        "ERR_NETWORK_CHANGED",
    }
    | {"ERR_NETWORK_ACCESS_DENIED", "ERR_ADDRESS_INVALID", "ERR_PROXY_CONNECTION_FAILED"}
)


def intended(url: str) -> str:
    """The full URL a caller meant: ``localhost:5000/x``, ``example.org``. Raises InvalidArgument, refused."""
    url = url.strip()
    if not url or len(url) > MAX_URL or not url.isprintable() or " " in url:
        raise InvalidArgument(f"not a URL: {clean(url, 200)!r}")
    if url == BLANK:
        return url
    if url.startswith("//"):
        url = f"http:{url}"
    scheme = _SCHEME.match(url)
    if scheme is None:
        url = f"http://{url}" if _LOCAL.match(url) else f"https://{url}"
    elif scheme[1].lower() not in ("http", "https"):
        raise _refused(scheme[1].lower())
    try:
        if urlsplit(url).hostname:
            return url
    except ValueError:
        pass
    raise InvalidArgument(
        f"not a URL: {clean(url, 200)!r}", hint="It looks like http://localhost:5000/path."
    )


def _refused(scheme: str) -> GhostError:
    hint = {
        "file": "Read files with the file tools, or serve them: python3 -m http.server 8000, then "
        "http://localhost:8000/.",
        "data": "Write the page to a file and serve it: python3 -m http.server 8000.",
    }.get(scheme, "Use an http or https URL.")
    return PermissionRefused(f"{clean(scheme, 40)}: addresses are not opened here", hint=hint)


def allowed(url: str) -> bool:
    """Whether a tab may stay where it went: pages, their own blobs, error pages and empty ones."""
    scheme = url.partition(":")[0].lower()
    return scheme in ("http", "https", "blob", "chrome-error") or url in ("", BLANK, ":")


def failed(url: str, message: str, *, network: str) -> GhostError | None:
    """What a load that failed with Playwright's ``message`` means, or None when it tells no network error.

    ``network`` is the mode of the cave's network policy.
    """
    found = _NET_ERROR.search(message)
    if found is None:
        return None
    error, shown = found[1], clean(url, 200)
    if error in _UNREACHABLE and network == "none" and not _LOCAL.match(url.partition("://")[2]):
        return PermissionRefused(
            f"this cave has no network: {shown} cannot be reached",
            hint="Only the cave's own ports (http://localhost:PORT) work, or a cave created with a network.",
            code="network_refused",
        )
    if error == "ERR_CONNECTION_REFUSED":
        return NotFound(
            f"nothing answers at {shown} (connection refused)",
            hint="Is the server running, and on that port? Start it in the cave, then try again.",
            code="connection_refused",
        )
    if error == "ERR_INVALID_AUTH_CREDENTIALS":
        return PermissionRefused(
            f"{shown} asks for a user and a password, or refuses those given",
            hint="Put them in the URL: http://user:password@host/.",
            code="auth_required",
        )
    if error in (
        "ERR_UNSAFE_REDIRECT",
        "ERR_UNKNOWN_URL_SCHEME",
        "ERR_DISALLOWED_URL_SCHEME",
        "ERR_BLOCKED_BY_CLIENT",
    ):
        return PermissionRefused(f"{shown} leads to an address that is not opened here ({error})")
    if error in ("ERR_TIMED_OUT", "ERR_CONNECTION_TIMED_OUT"):
        return TimedOut(f"{shown} did not answer ({error})")
    if error == "ERR_TUNNEL_CONNECTION_FAILED":
        return PermissionRefused(f"the cave's network does not reach {shown}", code="not_reachable")
    if error == "ERR_NAME_NOT_RESOLVED":
        return NotFound(f"no such host: {shown}", hint="Check the name.", code="host_not_found")
    return BackendUnavailable(f"{shown} could not be loaded: {error}", code="load_failed")
