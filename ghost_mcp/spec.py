# A cave is what its CaveSpec says. Only this file knows which values are allowed.
"""Frozen values that describe a cave: what is asked for (CaveSpec) and what is there (CaveInfo)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from ghost_mcp.errors import InvalidArgument

if TYPE_CHECKING:
    from ghost_mcp.lifecycle import State

__all__ = [
    "DESKTOP",
    "NAME",
    "PROJECT_BYTES",
    "Assurance",
    "CaveInfo",
    "CaveSpec",
    "Given",
    "Limits",
    "NetworkPolicy",
    "Project",
    "Usage",
    "check_full_name",
    "check_name",
    "is_id",
    "parse_size",
    "parse_span",
]

MIB = 1 << 20
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")
_ID = re.compile(r"[0-9a-f]{16}\Z")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
#: The label of a cave whose browser is to be on its desktop, which is started for that; its value is the service.
DESKTOP = "desktop"
MAX_LABELS = 64
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}\Z")
_GPUS = re.compile(r"all|[1-9][0-9]{0,2}|device=[A-Za-z0-9][A-Za-z0-9.:,_-]{0,199}")
_SERVICE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}\Z")
PROJECT_BYTES = 256 << 10
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": MIB, "g": 1 << 30, "t": 1 << 40}
_SPANS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _at_least(name: str, value: float | None, least: float) -> None:
    if value is not None and (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not least <= value < 1 << 62
    ):
        hint = "In bytes: 1 << 30 is a gibibyte." if name.endswith("_bytes") else ""
        raise InvalidArgument(
            f"{name} must be a number of at least {least}, not {value!r:.60}", hint=hint
        )


def parse_size(text: str) -> int:
    """Bytes from ``512``, ``512k``, ``2g``, ``1.5GiB``. Raises InvalidArgument."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise InvalidArgument(f"not a size: {text!r}", hint="Write it like 512m, 2g or 1.5GiB.")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_span(text: str) -> float:
    """Seconds from ``90``, ``90s``, ``10m``, ``2h``, ``1d``. Raises InvalidArgument."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower())
    if match is None:
        raise InvalidArgument(f"not a time span: {text!r}", hint="Write it like 90s, 10m or 2h.")
    return float(match[1]) * _SPANS[match[2]]


def is_id(ref: str) -> bool:
    """Whether that has the form of a cave's id. A name may have it too."""
    return _ID.match(ref) is not None


def check_name(name: str) -> str:
    """The name, when it can be a host name's label. Raises InvalidArgument."""
    if not NAME.match(name):
        raise InvalidArgument(
            f"not a cave name: {name[:64]!r}",
            hint="Use 1 to 40 of a-z, 0-9 and -, starting and ending with a letter or digit.",
        )
    return name


def check_full_name(name: str) -> str:
    """The full name or id, when it can be one. Raises InvalidArgument."""
    owner, slash, own = name.partition("/")
    if slash and NAME.match(owner) and NAME.match(own):
        return name
    return check_name(name)


def _check_mounts(mounts: Mapping[str, str]) -> None:
    for path, source in mounts.items():
        absolute = path.startswith("/") and source.startswith("/")
        if not absolute or ".." in path.split("/") or "\0" in path + source:
            raise InvalidArgument(f"bad mount: {path[:200]}", hint="Both paths are absolute.")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:  # each look at the caves reads those of all of them
        raise InvalidArgument(f"a cave has at most {MAX_LABELS} labels")
    for key, value in labels.items():
        if not _LABEL.match(key) or len(value) > 256 or not value.isprintable():
            raise InvalidArgument(f"bad label: {key!r}")


