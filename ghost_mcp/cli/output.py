# Only this file writes to the terminal, `ghost exec`'s own streams excepted.
"""What a command says: to people as text, to programs as exactly one JSON document on stdout."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ghost_mcp.plain import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ghost_mcp.errors import GhostError

__all__ = ["Output", "age"]

PATIENCE_S = 1.0
FRAME_S = 0.1
_FRAMES = "|/-\\"


def age(seconds: float) -> str:
    """``42s``, ``5m``, ``3h``, ``2d``: a span for people."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


class Output:
    """Where a command's answer goes. ``json``: one document, and the texts for people are left out."""

    def __init__(self, *, json: bool) -> None:
        self.json = json

    def document(self, value: Any) -> None:
        """The one JSON document."""
        import json

        self._write(json.dumps(value, indent=2, default=str))

    def entry(self, value: Any) -> None:
        """One of many JSON documents, a line each, as they come."""
        import json

        self._write(json.dumps(value, default=str))

    def line(self, text: str = "") -> None:
        """A line for people, on stdout."""
        if not self.json:
            self._write(plain(text))

    def text(self, text: str) -> None:
        """Text for people as it comes, without a line's end of its own."""
        if not self.json:
            self._write(plain(text), end="")

    def note(self, text: str) -> None:
        """A line for people beside the answer, on stderr."""
        if not self.json:
            _complain(text)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns for people, as wide as their content; the last one is not padded."""
        lines = [headers, *rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(headers) - 1)]
        for line in lines:
            padded = [f"{cell:<{width}}" for cell, width in zip(line, widths, strict=False)]
            self.line("  ".join([*padded, line[-1]]).rstrip())

    def error(self, exc: GhostError) -> None:
        if self.json:
            self.document({"error": exc.as_dict()})
            return
        _complain(f"ghost: {exc.message}")
        if exc.hint:
            _complain(exc.hint)

    def interrupted(self) -> None:
        """The end by Ctrl-C: nothing to say to a person, who pressed it."""
        if self.json:
            error = {"code": "interrupted", "message": "interrupted", "hint": "", "retryable": True}
            self.document({"error": error})

    @contextmanager
    def progress(self, what: str) -> Iterator[None]:
        """Show on a terminal's stderr that something goes on, once it takes longer than a second."""
        if self.json or not os.isatty(2):
            yield
            return
        from threading import Event, Thread

        done = Event()
        thread = Thread(target=_spin, args=(what, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    @staticmethod
    def _write(text: str, end: str = "\n") -> None:
        # A lone surrogate (a file name that is not UTF-8) must not end the command.
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + end)
        sys.stdout.flush()


def _complain(text: str) -> None:
    try:
        os.write(2, (plain(text) + "\n").encode("utf-8", "backslashreplace"))
    except OSError:
        return  # nobody reads stderr


def _spin(what: str, done: Any) -> None:
    if done.wait(PATIENCE_S):
        return
    turn = 0
    while True:
        os.write(2, f"\r{_FRAMES[turn % len(_FRAMES)]} {plain(what)} ".encode())
        turn += 1
        if done.wait(FRAME_S):
            os.write(2, b"\r\x1b[K")
            return
