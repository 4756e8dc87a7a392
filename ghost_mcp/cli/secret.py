# A value is read from stdin or from a prompt. It is never an argument, which any user of the machine can see.
"""``ghost secret set|list|rm|rotate``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ghost_mcp.backends.local.door import state_folder
from ghost_mcp.cli.output import age
from ghost_mcp.errors import InvalidArgument

if TYPE_CHECKING:
    import argparse

    from ghost_mcp.cli.output import Output
    from ghost_mcp.secrets.store import SecretStore

__all__ = ["run"]


def run(options: argparse.Namespace, out: Output) -> int:
    from ghost_mcp.secrets.process import no_core_dump
    from ghost_mcp.secrets.store import SecretStore

    no_core_dump()
    store = SecretStore(Path(state_folder()) / "secrets")
    act = {"set": _set, "list": _list, "rm": _remove, "rotate": _rotate}[options.action]
    act(store, options, out)
    return 0


def _set(store: SecretStore, options: argparse.Namespace, out: Output) -> None:
    if len(options.names) != 1:
        raise InvalidArgument(
            "set takes one name; the value is read from stdin, or asked for",
            hint="printf %s VALUE | ghost secret set NAME",
        )
    [name] = options.names
    [info] = store.set(options.owner, {name: _value(name)})
    if out.json:
        out.document(info.as_dict())
    out.line(f"set {info.name}, version {info.version}")


def _value(name: str) -> bytes:
    """All of stdin, byte for byte; from a terminal what is typed without being shown."""
    if not os.isatty(0):
        from ghost_mcp.secrets.store import MAX_VALUE_BYTES

        return sys.stdin.buffer.read(MAX_VALUE_BYTES + 1)
    from getpass import getpass

    return os.fsencode(getpass(f"Value of {name} (not shown): "))


def _list(store: SecretStore, options: argparse.Namespace, out: Output) -> None:
    _no_names(options)
    found = store.infos(options.owner)
    if out.json:
        out.document([info.as_dict() for info in found])
    elif not found:
        out.note("no secrets; set one: ghost secret set NAME")
    else:
        now = time.time()
        rows = [
            (info.name, str(info.version), age(now - info.created_at), age(now - info.updated_at))
            for info in found
        ]
        out.table(("NAME", "VERSION", "CREATED", "SET"), rows)


def _remove(store: SecretStore, options: argparse.Namespace, out: Output) -> None:
    if not options.names:
        raise InvalidArgument("say which secrets", hint="ghost secret rm NAME...")
    store.remove(options.owner, options.names)
    if out.json:
        out.document({"removed": options.names})
    for name in options.names:
        out.line(f"removed {name}")


def _rotate(store: SecretStore, options: argparse.Namespace, out: Output) -> None:
    _no_names(options)
    count = store.rotate()
    if out.json:
        out.document({"rotated": count})
    out.line(
        f"{count} secret{'s' * (count != 1)} under a new key; the old one opens nothing any more"
    )


def _no_names(options: argparse.Namespace) -> None:
    if options.names:
        raise InvalidArgument(f"{options.action} takes no name")
