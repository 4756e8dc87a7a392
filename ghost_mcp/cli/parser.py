# From words to a command's options. Only the parser of the command at hand is built.
"""Parsing and help, from the list in ``commands``."""

from __future__ import annotations

import argparse
import os
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from ghost_mcp.cli.commands import COMMANDS
from ghost_mcp.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    from ghost_mcp.cli.commands import Argument
    from ghost_mcp.cli.output import Output

__all__ = ["handler", "overview", "parse"]

MIN_WIDTH, MAX_WIDTH = 50, 100


def _width() -> int:
    """As wide as the terminal, but never too wide to be read. Argparse's own way imports shutil, at each start."""
    try:
        return max(MIN_WIDTH, min(MAX_WIDTH, os.get_terminal_size(1).columns - 1))
    except OSError:  # not to a terminal
        return MAX_WIDTH


class _Format(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_width(), max_help_position=26)


class _Parser(argparse.ArgumentParser):
    """Refusals are GhostErrors, rendered like all others."""

    def error(self, message: str) -> NoReturn:
        raise InvalidArgument(_plainly(message), hint=self._way_out(message))

    def _way_out(self, message: str) -> str:
        what, _, words = message.partition(": ")
        taken = [_shape(one) for one in COMMANDS[self.prog.split()[1]].arguments if one.positional]
        usage = (
            f"usage: {' '.join([self.prog, '[OPTION ...]', *taken])}\nOptions: {self.prog} --help"
        )
        if what == "unrecognized arguments":
            from ghost_mcp.cli.near import options_hint

            return options_hint(words.split(), self._option_string_actions) or usage
        missing = words.split(", ") if what.endswith("are required") else []
        for action in self._actions:
            if action.choices and action.metavar in missing:
                return f"{action.metavar} is one of: {', '.join(action.choices)}\n{usage}"
        return usage


def _shape(argument: Argument) -> str:
    forms = {"?": "[{}]", "*": "[{} ...]"}
    return forms.get(argument.settings.get("nargs", ""), "{}").format(argument.settings["metavar"])


def _plainly(message: str) -> str:
    """What argparse says, for who has never seen it."""
    what, _, words = message.partition(": ")
    if what == "the following arguments are required":
        return f"missing: {words}"
    if what == "unrecognized arguments":
        return f"not understood: {words}"
    if not what.startswith("argument "):
        return message
    kind, _, given = words.partition(": ")
    what = what.removeprefix("argument ")
    if kind == "invalid choice":
        value, _, choices = given.partition(" (choose from ")
        return f"{what}: {value} is none of: {choices.rstrip(')').replace(chr(39), '')}"
    if words == "expected one argument":
        return f"{what}: needs a value"
    number = {"invalid float value": "a number", "invalid int value": "a whole number"}.get(kind)
    return f"{what}: not {number}: {given}" if number else f"{what}: {words}"


def parse(words: list[str]) -> argparse.Namespace | None:
    """The options of a command, its name as ``command``; None when only help is wanted.

    What follows ``--`` is ``argv``, None without it. Raises InvalidArgument; SystemExit after a help text.
    """
    if not words or words[0] in ("-h", "--help") or words == ["help"]:
        return None
    if words[0] == "help":
        words = [words[1], "--help"]
    elif words[0] in ("-V", "--version"):
        words = ["version", *words[1:]]
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        from ghost_mcp.cli.near import command_hint

        raise InvalidArgument(f"unknown command: {name[:64]}", hint=command_hint(name))
    argv = None
    if name == "exec" and "--" in rest:
        cut = rest.index("--")
        rest, argv = rest[:cut], rest[cut + 1 :]
    options = _parser(name).parse_intermixed_args(rest)
    options.command, options.argv = name, argv
    return options


def _parser(name: str) -> _Parser:
    command = COMMANDS[name]
    parser = _Parser(
        prog=f"ghost {name}",
        description=command.summary,
        epilog=command.details,
        formatter_class=_Format,
        allow_abbrev=False,
    )
    for argument in command.arguments:
        parser.add_argument(*argument.flags, **argument.settings)
    return parser


def handler(name: str) -> Callable[[argparse.Namespace, Output], int]:
    """The function that runs a command."""
    module, _, function = COMMANDS[name].where.partition(":")
    found: Callable[[argparse.Namespace, Output], int] = getattr(
        import_module(f"ghost_mcp.cli.{module}"), function
    )
    return found


def overview() -> str:
    """What ``ghost --help`` says."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ghost COMMAND ...",
            "",
            "A computer of its own for an agent: caves, and sixteen tools in them.",
            "",
            *lines,
            "",
            "ghost COMMAND --help says more.",
            "GHOST_STATE_DIR and GHOST_BACKEND set where caves are kept and made.",
        ]
    )
