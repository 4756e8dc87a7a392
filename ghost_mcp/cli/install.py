# `ghost install` and `ghost uninstall`: one entry in another program's file, and nothing else of it.
"""Gives Ghost to an MCP client, or takes it away again."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import unified_diff
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ghost_mcp.cli import jsonc, tables
from ghost_mcp.cli.clients import (
    NAME,
    OWN_KEYS,
    TOKEN_VARIABLE,
    Client,
    Machine,
    Way,
    client,
    entry,
    ghost_command,
)
from ghost_mcp.cli.settings import Settings, read
from ghost_mcp.errors import Conflict, InvalidArgument

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from ghost_mcp.cli.output import Output

__all__ = ["install", "snippet", "uninstall"]

_MAX_TOKEN_BYTES = 4096
_TOKEN = re.compile(r"[!#-\[\]-~]+", re.ASCII)  # what a header and a JSON text take as it is
_BEARER = re.compile(r"(Bearer )(?!\$\{)[^\"'\s]+")
_URL_HINT = "For example: --http http://127.0.0.1:8000/mcp"


def install(options: argparse.Namespace, out: Output) -> int:
    """Put Ghost's entry into the client's file."""
    one = client(options.client)
    way = _way(options)
    wanted = entry(one, way)
    if options.http and "Bearer" not in str(wanted) and not way.token_variable:
        out.note(
            f"No token was given ({TOKEN_VARIABLE} or --token-file): the hub must run without."
        )
    if way.token_variable:
        out.note(
            f"The file is shared, so it names ${TOKEN_VARIABLE}: set it where {one.title} starts."
        )
    return _change(one, options, out, lambda text: _with(one, text, wanted), secret=way.token)


def uninstall(options: argparse.Namespace, out: Output) -> int:
    """Take Ghost's entry out of the client's file."""
    one = client(options.client)
    return _change(one, options, out, lambda text: _without(one, text))


def snippet(one: Client, way: Way) -> str:
    """The entry as a person pastes it."""
    if one.syntax == "toml":
        return _with(one, "", entry(one, way)).rstrip()
    return json.dumps({one.table: {NAME: entry(one, way)}})


def _change(
    one: Client,
    options: argparse.Namespace,
    out: Output,
    edit: Callable[[str], str],
    secret: str = "",
) -> int:
    """Change the client's file, or only say how, and tell what was done."""
    path = one.path(options.scope, Machine.here())
    there = read(path)
    with _about(path):
        text = edit(there.text)
    changed, backup = text != there.text, ""
    if changed and not options.dry_run:
        mode = 0o600 if options.scope == "user" else 0o644
        backup = there.write(text, mode=mode, private=bool(secret))
    told = {
        "client": one.name,
        "path": path,
        "changed": changed,
        "written": changed and not options.dry_run,
        "backup": backup,
        "diff": _diff(path, there, text, secret),
    }
    if out.json:
        out.document(told)
    else:
        _tell(one, told, out, dry=options.dry_run)
    return 0


def _tell(one: Client, told: Mapping[str, Any], out: Output, *, dry: bool) -> None:
    if not told["changed"]:
        out.line(f"{one.title}: nothing to change in {told['path']}")
        return
    if dry:
        out.line(told["diff"])
        out.note("Nothing was written.")
        return
    out.line(f"{one.title}: changed {told['path']}")
    if told["backup"]:
        out.line(f"What was there: {told['backup']}")
    out.line(f"{one.title} reads it at its next start.")


def _diff(path: str, there: Settings, text: str, secret: str) -> str:
    """What changes, tokens masked. Other lines are left out: they may hold other servers' secrets."""
    before, after = there.text.splitlines(), text.splitlines()
    shown = "\n".join(unified_diff(before, after, path, path, n=0, lineterm=""))
    shown = _BEARER.sub(r"\1***", shown)
    return shown.replace(secret, "***") if secret else shown


@contextmanager
def _about(path: str) -> Iterator[None]:
    """Say of which file an editor speaks, and that it was left alone."""
    try:
        yield
    except (InvalidArgument, Conflict) as exc:
        hint = exc.hint or "Repair it or move it away, then run this again."
        raise type(exc)(f"{path} was left as it is: {exc.message}", hint=hint) from exc


def _with(one: Client, text: str, wanted: dict[str, Any]) -> str:
    """The client's file with the entry; what a person added to it stays."""
    if one.syntax == "toml":
        return tables.put(text, (one.table, NAME), wanted, OWN_KEYS)
    comments, path = one.syntax == "jsonc", (one.table, NAME)
    if not text.strip():
        return jsonc.put("{}", path, wanted, comments=comments) + "\n"
    there = _entry(one, jsonc.parse(text, comments=comments))
    if there is None:
        return jsonc.put(text, path, wanted, comments=comments)
    for key in OWN_KEYS:
        if key in wanted:
            text = jsonc.put(text, (*path, key), wanted[key], comments=comments)
        elif key in there:
            text = jsonc.remove(text, (*path, key), comments=comments)
    return text


def _without(one: Client, text: str) -> str:
    if one.syntax == "toml":
        return tables.remove(text, (one.table, NAME))
    if not text.strip():
        return text
    return jsonc.remove(text, (one.table, NAME), comments=one.syntax == "jsonc")


def _entry(one: Client, document: Any) -> Mapping[str, Any] | None:
    """The entry that is there, None when there is none that is an object: `put` says what is wrong then."""
    for key in (one.table, NAME):
        if not isinstance(document, dict) or key not in document:
            return None
        document = document[key]
    return document if isinstance(document, dict) else None


def _way(options: argparse.Namespace) -> Way:
    """How the client is to reach Ghost. A token is never written into a file that a project shares."""
    if not options.http:
        if options.token_file:
            raise InvalidArgument("--token-file is for --http")
        return Way(command=(*ghost_command(), "mcp"))
    url, token = _url(options.http), _token(options.token_file)
    if options.scope == "project":
        return Way(url=url, token_variable=TOKEN_VARIABLE if token else "")
    return Way(url=url, token=token)


def _url(url: str) -> str:
    """The address of a hub's MCP endpoint. Raises InvalidArgument."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidArgument(f"not an address of a hub: {url[:200]!r}", hint=_URL_HINT)
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidArgument(
            "an address holds no user, query or fragment",
            hint=f"A token comes from {TOKEN_VARIABLE} or --token-file. {_URL_HINT}",
        )
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/mcp"


def _token(path: str | None) -> str:
    """The token from a file or the environment, empty when none is given. Raises InvalidArgument."""
    if path is None:
        token, source = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
    else:
        source = path
        try:
            with open(path, "rb") as file:
                token = file.read(_MAX_TOKEN_BYTES + 2).decode("ascii", "replace").strip()
        except OSError as exc:
            raise InvalidArgument(f"cannot read {path}: {exc.strerror}") from exc
        if not token:
            raise InvalidArgument(f"{path} holds no token")
    if token and (len(token) > _MAX_TOKEN_BYTES or not _TOKEN.fullmatch(token)):
        raise InvalidArgument(f"what {source} holds is not a token")
    return token
