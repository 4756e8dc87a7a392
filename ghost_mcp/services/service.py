# Nothing is kept here: what runs in a cave is what its warden says, whichever hub asks.
"""One service of one cave, as a caller holds it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import anyio

from ghost_mcp.errors import NotFound, ProtocolFailure, Unsupported
from ghost_mcp.services.declared import Declared, declared

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyio.abc import ByteStream

    from ghost_mcp.cave import Cave

__all__ = ["Service", "ServiceStatus", "running"]

STOPPED = "stopped"
PAUSES_S = (0.05, 0.2, 0.5)
_STATES = ("starting", "ready", "waiting", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """``state``: stopped, starting, ready, waiting (to be started again), failed, or missing.

    ``memory_bytes`` counts what its processes share for each of them. ``url`` is its page at a hub, if it has one.
    """

    name: str
    about: str
    state: str
    uses: int = 0
    restarts: int = 0
    age_s: float | None = None
    processes: int = 0
    memory_bytes: int = 0
    command: str | None = None
    hint: str = ""
    url: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Socket:
    """Where a running service listens in its cave."""

    port: int | None
    path: str | None


class Service:
    """A service of a cave. Raises NotFound, with those that there are, when none of that name is declared."""

    def __init__(self, cave: Cave, name: str) -> None:
        known = declared()
        if name not in known:
            raise NotFound(
                f"no service is named {name[:64]!r}", hint=f"There are: {', '.join(known)}."
            )
        self._cave = cave
        self.declared = known[name]

    @property
    def name(self) -> str:
        return self.declared.name

    @property
    def url(self) -> str:
        """The address at a hub that starts it, and leads a browser to it; empty when it has no page."""
        return _url(self._cave, self.declared)

    async def start(self) -> ServiceStatus:
        """Return when it is ready; started now if it is not running. Many may ask at once, from many hubs.

        Raises Unsupported when the cave lacks its programs, BackendUnavailable when it does not come up.
        """
        return _status(self._cave, self.declared, await self._start())

    async def stop(self) -> None:
        """End it and all it started. Not running is fine."""
        try:
            await self._call("stop")
        except NotFound:
            return

    async def status(self) -> ServiceStatus:
        """What it is doing now, without starting it."""
        return (await _look(self._cave, {self.name: self.declared}))[0]

    async def log(self) -> str:
        """The end of what it wrote. Raises NotFound when it is not running."""
        return (await self._call("log"))[1].decode("utf-8", "replace")

    @asynccontextmanager
    async def dial(self) -> AsyncIterator[ByteStream]:
        """A connection to it, which starts it if need be. It is in use meanwhile."""
        async with AsyncExitStack() as stack:
            for pause_s in (*PAUSES_S, None):
                where = await self.socket()
                dialled = self._cave.dial(where.port, path=where.path)
                try:
                    stream = await stack.enter_async_context(dialled)
                    break
                except NotFound:  # it has ended this moment; its warden is about to start it again
                    if pause_s is None:
                        raise
                    await anyio.sleep(pause_s)
            yield stream

    async def socket(self) -> _Socket:
        """Start it if need be; where it then listens, for ``Cave.dial``."""
        head = await self._start()
        port, path = head.get("port"), head.get("path")
        if not (isinstance(port, int) or isinstance(path, str)):
            raise ProtocolFailure("the warden did not say where a service listens")
        return _Socket(port if isinstance(port, int) else None, path if port is None else None)

    @asynccontextmanager
    async def using(self) -> AsyncIterator[None]:
        """It is started and, for as long as the block, not taken for idle."""
        await self._start()
        async with self._cave.held("service", {"action": "use", "name": self.name}):
            yield

    async def until_ready(self) -> None:
        """Return when it is ready, whoever starts it and whenever; this neither starts nor uses it."""
        async with self._cave.held("service", {"action": "await", "name": self.name}):
            return

    async def _start(self) -> Mapping[str, Any]:
        one = self.declared
        head = {
            "argv": ["sh", "-c", one.command],
            "env": dict(one.env),
            "cwd": one.cwd,
            "port": one.port,
            "ask": one.ask,
            "expect": one.expect,
            "ready_s": one.ready_s,
            "idle_s": one.idle_s,
            "programs": list(one.programs),
            "wait_s": one.ready_s,
        }
        try:
            return (await self._call("start", head, one.source()))[0]
        except Unsupported as exc:
            if exc.code == "service_missing":
                exc.hint = one.way_out
                exc.message = f"{self.name} cannot start: {exc.message}"
                exc.args = (exc.message,)
            raise

    async def _call(
        self, action: str, head: Mapping[str, Any] | None = None, body: bytes = b""
    ) -> tuple[dict[str, Any], bytes]:
        asked = {**(head or {}), "action": action, "name": self.name}
        return await self._cave.call("service", asked, body)


async def running(cave: Cave) -> list[ServiceStatus]:
    """Every declared service, those that run first, with the way out for those that the cave lacks."""
    return await _look(cave, declared())


async def _look(cave: Cave, known: Mapping[str, Declared]) -> list[ServiceStatus]:
    asked = {"programs": {name: list(one.programs) for name, one in known.items()}}
    head, _ = await cave.call("services", asked)
    live = {one.get("name"): one for one in _heads(head)}
    missing = head.get("missing")
    lacking = missing if isinstance(missing, dict) else {}
    told = {
        name: _status(cave, one, live[name]) if name in live else _absent(cave, one, lacking)
        for name, one in known.items()
    }
    return sorted(told.values(), key=lambda one: one.name not in live)


def _absent(cave: Cave, one: Declared, lacking: Mapping[str, Any]) -> ServiceStatus:
    if not lacking.get(one.name):
        return _status(cave, one, {"state": STOPPED})
    return _status(cave, one, {"state": "missing"}, hint=one.way_out)


def _heads(head: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = head.get("services")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _status(cave: Cave, one: Declared, head: Mapping[str, Any], hint: str = "") -> ServiceStatus:
    def number(key: str) -> int:
        value = head.get(key)
        return value if isinstance(value, int) and value >= 0 else 0

    state, age_s, command = head.get("state"), head.get("age_s"), head.get("command")
    if state not in (*_STATES, STOPPED, "missing"):
        raise ProtocolFailure("the warden told an unknown state of a service")
    return ServiceStatus(
        name=one.name,
        about=one.about,
        state=str(state),
        uses=number("uses"),
        restarts=number("restarts"),
        age_s=float(age_s) if isinstance(age_s, int | float) else None,
        processes=number("pids"),
        memory_bytes=number("rss_bytes"),
        command=command[:40] if isinstance(command, str) else None,
        hint=hint,
        url=_url(cave, one),
    )


def _url(cave: Cave, one: Declared) -> str:
    return "" if one.page is None else f"/services/{one.name}/?cave={cave.name}"
