# Read only when a word was not understood: no command pays for it.
"""What somebody may have meant who typed what is no command, or no option of one."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from ghost_mcp.cli.commands import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["command_hint", "options_hint"]

# What other tools call it.
_ELSEWHERE = {
    **dict.fromkeys(("ls", "ps", "caves"), "list"),
    **dict.fromkeys(("new", "add", "make", "up"), "create NAME"),
    **dict.fromkeys(("rm", "delete", "remove", "down"), "destroy CAVE"),
    **dict.fromkeys(("run", "eval"), "exec CAVE -- COMMAND"),
    **dict.fromkeys(("attach", "bash", "enter", "sh", "shell", "ssh"), "exec -it CAVE"),
    **dict.fromkeys(("describe", "inspect", "show", "status"), "info CAVE"),
    **dict.fromkeys(("restart", "resume", "unpause"), "start CAVE"),
    **dict.fromkeys(("halt", "kill"), "stop CAVE"),
    **dict.fromkeys(("dashboard", "http", "hub", "server", "ui", "web"), "serve"),
    **dict.fromkeys(("config", "setup"), "install CLIENT"),
    **dict.fromkeys(("check", "selftest"), "doctor"),
    **dict.fromkeys(("build", "images", "pull"), "image ACTION"),
    **dict.fromkeys(("connections", "network"), "egress CAVE"),
    "prune": "gc",
    "stats": "top",
    "tools": "call TOOL",
}


def command_hint(word: str) -> str:
    """For a first word that is no command."""
    if word.startswith("-"):
        return "Options follow the command. See: ghost --help"
    close = get_close_matches(word, COMMANDS, n=1)
    meant = _ELSEWHERE.get(word.lower()) or (close[0] if close else "")
    return f"Did you mean: ghost {meant}" if meant else f"Commands: {', '.join(COMMANDS)}."


def options_hint(words: Iterable[str], known: Iterable[str]) -> str:
    """For options that a command has not; empty when it has none like them."""
    names = [word.partition("=")[0] for word in words if word.startswith("-")]
    found = (get_close_matches(name, known, n=1) for name in names)
    near = list(dict.fromkeys(name for names in found for name in names))
    return f"Did you mean: {', '.join(near)}" if near else ""
