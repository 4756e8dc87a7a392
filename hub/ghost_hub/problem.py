# Every refusal over HTTP that is not MCP's own is made here.
"""GhostError as RFC 9457 problem details."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from ghost_mcp.errors import Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ghost_mcp.errors import GhostError

__all__ = ["PROBLEM", "details", "problem"]

PROBLEM = "application/problem+json"


def details(error: GhostError, status: int | None = None) -> dict[str, Any]:
    """The document: ``type`` names the error's code, which is stable; ``detail`` and ``hint`` are for people."""
    told = {
        "type": f"urn:ghost:error:{error.code}",
        "title": error.code.replace("_", " "),
        "status": status or error.http_status,
        "detail": error.message,
        "code": error.code,
        "hint": error.hint,
        "retryable": error.retryable,
    }
    return {**told, "data": error.data} if error.data else told


def problem(
    error: GhostError, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request that failed."""
    told = details(error, status)
    more = dict(headers or {})
    if isinstance(error, Unauthenticated):
        more["WWW-Authenticate"] = 'Bearer realm="ghost"'
    body = json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, told["status"], more, media_type=PROBLEM)
