# One answer for all shells: their scripts only ask `ghost complete WORD...` and offer what it prints.
"""Shell completion of commands, options, their values and the names of local caves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghost_mcp.cli.commands import COMMANDS, Argument

if TYPE_CHECKING:
    import argparse

    from ghost_mcp.cli.output import Output

__all__ = ["complete", "script"]

_SCRIPTS = {
    "bash": """_ghost() {
    local IFS=$'\\n'
    COMPREPLY=($(compgen -W "$(ghost complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _ghost ghost
""",
    "zsh": """#compdef ghost
_ghost() {
    local -a found
    found=("${(@f)$(ghost complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n $found ]]; then compadd -a found; else _files; fi
}
compdef _ghost ghost
""",
    "fish": """function __ghost_complete
    set -l words (commandline -opc) (commandline -ct)
    ghost complete $words[2..] 2>/dev/null
end
complete -c ghost -a '(__ghost_complete)'
""",
}


def script(options: argparse.Namespace, out: Output) -> int:
    text = _SCRIPTS[options.shell]
    if out.json:
        out.document({"shell": options.shell, "script": text})
    else:
        out.text(text)
    return 0


def complete(words: list[str]) -> int:
    """Print what the last word may become, one a line; nothing where a file name may stand."""
    last = words[-1] if words else ""
    found = _candidates(words[:-1], last)
    for candidate in sorted(found):
        if candidate.startswith(last):
            print(candidate)
    return 0


def _candidates(before: list[str], last: str) -> list[str]:
    if not before:
        return [*COMMANDS]
    command = COMMANDS.get(before[0])
    if command is None or "--" in before:
        return []
    options = {flag: a for a in command.arguments if not a.positional for flag in a.flags}
    previous = options.get(before[-1])
    if previous is not None and previous.takes_value:
        return _values(previous)
    if last.startswith("-"):
        return [*options, "--help"]
    taken = _positionals(before[1:], options)
    for argument in (a for a in command.arguments if a.positional):
        if argument.settings.get("nargs") == "*" or taken == 0:
            return _values(argument)
        taken -= 1
    return []


def _positionals(words: list[str], options: dict[str, Argument]) -> int:
    """How many of the words are neither options nor their values."""
    count, skip = 0, False
    for word in words:
        if skip:
            skip = False
        elif word in options:
            skip = options[word].takes_value
        elif not word.startswith("-"):
            count += 1
    return count


def _values(argument: Argument) -> list[str]:
    if "choices" in argument.settings:
        return list(argument.settings["choices"])
    kind = argument.settings.get("metavar")
    if kind == "CAVE":
        from ghost_mcp.backends.local.door import names, state_folder

        return names(state_folder())
    if kind == "SERVER":
        from ghost_hub.catalog import SERVERS

        return list(SERVERS)
    if kind == "TOOL":
        from ghost_hub.catalog import published, toolsets

        return list(published(toolsets()))
    return []
