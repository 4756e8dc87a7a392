# Pages load nothing but their own files, run no inline script, and stand in no frame.
"""The hub's pages."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

from starlette.responses import Response

from ghost_mcp.errors import NotFound

__all__ = ["page", "signed_out", "told"]

_CODE, _CODED = re.compile("`([^`]*)`"), r"<code>\1</code>"

_FOLDER = Path(__file__).parent
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_FILES = {path.name: path for path in _FOLDER.iterdir() if path.suffix in _KINDS}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

# Whoever has no token can load no file of ours: this page carries its style, and its policy says which.
_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.6 system-ui,sans-serif;max-width:34rem;margin:15vh auto;padding:0 1.25rem}"
    "code{font:.95em ui-monospace,monospace}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_PLAIN = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Ghost: {title}</title><link rel="icon" href="data:,"><style>{style}</style></head>
<body><main><h1>{title}</h1>
{text}
</main></body>
</html>
"""
_SIGNED_OUT = """\
On the hub's machine, `ghost token create --scope manage` makes one. Then open the hub's address with the token behind it: \
`/?token=TOKEN`. The browser keeps it as a cookie, and it disappears from the address."""


def signed_out(why: str) -> Response:
    """What a browser without a valid token is shown. ``why``: in a sentence."""
    return told("You are signed out", [why, _SIGNED_OUT], 401)


def told(title: str, paragraphs: Iterable[str], status: int, *, home: bool = False) -> Response:
    """A page that needs no other file: what a person is told instead of what was asked for. `` `x` `` is code.

    ``home``: with a link to the dashboard, which is at the same host.
    """
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'"
    headers = {**_HEADERS, "Content-Security-Policy": policy}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    sentences = (f"{one[0].upper()}{one[1:]}".rstrip(".") + "." for one in paragraphs if one)
    text = "\n".join(f"<p>{_CODE.sub(_CODED, escape(one))}</p>" for one in sentences)
    text += '\n<p><a href="/">All caves</a></p>' if home else ""
    body = _PLAIN.format(title=escape(title), style=_STYLE, text=text)
    return Response(body, status, media_type="text/html", headers=headers)


def page(name: str) -> Response:
    """One of the files beside this one. Raises NotFound."""
    path = _FILES.get(name)
    if path is None:
        raise NotFound(f"no such file: {name[:64]}")
    return Response(path.read_bytes(), media_type=_KINDS[path.suffix], headers=_HEADERS)
