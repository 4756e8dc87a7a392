# `ghost exec`: this file and what it imports stay near the price of a bare interpreter.
"""Runs a program in a cave and becomes, to its caller, that program: input, output, signals, exit code."""

from __future__ import annotations

import _socket
import os
import signal
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ghost_mcp.backends.local import door
from ghost_mcp.backends.registry import is_local
from ghost_mcp.cli.attach import Attachment, Interrupted, OutputClosed
from ghost_mcp.errors import CaveGone, InvalidArgument
from ghost_mcp.languages import program

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Iterator

    from anyio.abc import ByteStream

    from ghost_mcp.cli.output import Output

__all__ = ["environment", "run", "runs_services"]

STDOUT, STDERR = 1, 2
PATIENCE_S = 1.0
_ONLY_PARSE = 0x400  # ast.PyCF_ONLY_AST, without importing ast
TIMED_OUT = 124  # as timeout(1) says it
SHELL = 'command -v bash >/dev/null && exec bash; exec "${SHELL:-sh}"'


def run(options: argparse.Namespace, out: Output) -> int:
    head = _head(options)
    terminal = _terminal(options, out, head)
    sinks: dict[int, int | bytearray] = {STDOUT: 1, STDERR: 2}
    if out.json:
        sinks = {STDOUT: bytearray(), STDERR: bytearray()}
    with _connected(options.cave, options.backend) as sock:
        attached = Attachment(sock, sinks=sinks, source=_source(options, head), terminal=terminal)
        hello = attached.greet(PATIENCE_S, silent=lambda: _check(options.cave, options.backend))
        try:
            with _network(hello, options):
                answer = attached.run(head)
        except Interrupted as exc:
            if exc.number == signal.SIGINT:
                raise KeyboardInterrupt from None
            return 128 + exc.number
        except OutputClosed:
            raise BrokenPipeError from None
    if answer["exit_code"] == 1 and options.code is not None and options.language == "python":
        _tell_of_languages(options.code, out)
    return _end(answer, sinks, out)


def _tell_of_languages(code: str, out: Output) -> None:
    """Say how a shell line is run, to whoever may have written one: it failed, and is no Python."""
    try:
        compile(code, "CODE", "exec", _ONLY_PARSE)
    except (SyntaxError, ValueError):
        out.note(
            "ghost: CODE is read as Python. A shell line: ghost exec CAVE --language bash 'ls -l';"
            " a program: ghost exec CAVE -- ls -l"
        )


def runs_services(name: str) -> bool:
    """Whether anything runs in a local cave as a service. Raises what reaching its warden raises."""
    with _connected(name, "local") as sock:
        attached = Attachment(sock, sinks={}, source=None)
        attached.greet(PATIENCE_S, silent=lambda: None)
        return bool(attached.ask("services").get("services"))


def environment(pairs: list[str]) -> dict[str, str]:
    """``KEY=VALUE`` as given, ``KEY`` from our own environment. Raises InvalidArgument."""
    found = {}
    for pair in pairs:
        key, given, value = pair.partition("=")
        if not given:
            if key not in os.environ:
                raise InvalidArgument(
                    f"{key[:64]} is not set here", hint=f"Write {key[:64]}=VALUE."
                )
            value = os.environ[key]
        if not key or "\0" in value:
            raise InvalidArgument(f"not KEY=VALUE: {pair[:64]!r}")
        found[key] = value
    return found


def _head(options: argparse.Namespace) -> dict[str, Any]:
    """What the warden is asked to run."""
    what: dict[str, Any]
    if options.argv is not None:
        if options.code is not None or not options.argv:
            raise InvalidArgument(
                "give CODE, or a program after --", hint="ghost exec CAVE -- PROGRAM ARGUMENT..."
            )
        what = {"argv": options.argv}
    elif options.code is not None:
        what = {"argv": program(options.code, options.language)}
    elif options.tty:
        what = {"line": SHELL}
    else:
        raise InvalidArgument(
            "nothing to run", hint="ghost exec CAVE CODE, or ghost exec -it CAVE for a shell"
        )
    if options.timeout is not None:
        from ghost_mcp.spec import parse_span

        what["timeout_s"] = parse_span(options.timeout)
    return what | {"cwd": options.cwd, "env": environment(options.env), "stdin": "none"}


def _terminal(options: argparse.Namespace, out: Output, head: dict[str, Any]) -> int | None:
    """The descriptor of our terminal when the program is to have one, which ``head`` then asks for."""
    if not options.tty:
        return None
    if not (os.isatty(0) and os.isatty(1)):
        raise InvalidArgument(
            "-t needs a terminal, and stdin or stdout is none", hint="Leave -t out."
        )
    if out.json:
        raise InvalidArgument("a terminal and --json exclude each other", hint="Leave one out.")
    columns, rows = os.get_terminal_size(0)
    head["pty"] = [rows, columns]
    head["env"] = {"TERM": os.environ.get("TERM", "xterm-256color"), **head["env"]}
    return 0


def _source(options: argparse.Namespace, head: dict[str, Any]) -> int | None:
    """Our input, unless it is a terminal that was not asked for; ``head`` says which."""
    if os.isatty(0) and not (options.interactive or options.tty):
        return None
    head["stdin"] = "open"
    return 0


@contextmanager
def _connected(name: str, backend: str | None) -> Iterator[_socket.socket]:
    """A socket to the cave's warden: its own for a local cave, a lent one for others."""
    if not is_local(backend):
        from ghost_mcp.cli.bridge import connected

        with connected(_reach(name, backend)) as lent:
            yield lent
        return
    folder = door.find(door.state_folder(), name)
    with closing(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)) as sock:
        try:
            door.connect(sock, folder)
        except CaveGone:
            _check(name, backend)
            raise
        yield sock


def _reach(name: str, backend: str | None) -> Any:
    from contextlib import asynccontextmanager

    from ghost_mcp.ghost import Ghost

    @asynccontextmanager
    async def reach() -> AsyncIterator[ByteStream]:
        async with Ghost(backend=backend) as ghost:
            cave = await ghost.get(name)
            home = await ghost.backend(cave.info.backend)
            async with await home.connect(cave.id) as stream:
                yield stream

    return reach()


def _network(hello: dict[str, Any], options: argparse.Namespace) -> AbstractContextManager[object]:
    """Serves the cave's network while the program runs, when it has one that nobody serves."""
    if hello.get("egress") is not False:
        return nullcontext()
    from ghost_mcp.cli.network import served

    return served(options.cave, options.backend)


def _check(name: str, backend: str | None) -> None:
    """Ask the backend why a cave is silent. Raises Conflict for one that is paused, stopped or ended."""
    from ghost_mcp.cli.caves import find
    from ghost_mcp.lifecycle import Event, after

    info = find(name, backend)
    after(info.state, Event.CALL, info.name)


def _end(answer: dict[str, Any], sinks: dict[int, int | bytearray], out: Output) -> int:
    code, timed_out = answer["exit_code"], answer["timed_out"]
    if out.json:
        texts = [bytes(sinks[n]).decode("utf-8", "replace") for n in (STDOUT, STDERR)]
        out.document(
            {
                "exit_code": code,
                "stdout": texts[0],
                "stderr": texts[1],
                "duration_s": answer["duration_s"],
                "timed_out": timed_out,
            }
        )
    elif timed_out:
        out.note(f"ghost: ended after {answer['duration_s']:.1f} s: its time was over")
    return TIMED_OUT if timed_out else code & 0xFF
