# Only this file connects to the outside for a cave, and only to an address that the policy has just allowed.
"""From a target to a connected socket: looked up here, each address checked, the checked address connected to."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ghost_mcp.egress.hosts import Address, normal_host
from ghost_mcp.errors import InvalidArgument
from ghost_mcp.sockets import Wired

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from ghost_mcp.egress.policy import Policy, Target, Verdict

Won = tuple["ByteStream", Address]

__all__ = ["Dialler", "Reached", "Refused", "Unreachable", "is_own", "look_up"]

LOOKUP_S = 10.0
CONNECT_S = 15.0
STAGGER_S = 0.25  # RFC 8305: before the next address is tried beside the last
MAX_ADDRESSES = 16
LOOKUPS = 4  # at once: a slow name server holds up only the cave that asks it


class Refused(Exception):
    """The policy says no."""

    def __init__(self, target: str, verdict: Verdict, address: str = "") -> None:
        super().__init__(verdict.why)
        self.target = target
        self.verdict = verdict
        self.address = address


class Unreachable(Exception):
    """The policy allows it, and it cannot be had. ``late``: nothing answered in time."""

    def __init__(self, why: str, *, late: bool = False) -> None:
        super().__init__(why)
        self.late = late


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A connection, the address it goes to and the rule that allowed it."""

    stream: ByteStream
    address: Address
    rule: str


def look_up(name: str, port: int) -> list[str]:
    """The addresses of a name, as this machine's resolver orders them. Raises OSError."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def is_own(address: Address) -> bool:
    """Whether an address is this machine's own: what is sent there would not leave it. Nothing is sent to ask."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
            return str(probe.getsockname()[0]) == str(address)
        except OSError:
            return False


class Dialler:
    """Connects for one cave. ``policy`` is asked anew for each connection."""

    def __init__(self, policy: Callable[[], Policy]) -> None:
        self._policy = policy
        self._lookups = anyio.CapacityLimiter(LOOKUPS)

    async def reach(self, target: Target) -> Reached:
        """Raises Refused or Unreachable, within LOOKUP_S and CONNECT_S."""
        policy = self._policy()
        verdict = policy.target(target)
        if not verdict.allowed:
            raise Refused(str(target), verdict, str(target.address or ""))
        addresses = [target.address] if target.address is not None else await self._named(target)
        verdicts = {
            address: policy.address(target, address, own=is_own(address)) for address in addresses
        }
        good = [address for address in addresses if verdicts[address].allowed]
        if not good:
            raise Refused(str(target), verdicts[addresses[0]], str(addresses[0]))
        stream, address = await _connected(_interleaved(good), target.port)
        return Reached(stream=stream, address=address, rule=verdicts[address].rule)

    async def _named(self, target: Target) -> list[Address]:
        try:
            with anyio.fail_after(LOOKUP_S):
                texts = await anyio.to_thread.run_sync(
                    partial(look_up, target.host, target.port),
                    abandon_on_cancel=True,
                    limiter=self._lookups,
                )
        except TimeoutError:
            raise Unreachable(
                f"the name {target.host} could not be looked up in time", late=True
            ) from None
        except (OSError, UnicodeError) as exc:
            raise Unreachable(f"the name {target.host} could not be looked up: {exc}") from exc
        found = list(dict.fromkeys(a for text in texts if (a := _address(text)) is not None))
        if not found:
            raise Unreachable(f"the name {target.host} has no address")
        return found[:MAX_ADDRESSES]


def _address(text: str) -> Address | None:
    try:
        found = normal_host(text)
    except InvalidArgument:  # with a zone: an address of the local link
        return None
    return None if isinstance(found, str) else found


def _interleaved(addresses: Sequence[Address]) -> list[Address]:
    """The families in turn, the resolver's first choice first (RFC 8305, section 4)."""
    first = addresses[0].version
    ours = [a for a in addresses if a.version == first]
    others = [a for a in addresses if a.version != first]
    return [a for pair in zip_longest(ours, others) for a in pair if a is not None]


async def _connected(addresses: Sequence[Address], port: int) -> Won:
    """A connection to one of them. Raises Unreachable, within CONNECT_S."""
    failures: list[str] = []
    # Most names lead to one address: with nobody to race there are no tasks, which cost more than connecting.
    way = _alone if len(addresses) == 1 else _race
    if won := await way(addresses, port, failures):
        return won
    if failures:
        raise Unreachable(f"no connection to port {port}: {'; '.join(failures)[:300]}")
    raise Unreachable(f"no connection to port {port} of {addresses[0]} in time", late=True)


async def _alone(addresses: Sequence[Address], port: int, failures: list[str]) -> Won | None:
    with anyio.move_on_after(CONNECT_S):
        try:
            return await connect(str(addresses[0]), port), addresses[0]
        except OSError as exc:
            failures.append(f"{addresses[0]}: {_reason(exc)}")
    return None


async def _race(addresses: Sequence[Address], port: int, failures: list[str]) -> Won | None:
    """The first connection that comes about; each address gets a head start before the next."""
    won: list[Won] = []

    async def attempt(address: Address, over: anyio.Event) -> None:
        try:
            stream = await connect(str(address), port)
        except OSError as exc:
            failures.append(f"{address}: {_reason(exc)}")
        else:
            if won:
                await stream.aclose()
            else:
                won.append((stream, address))
                tasks.cancel_scope.cancel()
        finally:
            over.set()

    try:
        with anyio.move_on_after(CONNECT_S):
            async with anyio.create_task_group() as tasks:
                for address in addresses:
                    over = anyio.Event()
                    tasks.start_soon(attempt, address, over)
                    await _bounded(over.wait, STAGGER_S)
    except BaseException:  # whoever asked has gone at the very moment
        for stream, _ in won:
            await stream.aclose()
        raise
    return won[0] if won else None


async def connect(host: str, port: int) -> ByteStream:
    """A connection to an address. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.connect((host, port))
        except BlockingIOError:
            await anyio.wait_writable(sock)
            if failed := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(failed, os.strerror(failed)) from None
        return Wired(sock)
    except BaseException:
        sock.close()
        raise


async def _bounded(wait: Callable[[], Awaitable[object]], seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await wait()


def _reason(exc: OSError) -> str:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno and cause.strerror:
            return str(cause.strerror)
        cause = cause.__cause__
    return str(exc)[:100] or "no connection"
