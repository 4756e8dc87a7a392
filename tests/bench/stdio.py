# The smallest client there is, so that what is measured is the server.
"""MCP over stdio as raw JSON-RPC lines: the same few lines for every server."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import IO, Any

__all__ = ["RawClient", "connected"]

# A server that is silent for so long is ended, which ends the reading too.
ANSWER_S = 60.0
END_S = 10.0
MAX_SAID = 500
HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "bench", "version": "0"},
}


class RawClient:
    """One connection to one server process."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors
        self._number = 0

    def greet(self) -> None:
        self.request("initialize", HELLO)
        self._write({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def request(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The result. Raises RuntimeError for an error, or when the server ends."""
        self._number += 1
        asked: dict[str, Any] = {"jsonrpc": "2.0", "id": self._number, "method": method}
        self._write(asked if params is None else asked | {"params": params})
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            message = json.loads(line)
            if message.get("id") == self._number and "method" not in message:
                if "result" not in message:
                    raise RuntimeError(f"{method}: {message.get('error')}")
                found: dict[str, Any] = message["result"]
                return found
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip()[-MAX_SAID:]
        raise RuntimeError(f"no answer to {method} from {self._process.args!r}: {said}")

    def call(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A tool's result. Raises RuntimeError when the tool failed."""
        found = self.request("tools/call", {"name": tool, "arguments": arguments})
        if found.get("isError"):
            raise RuntimeError(f"{tool}: {found['content']}")
        return found

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()


@contextmanager
def connected(argv: Sequence[str], environment: Mapping[str, str]) -> Iterator[RawClient]:
    """Start a server; it has ended when the block has."""
    with tempfile.TemporaryFile() as errors, _started(argv, environment, errors) as process:
        patience = Timer(ANSWER_S, process.kill)
        patience.daemon = True
        patience.start()
        try:
            yield RawClient(process, errors)
        finally:
            patience.cancel()


@contextmanager
def _started(
    argv: Sequence[str], environment: Mapping[str, str], errors: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        argv,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
