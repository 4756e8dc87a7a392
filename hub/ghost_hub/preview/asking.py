# What a browser says of a request decides what it may use. Nothing here looks anything up.
"""What the headers and the address of a request to a preview host say."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope

__all__ = [
    "TICKET",
    "asked_at_home",
    "cookie_name",
    "cookies",
    "header",
    "host_name",
    "may_use_cookie",
    "ticket_of",
    "wants_page",
    "web",
]

#: The ticket's name in a link.
TICKET = b"ghost-ticket"


def header(scope: Scope, name: bytes) -> str:
    return next((v.decode("latin-1") for k, v in scope["headers"] if k == name), "")


def host_name(scope: Scope) -> str:
    """The host a request is for, without its port, in lower case."""
    name, colon, port = header(scope, b"host").lower().partition(":")
    return name if not colon or (port.isascii() and port.isdigit()) else ""


def web(scope: Scope) -> str:
    return "https" if scope["scheme"] in ("https", "wss") else "http"


def cookie_name(host: str) -> str:
    """Cookies are shared by all ports of a host: each hub has a name of its own."""
    return f"ghost-preview-{host.partition(':')[2] or '0'}"


def cookies(scope: Scope, name: str) -> list[str]:
    pairs = [
        pair.strip().partition("=")
        for key, value in scope["headers"]
        if key == b"cookie"
        for pair in value.decode("latin-1").split(";")
    ]
    return [value for key, _, value in pairs if key == name]


def asked_at_home(scope: Scope) -> bool:
    """Whether no foreign page makes the browser ask, but by leading a person here.

    The hosts of all caves are one site to a browser, so that SameSite tells none of them apart.
    """
    if header(scope, b"sec-fetch-site") in ("", "same-origin", "none"):
        return True
    led = header(scope, b"sec-fetch-mode") == "navigate"
    led = led and header(scope, b"sec-fetch-dest") == "document"
    return led and scope["type"] == "http" and scope["method"] in ("GET", "HEAD")


def may_use_cookie(scope: Scope) -> bool:
    """The same, and what can change something says from which page it comes, as every browser does."""
    reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
    return asked_at_home(scope) and (reads or bool(header(scope, b"origin")))


def wants_page(scope: Scope) -> bool:
    return scope["type"] == "http" and "text/html" in header(scope, b"accept")


def ticket_of(scope: Scope) -> tuple[str, str]:
    """The ticket in an address, and the address without it. Only what a browser opens may use one up."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return "", ""
    words = scope["query_string"].split(b"&")
    mine = [word for word in words if word.startswith(TICKET + b"=")]
    if not mine:
        return "", ""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    rest = b"&".join(word for word in words if word not in mine)
    clean = raw + b"?" + rest if rest else raw
    return mine[0].partition(b"=")[2].decode("latin-1"), "/" + clean.decode("latin-1").lstrip("/")