def _check_env(env: Mapping[str, str]) -> None:
    for key, value in env.items():
        if not _ENV_NAME.match(key):
            raise InvalidArgument(f"not an environment variable's name: {key[:64]!r}")
        if not isinstance(value, str) or "\0" in value or len(value) > 128 << 10:
            raise InvalidArgument(f"bad value for environment variable {key}")


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise InvalidArgument("what a network allows is a list of rules, not one text")
    return tuple(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a cave may use. ``None`` means no limit of its own; CaveInfo.assurance says what is enforced."""

    cpus: float | None = None
    memory_bytes: int | None = 2048 * MIB
    pids: int | None = 1024
    disk_bytes: int | None = None
    tmp_bytes: int = 512 * MIB

    def __post_init__(self) -> None:
        _at_least("cpus", self.cpus, 0.01)
        _at_least("memory_bytes", self.memory_bytes, 32 * MIB)
        _at_least("pids", self.pids, 16)
        _at_least("disk_bytes", self.disk_bytes, 8 * MIB)
        _at_least("tmp_bytes", self.tmp_bytes, MIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicy:
    """``none``: no network. ``allow``: only what the rules list. ``open``: the internet, never the host.

    The rules of ``allow`` are those of :mod:`ghost_mcp.egress.policy`; in ``open`` they add what is not the
    internet. ``connections`` bounds how many are open at once, ``bytes_per_s`` how much passes in a second,
    ``total_bytes`` how much in all, both ways together; None is no limit.
    """

    mode: Literal["none", "allow", "open"] = "none"
    allow: tuple[str, ...] = ()
    connections: int = 256
    bytes_per_s: int | None = None
    total_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("none", "allow", "open"):
            raise InvalidArgument(
                f"unknown network mode: {self.mode!r}", hint="Use none, allow or open."
            )
        if self.allow and self.mode == "none":
            raise InvalidArgument("names to allow need the network mode 'allow'")
        _at_least("connections", self.connections, 1)
        _at_least("bytes_per_s", self.bytes_per_s, 1024)
        _at_least("total_bytes", self.total_bytes, 1024)
        if self.allow:
            from ghost_mcp.egress.policy import check_rules  # most caves have no network

            check_rules(self.allow)


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A compose project around a cave: its side services, and which of its services the cave is.

    ``file`` is a compose file as JSON values; it may hold side services only. Relative paths in it start from
    ``folder``. It is as powerful as the engine (a side service may mount any folder of the engine's machine):
    take it from who owns the machine, never from a caller or a model.
    """

    file: Mapping[str, Any] = field(default_factory=dict)
    service: str = "cave"
    folder: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.service, str) or not _SERVICE.match(self.service):
            raise InvalidArgument(f"not a service's name: {str(self.service)[:64]!r}")
        if self.folder is not None and not self.folder.startswith("/"):
            raise InvalidArgument("the folder of a compose file is an absolute path")
        if not isinstance(self.file, Mapping):
            raise InvalidArgument("a compose file is a mapping", hint="services: ...")
        import json  # only here: commands that have no project do not pay for it

        try:
            size = len(json.dumps(dict(self.file)))
        except (TypeError, ValueError, RecursionError) as exc:
            raise InvalidArgument(f"not a compose file: {exc}") from exc
        if size > PROJECT_BYTES:
            raise InvalidArgument(f"a compose file of at most {PROJECT_BYTES >> 10} KiB, please")

    @property
    def sides(self) -> dict[str, Any]:
        """The services beside the cave, as the file has them."""
        services = self.file.get("services") or {}
        return {name: one for name, one in services.items() if name != self.service}


