# What a cluster's API server sends is bounded here, and its refusals become Ghost's errors here alone.
"""The API server's answers: how they are read, and what they mean."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ghost_mcp.errors import (
    BackendUnavailable,
    CaveNotFound,
    Conflict,
    GhostError,
    InvalidArgument,
    LimitExceeded,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import aiohttp

__all__ = ["document", "meant", "pause", "read", "unreachable"]

MAX_ANSWER = 64 << 20


async def read(response: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises BackendUnavailable for one that no API server sends."""
    raw = bytearray()
    async for piece in response.content.iter_any():
        raw += piece
        if len(raw) > MAX_ANSWER:
            raise BackendUnavailable("the cluster's answer is too long")
    return bytes(raw)


def document(raw: bytes) -> dict[str, Any]:
    """A body's JSON object; of what is none, its beginning as the message."""
    try:
        found = json.loads(raw) if raw else {}
    except ValueError:
        found = {"message": raw[:300].decode("utf-8", "replace")}
    return found if isinstance(found, dict) else {}


def pause(headers: Mapping[str, str]) -> float:
    """The seconds that a server asks to wait; 0 when it does not."""
    after = headers.get("Retry-After", "")
    return float(after) if after.isdigit() else 0.0


_MEANT: dict[int, type[GhostError]] = {
    400: InvalidArgument,
    404: CaveNotFound,
    409: Conflict,
    410: Conflict,
    422: InvalidArgument,
}


def meant(status: int, answer: Mapping[str, Any]) -> GhostError:
    """What a refusal means to whoever asked for a cave."""
    message = str(answer.get("message") or f"the cluster answered {status}")[:500]
    if status in (401, 403):
        if "exceeded quota" in message:
            return LimitExceeded(
                message, hint="The namespace's ResourceQuota says how much there may be."
            )
        return BackendUnavailable(
            f"the cluster refuses: {message}",
            hint="Ghost needs what configs/kubernetes grants in its Role; is it there, and is the identity right?",
        )
    return _MEANT.get(status, BackendUnavailable)(message)


def unreachable(exc: Exception) -> BackendUnavailable:
    """What broke on the way, as ours."""
    return BackendUnavailable(
        f"the cluster does not answer: {str(exc)[:300] or type(exc).__name__}",
        hint="Is it up, and does kubectl reach it with this KUBECONFIG?",
    )
