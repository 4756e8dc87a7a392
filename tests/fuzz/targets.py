# Plain bytes in, nothing out: the same functions run under hypothesis among the tests and under atheris for long.
"""What is fuzzed: each target takes any bytes, and fails only when something is wrong."""

from __future__ import annotations

import atexit
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteStream

from ghost_mcp.egress.flow import Counted, Meter
from ghost_mcp.egress.gateway import Gateway
from ghost_mcp.egress.hosts import normal_host
from ghost_mcp.egress.ledger import Ledger
from ghost_mcp.egress.policy import Policy, Target, known_rules
from ghost_mcp.egress.service import current_policy, serve
from ghost_mcp.errors import InvalidArgument
from ghost_mcp.spec import NetworkPolicy
from ghost_mcp.warden import files, wire
from ghost_mcp.warden.peers import WardenError

__all__ = ["CORPUS", "TARGETS"]

CORPUS = Path(__file__).with_name("corpus")
ANSWER_S = 20.0
NETWORK = NetworkPolicy(mode="allow", allow=())
REQUESTS = (
    b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
    b"HEAD http://a.example/ HTTP/1.0\r\n\r\n",
    b"POST http://a.example/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\nhello",
)


class Said(ByteStream):
    """A peer that says one thing in pieces, and takes whatever it is told."""

    def __init__(self, data: bytes, piece: int = 1 << 16) -> None:
        self._left = [data[at : at + piece] for at in range(0, len(data), piece)][::-1]
        self.told = b""

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self._left:
            raise anyio.EndOfStream
        return self._left.pop()

    async def send(self, item: bytes) -> None:
        self.told += item

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None: ...


def frames(data: bytes) -> None:
    """A link's frames are the same however they are cut, and what is wrong stays wrong."""
    for hub in (True, False):
        whole = _parsed(hub, data, len(data) or 1)
        for size in (1, 7, 1000):
            assert _parsed(hub, data, size) == whole or not whole[1]
            assert _parsed(hub, data, size)[1] == whole[1]


def _parsed(hub: bool, data: bytes, size: int) -> tuple[list[str], bool]:
    end = wire.Connection(hub=hub)
    end.open({"op": "read"})
    found = [repr(one) for one in end.receive(wire.Connection(hub=not hub).send_hello({}))]
    try:
        for at in range(0, len(data), size):
            found += [repr((one, one.body)) for one in end.receive(data[at : at + size])]
    except wire.RemoteProtocolError:
        return found, False
    return found, True


def head(data: bytes) -> None:
    """What a link takes for JSON is JSON, and means the same."""
    try:
        value = wire.loads(data)
    except ValueError:
        return
    assert json.loads(data) == value
    assert wire.loads(wire.dumps(value)) == value


def host(data: bytes) -> None:
    """A host has one form, or is refused."""
    try:
        form = normal_host(data.decode("utf-8", "surrogateescape"))
    except InvalidArgument:
        return
    assert normal_host(str(form)) == form


def rules(data: bytes) -> None:
    """Whatever a policy lists, it opens nothing that is forbidden, and the host only by number."""
    try:
        listed = known_rules(data.decode("utf-8", "surrogateescape").split("\n"))
    except InvalidArgument:
        return
    policy = Policy(open=False, rules=listed)
    named = Target.read("some.example", 80)
    for text in ("169.254.169.254", "0.0.0.0", "fe80::1", "::ffff:169.254.169.254"):
        assert not policy.address(named, ip_address(text)).allowed
    for text in ("127.0.0.1", "::1", "192.168.0.1"):
        address = ip_address(text)
        by_number = any(rule.covers(address) for rule in listed)
        assert by_number or not policy.address(named, address, own=True).allowed


def path(data: bytes) -> None:
    """A path is absolute and in its one form, outside of what is no file of a cave; a relative one stays below."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        full = files.resolve(text)
    except WardenError:
        return
    assert full == os.path.normpath(full)
    assert full.startswith("/")
    assert not full.startswith("//")
    assert not any((full + "/").startswith(tree + "/") for tree in files.OUTSIDE)
    if not text.startswith(("/", "~")):
        assert (full + "/").startswith(files.HOME + "/")


@cache
def _ledger() -> Ledger:
    folder = tempfile.TemporaryDirectory(prefix="ghost-fuzz-")
    atexit.register(folder.cleanup)
    ledger = Ledger(Path(folder.name))
    ledger.prepare()
    return ledger


class _Answered(Gateway):
    """A way out that leads to one hostile server, whatever is asked for."""

    def __init__(self, answer: bytes) -> None:
        super().__init__("fuzzed", NETWORK, current_policy(NETWORK, _ledger()), _ledger())
        self._answer = answer

    @asynccontextmanager
    async def reach(self, target: Target, how: str) -> AsyncIterator[Counted]:
        yield Counted(Said(self._answer), Meter(NETWORK))


async def _served(gateway: Gateway, near: Said) -> None:
    with anyio.fail_after(ANSWER_S):
        await serve(gateway, near)


def proxy(data: bytes) -> None:
    """Whatever a program says to its proxy, it is answered with a refusal and nothing is connected to."""
    ledger = _ledger()
    gateway = Gateway("fuzzed", NETWORK, current_policy(NETWORK, ledger), ledger)
    near = Said(data[1:], 1 + data[0]) if data else Said(b"")
    anyio.run(partial(_served, gateway, near))
    assert near.told[:9] in (b"", b"HTTP/1.1 ") or near.told[:1] == b"\x05", near.told[:80]
    assert b"HTTP/1.1 2" not in near.told
    assert len(near.told) < 4096
    for record in ledger.records():
        assert record["event"] == "refused"
    (ledger.folder / "log.jsonl").unlink(missing_ok=True)


def answers(data: bytes) -> None:
    """Whatever a server answers, the proxy's own work ends without an error that nobody foresaw."""
    which, answer = (data[0], data[1:]) if data else (0, b"")
    near = Said(REQUESTS[which % len(REQUESTS)])
    anyio.run(partial(_served, _Answered(answer), near))


TARGETS: dict[str, Callable[[bytes], Any]] = {
    function.__name__: function for function in (frames, head, host, rules, path, proxy, answers)
}