class Given(Mapping[str, bytes]):
    """Values of secrets on their way to one cave. They are left out when it is shown, copied or pickled."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, bytes] | None = None) -> None:
        self._values = dict(values or {})

    def __getitem__(self, name: str) -> bytes:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Given({', '.join(self._values)})"

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CaveSpec:
    """What a caller asks for.

    ``id`` makes creating idempotent. ``image`` is a root tree (local) or an image reference; ``None`` is the
    backend's default. ``timeout_s`` counts from the start, ``idle_timeout_s`` from the last call; ``None`` is
    no limit. An ``ephemeral`` cave ends with the process that made it. ``secrets`` are names, never values; see
    :meth:`with_secret` for values that are not stored: they are ``given``, and no part of as_dict().
    ``name`` is the owner's own: caves of different owners may have the same.
    ``workspace`` is a host folder mounted at /workspace instead of the cave's own (docker: also
    ``volume:NAME``, which outlives its caves); ``mounts`` are further
    host folders or files, read-only, by their path in the cave. ``project`` is for the compose backend.
    ``gpus`` are the engine's: ``all``, how many, or ``device=`` and their ids with commas between.
    """

    id: str = field(default_factory=lambda: os.urandom(8).hex())
    name: str = ""
    backend: str = ""
    image: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    limits: Limits = Limits()
    timeout_s: float | None = None
    idle_timeout_s: float | None = None
    network: NetworkPolicy = NetworkPolicy()
    workspace: str | None = None
    mounts: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""
    ephemeral: bool = False
    project: Project | None = None
    gpus: str | None = None
    given: Given = field(default_factory=Given, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_id(self.id):
            raise InvalidArgument(f"not a cave id: {self.id!r}")
        if not self.name:
            object.__setattr__(self, "name", f"cave-{self.id[:12]}")  # 48 bits: there may be many
        check_name(self.name)
        if self.owner:
            check_name(self.owner)
        _check_env(self.env)
        for secret in self.secrets:
            if not _ENV_NAME.match(secret):
                raise InvalidArgument(
                    f"not a secret name: {secret!r}", hint="Use letters, digits and _."
                )
        _check_labels(self.labels)
        _check_mounts(self.mounts)
        if self.gpus is not None and not _GPUS.fullmatch(str(self.gpus)):
            raise InvalidArgument(
                f"not a choice of GPUs: {str(self.gpus)[:64]!r}",
                hint="Write it like all, 1 or device=0,1.",
            )
        _at_least("timeout_s", self.timeout_s, 0.1)
        _at_least("idle_timeout_s", self.idle_timeout_s, 0.1)

    @property
    def full_name(self) -> str:
        """What no two caves of an engine share: ``NAME``, or ``OWNER/NAME`` for a cave that has an owner."""
        return f"{self.owner}/{self.name}" if self.owner else self.name

    def with_(self, **changes: Any) -> Self:
        """A copy with some values changed and everything checked again."""
        return replace(self, **changes)

    def with_secret(self, name: str, value: bytes | str | None = None) -> Self:
        """A copy whose cave has that secret: the stored one of that name, or the value given here."""
        names = tuple(dict.fromkeys([*self.secrets, name]))
        if value is None:
            return self.with_(secrets=names)
        raw = value.encode() if isinstance(value, str) else bytes(value)
        return self.with_(secrets=names, given=Given({**self.given, name: raw}))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; the inverse of from_dict."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "given"}
        out.update(
            env=dict(self.env),
            labels=dict(self.labels),
            mounts=dict(self.mounts),
            secrets=list(self.secrets),
        )
        out.update(limits=asdict(self.limits), network=asdict(self.network))
        out["project"] = None if self.project is None else asdict(self.project)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build a spec from JSON. Raises InvalidArgument for unknown keys and bad values."""
        values = _known(cls, data, "cave setting", hidden="given")
        try:
            if isinstance(values.get("limits"), Mapping):
                values["limits"] = Limits(**_known(Limits, values["limits"], "limit"))
            if isinstance(values.get("network"), Mapping):
                policy = _known(NetworkPolicy, values["network"], "network setting")
                policy["allow"] = _texts(policy.get("allow", ()))
                values["network"] = NetworkPolicy(**policy)
            if isinstance(values.get("project"), Mapping):
                values["project"] = Project(**_known(Project, values["project"], "project setting"))
            if "secrets" in values:
                values["secrets"] = tuple(values["secrets"])
            return cls(**values)
        except TypeError as exc:
            raise InvalidArgument(f"bad cave settings: {exc}") from exc


def _known(kind: Any, given: Mapping[str, Any], what: str, *, hidden: str = "") -> dict[str, Any]:
    """What is given for a dataclass. Raises InvalidArgument for what it has not."""
    known = {f.name for f in fields(kind)} - {hidden}
    if unknown := sorted(set(given) - known, key=str):
        raise InvalidArgument(
            f"unknown {what}: {str(unknown[0])[:64]}", hint=f"Known: {', '.join(sorted(known))}."
        )
    return dict(given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assurance:
    """One line of truth: is this boundary enforced, and by what (or why not)."""

    enforced: bool
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a cave uses now. ``None``: the backend cannot tell."""

    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    cpu_s: float | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    oom_kills: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaveInfo:
    """What is there. Times are seconds since the epoch."""

    spec: CaveSpec
    state: State
    created_at: float
    deadline_at: float | None
    assurance: Mapping[str, Assurance]

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def full_name(self) -> str:
        """See :attr:`CaveSpec.full_name`."""
        return self.spec.full_name

    @property
    def backend(self) -> str:
        return self.spec.backend

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, for every adapter."""
        return {
            "id": self.id,
            "name": self.name,
            "backend": self.backend,
            "state": self.state.value,
            "created_at": self.created_at,
            "deadline_at": self.deadline_at,
            "spec": self.spec.as_dict(),
            "assurance": {name: asdict(line) for name, line in self.assurance.items()},
        }
