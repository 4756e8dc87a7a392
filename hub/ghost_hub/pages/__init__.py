# Pages load nothing but their own files, run no inline script, and stand in no frame.
"""The hub's pages."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from ghost_mcp.errors import NotFound

__all__ = ["page"]

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


def page(name: str) -> Response:
    """One of the files beside this one. Raises NotFound."""
    path = _FILES.get(name)
    if path is None:
        raise NotFound(f"no such file: {name[:64]}")
    return Response(path.read_bytes(), media_type=_KINDS[path.suffix], headers=_HEADERS)
