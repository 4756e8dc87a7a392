# The hub makes the link: only it knows by which names it is reached.
"""``ghost preview``."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ghost_mcp.errors import (
    BackendUnavailable,
    GhostError,
    InvalidArgument,
    ProtocolFailure,
    Unauthenticated,
    from_wire,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ghost_mcp.cli.output import Output

__all__ = ["link"]

WAIT_S = 30.0
#: How long a browser is let in, and so how long the token must live that stands behind it.
TOKEN_S = 13 * 3600.0
NOTE = "made by ghost preview"


def link(options: argparse.Namespace, out: Output) -> int:
    asked = _asked(options.target)
    with _token(options.tokens_file) as token:
        told = _ask(options.hub.rstrip("/"), options.cave, token, asked)
    if out.json:
        out.document(told)
        return 0
    out.line(told["url"])
    out.note("Open it within a minute: it is good once, for one browser.")
    return 0


def _asked(target: str) -> dict[str, Any]:
    """A port, SERVICE:PORT, or the name of a service, as the hub is asked for it."""
    service, _, port = target.rpartition(":")
    if not (port.isascii() and port.isdigit()):
        return {"service": target}
    return {"service": service, "port": int(port)} if service else {"port": int(port)}


@contextmanager
def _token(file: str | None) -> Iterator[str]:
    """``$GHOST_TOKEN``, else one of the user of this machine, who may read where they are kept. It is taken back when
    the block fails; those of before that are over go."""
    if given := os.environ.get("GHOST_TOKEN"):
        yield given
        return
    from ghost_hub.tokens import Tokens
    from ghost_mcp.backends.local.door import state_folder

    tokens = Tokens(state_folder(), file=file)
    for one in tokens.list():
        if one.note == NOTE and one.expires_at is not None and one.expires_at < time.time():
            with suppress(GhostError):
                tokens.revoke(one.id)
    value, made = tokens.create(scope="use", expires_s=TOKEN_S, note=NOTE)
    try:
        yield value
    except BaseException:
        with suppress(GhostError):
            tokens.revoke(made.id)
        raise


def _ask(hub: str, cave: str, token: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What the hub answers. Raises what it refuses with; BackendUnavailable when it is not there."""
    import httpx2

    headers = {"Authorization": f"Bearer {token}"}
    try:
        with httpx2.Client(headers=headers, timeout=WAIT_S, trust_env=False) as client:
            answer = client.post(f"{hub}/v1/caves/{quote(cave, safe='')}/previews", json=asked)
            told = answer.json()
    except httpx2.InvalidURL as exc:
        raise InvalidArgument(f"not an address: {hub[:100]}") from exc
    except httpx2.HTTPError as exc:
        raise BackendUnavailable(
            f"no hub answers at {hub}: {exc}", hint="Start one with: ghost serve. See also --hub."
        ) from exc
    except ValueError as exc:
        raise ProtocolFailure(f"what answers at {hub} is no hub of Ghost's") from exc
    if answer.status_code == 201 and isinstance(told, dict) and isinstance(told.get("url"), str):
        return told
    if not isinstance(told, dict) or not isinstance(told.get("code"), str):
        raise ProtocolFailure(f"what answers at {hub} is no hub of Ghost's")
    if answer.status_code == Unauthenticated.http_status:
        raise Unauthenticated(
            str(told.get("detail")), hint="Set GHOST_TOKEN to a token of that hub."
        )
    raise from_wire({**told, "message": told.get("detail")})
