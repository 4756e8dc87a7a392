# The hub over HTTP, from the command line.
"""``ghost serve`` and ``ghost token``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ghost_mcp.cli.output import age
from ghost_mcp.errors import InvalidArgument

if TYPE_CHECKING:
    import argparse

    from ghost_hub.settings import HubSettings
    from ghost_hub.tokens import Token, Tokens
    from ghost_mcp.cli.output import Output

__all__ = ["serve", "token"]


def serve(options: argparse.Namespace, out: Output) -> int:
    import sys

    from ghost_hub.settings import HubSettings

    settings = HubSettings.load(
        options.config,
        host=options.host,
        port=options.port,
        backend=options.backend,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        tokens_file=options.tokens_file,
        auth=False if options.no_auth else None,
    )
    settings.check()

    # Only now: it is long until these are loaded, and what is wrong with the settings is told before.
    from ghost_hub.serve import run
    from ghost_mcp import tracing
    from ghost_mcp.audit import layers
    from ghost_mcp.logs import to_stderr
    from ghost_mcp.secrets.process import no_core_dump

    no_core_dump()
    to_stderr()
    tracing.start()

    def tell(line: str) -> None:
        out.line(line)
        sys.stdout.flush()

    # Standard output is for whoever collects the lines; ghost mcp speaks its protocol there.
    return run(settings, _shared(settings), tell, layers(options.audit, stream=1))


def token(options: argparse.Namespace, out: Output) -> int:
    if (options.action == "revoke") != bool(options.id):
        raise InvalidArgument(
            "revoke needs the token's id, and nothing else does", hint="ghost token revoke ID"
        )
    tokens = _tokens(options.tokens_file)
    if options.action == "create":
        _create(tokens, options, out)
    elif options.action == "list":
        _list(tokens.list(), out)
    else:
        tokens.revoke(options.id)
        if out.json:
            out.document({"revoked": options.id})
        else:
            out.line(f"revoked {options.id}")
    return 0


def _tokens(file: str | None) -> Tokens:
    from ghost_hub.tokens import Tokens
    from ghost_mcp.backends.local.door import state_folder

    return Tokens(state_folder(), file=file)


def _shared(settings: HubSettings) -> Tokens:
    """The tokens to serve with. Raises InvalidArgument when a file is named that is not there."""
    tokens = _tokens(settings.tokens_file)
    if settings.auth and tokens.given and not tokens.list():
        raise InvalidArgument(
            f"there are no tokens in {settings.tokens_file}",
            hint=f"Make one: ghost token create --tokens-file {settings.tokens_file}",
        )
    return tokens


def _create(tokens: Tokens, options: argparse.Namespace, out: Output) -> None:
    from ghost_mcp.spec import parse_span

    expires_s = parse_span(options.expires) if options.expires else None
    value, made = tokens.create(
        owner=options.owner or "", scope=options.scope, expires_s=expires_s, note=options.note
    )
    if out.json:
        out.document({**made.as_dict(), "token": value})
        return
    out.line(value)
    out.note("It is shown this once: only a hash of it is kept.")


def _list(found: list[Token], out: Output) -> None:
    if out.json:
        out.document([one.as_dict() for one in found])
    elif not found:
        out.note("no tokens; make one: ghost token create")
    else:
        now = time.time()
        headers = ("ID", "OWNER", "SCOPE", "AGE", "ENDS IN", "NOTE")
        out.table(headers, [_row(one, now) for one in found])


def _row(one: Token, now: float) -> tuple[str, ...]:
    ends = "never"
    if one.expires_at is not None:
        ends = age(one.expires_at - now) if one.expires_at > now else "over"
    return (one.id, one.owner or "(you)", one.scope, age(now - one.created_at), ends, one.note)
