# The seam between Ghost and an engine. A backend makes caves and opens one byte stream to each warden;
# everything else is done over that stream and is therefore the same everywhere.
"""The contract of a backend, as docstrings. ``ghost_mcp.testing.contract`` holds every backend to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ghost_mcp.errors import Unsupported

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from anyio.abc import ByteStream, TaskGroup

    from ghost_mcp.pool import Pool, PoolPlan
    from ghost_mcp.spec import CaveInfo, CaveSpec, NetworkPolicy, Usage


__all__ = ["Backend", "network_line", "oldest_first"]

OPEN_FILES = 65_536
SHAPE = ("image", "limits", "network")


class Backend(ABC):
    """Makes, finds and ends caves on one engine. The engine is the truth: a backend keeps no list.

    Use it as an async context manager; entering may start a warm pool, leaving ends what is ephemeral.
    Every method may be called concurrently. All raise BackendUnavailable when the engine is missing, and
    CaveNotFound for an id that is not there (destroy excepted). Foreign errors never pass.
    """

    name: ClassVar[str]
    pools: ClassVar[bool] = False  # whether prepare() and claim() work
    #: The network modes whose way out is Ghost's proxy, over the link.
    proxied: ClassVar[frozenset[str]] = frozenset({"allow", "open"})
    projects: ClassVar[bool] = False  # whether a cave can have side services: ``CaveSpec.project``

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    @abstractmethod
    async def create(
        self, spec: CaveSpec, *, secrets: Mapping[str, bytes] | None = None
    ) -> CaveInfo:
        """Return a running cave, ready for connect().

        Idempotent for ``spec.id``. ``secrets`` holds the values for ``spec.secrets``; they reach only the
        warden's memory. Raises Conflict when the full name is taken by another cave, InvalidArgument or
        Unsupported for a spec this engine cannot enforce; then nothing is left behind.
        """

    @abstractmethod
    async def get(self, name: str) -> CaveInfo:
        """The cave of that id or full name (``OWNER/NAME``; ``NAME`` where it has no owner), whatever its state."""

    @abstractmethod
    async def list(self, owner: str | None = None) -> list[CaveInfo]:
        """All caves of this engine, or of one owner, oldest first.

        What ended by itself and was ephemeral is swept, not listed.
        """

    @abstractmethod
    async def start(self, cave_id: str, *, secrets: Mapping[str, bytes] | None = None) -> CaveInfo:
        """Bring a stopped, ended or paused cave back: same files, new processes (paused: the same processes).

        Its deadline counts from now. A running cave is left as it is.
        """

    @abstractmethod
    async def stop(self, cave_id: str, *, pause: bool = False) -> CaveInfo:
        """End all processes and keep the files; with ``pause`` freeze them instead. Idempotent."""

    @abstractmethod
    async def destroy(self, cave_id: str) -> None:
        """Remove the cave: no process, no file, no trace left when it returns. Idempotent, also for unknown ids."""

    @abstractmethod
    async def connect(self, cave_id: str) -> ByteStream:
        """Open a byte stream to the cave's warden. Each call opens one of its own; the caller closes it.

        Raises CaveGone when no warden answers, Conflict when the cave is stopped or paused.
        """

    async def prepare(self, template: CaveSpec) -> str:
        """Make a nameless cave for a warm pool, ready for connect(); returns its id. It ends with its maker.

        Of the template only what makes a cave's shape counts: see fits(). Raises as create() does.
        """
        raise Unsupported(f"the {self.name} backend has no warm pool")

    def fits(self, template: CaveSpec, spec: CaveSpec) -> bool:
        """Whether a cave prepared for ``template`` can be claimed as ``spec``; everything else is configured."""
        own = spec.workspace is None and not spec.mounts and spec.limits.disk_bytes is None
        own = own and spec.project is None and spec.gpus is None
        return own and all(getattr(template, part) == getattr(spec, part) for part in SHAPE)

    async def claim(self, prepared_id: str, spec: CaveSpec) -> CaveInfo:
        """Turn a prepared cave into the one ``spec`` describes, under ``spec.id``; its shape must fit.

        Of several claims, also by other processes, exactly one succeeds; the others raise CaveNotFound. The
        caller then configures the warden with settings(). Raises Conflict when the name is taken.
        """
        raise Unsupported(f"the {self.name} backend has no warm pool")

    def pool(self, plan: PoolPlan, tasks: TaskGroup) -> Pool:
        """Who keeps such caves ready here: by prepare() and claim(), for this process alone.

        A backend whose prepared caves are shared by processes answers with a pool of its own kind.
        """
        from ghost_mcp.pool import Pool  # most commands keep no caves ready

        return Pool(self, plan, tasks)

    def settings(self, spec: CaveSpec, secrets: Mapping[str, bytes]) -> dict[str, Any]:
        """What the warden of a fresh cave is configured with; the operation ``configure`` says what it takes."""
        return {
            "env": dict(spec.env),
            "secrets": {name: value.decode("latin-1") for name, value in secrets.items()},
            "deadline_s": spec.timeout_s,
            "idle_s": spec.idle_timeout_s,
            "release": not spec.ephemeral,
            "egress": spec.network.mode in self.proxied,
            "rlimits": {"nofile": OPEN_FILES, "core": 0},
        }

    async def leftovers(self, *, remove: bool) -> Sequence[str]:
        """What the engine still has of caves that are gone or were never finished, and what was made for them
        alone, by name; with ``remove`` it is removed."""
        return []

    def ledger(self, cave_id: str) -> Path:
        """The folder on this machine for what Ghost keeps of a cave's network: see ``egress.ledger``.

        It goes with the cave, and no program of the cave can write there.
        """
        from pathlib import Path

        from ghost_mcp.backends.local.door import state_folder

        return Path(state_folder(), "egress", cave_id)

    @abstractmethod
    async def usage(self, cave_id: str) -> Usage:
        """What the cave uses now, as far as the engine can tell."""

    @abstractmethod
    def logs(self, cave_id: str, *, follow: bool = False) -> AsyncIterator[bytes]:
        """The warden's log from its beginning, in pieces; with ``follow`` until the cave ends."""

    async def address(self, cave_id: str, service: str) -> str:
        """The IP address at which the cave reaches that side service. Raises NotFound, with the names there are."""
        raise Unsupported(f"a {self.name} cave has no side services")

    def service_logs(
        self, cave_id: str, service: str, *, follow: bool = False
    ) -> AsyncIterator[bytes]:
        """What a side service has printed; as logs() does the warden's."""
        raise Unsupported(f"a {self.name} cave has no side services")


def oldest_first(found: Iterable[CaveInfo], owner: str | None) -> list[CaveInfo]:
    """What list() answers of all that was found."""
    theirs = (info for info in found if owner in (None, info.spec.owner))
    return sorted(theirs, key=lambda info: info.created_at)


def network_line(network: NetworkPolicy) -> str:
    """What the assurance of a cave says that has a network namespace of its own and no interface but loopback."""
    alone = "a network namespace with nothing but its own loopback"
    if network.mode == "none":
        return f"none: {alone}"
    reach = "the internet, never the host" if network.mode == "open" else "what its rules list"
    return f"{network.mode}: {alone}; a proxy outside reaches {reach}, over TCP only"
