# The composition root: the one place that may know hub, servers and core. Each command imports what it needs.
"""The command line ``ghost``. What it offers is listed in ``commands``; this module runs one and renders its end."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ghost_mcp.cli.output import Output
from ghost_mcp.errors import CaveNotFound, GhostError, Internal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

INTERRUPTED = 130
OUTPUT_CLOSED = 141
MAX_LOG_BYTES = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Nothing is raised but SystemExit after a help text."""
    words = list(sys.argv[1:] if argv is None else argv)
    _fill_descriptors()
    own = words[: words.index("--")] if "--" in words else words
    # The output of `ghost mcp` belongs to its protocol, also when it is called wrongly.
    out = Output(json="--json" in own and own[0] != "mcp")
    try:
        try:
            return _run(words, out)
        except BaseExceptionGroup as group:
            raise _leaf(group) from group
    except GhostError as exc:
        out.error(exc)
        return exc.exit_code
    except KeyboardInterrupt:
        out.interrupted()
        return INTERRUPTED
    except BrokenPipeError:
        _silence()
        return OUTPUT_CLOSED
    except Exception as exc:  # noqa: BLE001  (a bug: one line for the person, the rest for the log)
        out.error(_report(exc))
        return Internal.exit_code


def _run(words: list[str], out: Output) -> int:
    from ghost_mcp.cli import parser

    if words and words[0] == "complete":  # what the shells' completion asks
        from ghost_mcp.cli.completion import complete

        return complete(words[1:])
    options = parser.parse(words)
    if options is None:
        out.line(parser.overview())
        return 0
    try:
        return parser.handler(options.command)(options, out)
    except CaveNotFound as exc:
        if getattr(options, "backend", "") is None:
            from ghost_mcp.backends.registry import default_backend

            looked = f"Only {default_backend()} caves were looked for"
            exc.hint = (
                f"{exc.hint}\n{looked}: --backend NAME or GHOST_BACKEND says others.".lstrip()
            )
        raise


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure in nested groups: an anticipated one before others."""
    leaves: list[BaseException] = []
    queue: list[BaseException] = [group]
    while queue:
        exc = queue.pop(0)
        if isinstance(exc, BaseExceptionGroup):
            queue.extend(exc.exceptions)
        else:
            leaves.append(exc)
    return next((exc for exc in leaves if isinstance(exc, GhostError)), leaves[0])


def _fill_descriptors() -> None:
    """A caller may have closed 0, 1 or 2: what is opened next must not become our output."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _silence() -> None:
    """Nobody reads stdout: let the interpreter's last flush go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _report(exc: Exception) -> GhostError:
    """Keep the traceback of a bug, and say where."""
    import traceback

    text = "".join(traceback.format_exception(exc))
    if os.environ.get("GHOST_DEBUG") == "1":
        os.write(2, text.encode("utf-8", "backslashreplace"))
    number = os.urandom(4).hex()
    path = _log(f"--- {number}\n{text}")
    where = f"the traceback is in {path}" if path else "GHOST_DEBUG=1 shows the traceback"
    return Internal(
        f"internal error {number}: {type(exc).__name__}", hint=f"This is a bug; {where}."
    )


def _log(text: str) -> str:
    """Append to the state folder's ``cli.log``; returns its path, empty when it cannot be written."""
    from ghost_mcp.backends.local.door import state_folder

    path = os.path.join(state_folder(), "cli.log")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o600)
        with open(fd, "ab") as file:
            if file.tell() > MAX_LOG_BYTES:
                file.truncate(0)
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError:
        return ""
    return path
