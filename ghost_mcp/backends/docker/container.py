# Only this file decides what a docker cave is made of: what it sees, who it is, what it may use.
"""From a CaveSpec to a container and back. Pure: no engine is asked here."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from docker.types import DeviceRequest, DriverConfig, LogConfig, Mount

from ghost_mcp.backends.base import network_line
from ghost_mcp.backends.docker.makers import MAKER, this_process
from ghost_mcp.backends.local.etc import ENVIRONMENT, NODE_PRELOAD
from ghost_mcp.errors import InvalidArgument
from ghost_mcp.lifecycle import State
from ghost_mcp.spec import Assurance, CaveInfo, CaveSpec
from ghost_mcp.warden import runtime

__all__ = [
    "ID",
    "INSTANCE",
    "MARKER",
    "NAME",
    "POOL",
    "RECORD",
    "RELAY",
    "SPEC",
    "Claim",
    "Seen",
    "cave_name",
    "check",
    "claim_of",
    "config",
    "dressing",
    "info_of",
    "pack_runtime",
    "record",
    "repack_runtime",
    "stage_name",
    "walls",
]

INSTANCE, ID, NAME, SPEC = "ghost.instance", "ghost.id", "ghost.name", "ghost.spec"
POOL = "ghost.pool"  # on what was made to be claimed; whether it was, its name says

CAVE_UID = 1000
RELAY_UID = 1001  # who may speak with the warden: nobody in the cave is this user
SOCKET = "/run/ghost/warden.sock"
CREATION_S = 30  # a cave that nobody has configured by then ends
STOPPED_CODE = 143  # the warden's, when it was told to end
RUN_BYTES = SHM_BYTES = 256 << 20
TMP = "/tmp"  # noqa: S108  (the cave's)
MARKER = ".complete"
OWN = {"workspace": "/workspace", "home": "/home/cave"}
RECORD = "ghost-record"  # no program: an exec of it is never started

#: How to run the relay: the command and its user.
RELAY = ([*runtime.argv(), "--relay", SOCKET], f"{RELAY_UID}:{RELAY_UID}")

_VOLUME = re.compile(r"volume:([a-zA-Z0-9][a-zA-Z0-9_.-]{1,200})\Z")
Stage = Literal["making", "pool", "taken"]


def cave_name(instance: str, full_name: str) -> str:
    """A cave's container. No other kind of container of ours is named so."""
    return f"ghost-{instance}-{full_name.replace('/', '.')}"


def stage_name(stage: Stage, cave_id: str) -> str:
    """A container that is no cave yet: being made, waiting in a pool, or being claimed."""
    return f"ghost_{stage}_{cave_id}"


def check(spec: CaveSpec) -> None:
    """Refuse what a docker cave cannot be. Raises InvalidArgument, Unsupported."""
    if not spec.image:
        raise InvalidArgument(
            "a docker cave needs an image",
            hint="Name one that the engine has (--image debian:12), or set GHOST_IMAGE. See: ghost image list",
        )
    if spec.workspace is not None and not (
        spec.workspace.startswith("/") or _VOLUME.match(spec.workspace)
    ):
        raise InvalidArgument(
            f"neither a folder nor a volume: {spec.workspace[:100]!r}",
            hint="Give the absolute path of a folder of the engine's machine, or volume:NAME.",
        )
    if both := set(spec.secrets) & set(spec.env):
        raise InvalidArgument(f"{min(both)} is given as a secret and as a plain variable")


def config(spec: CaveSpec, instance: str, *, pool: bool = False) -> dict[str, Any]:
    """Keywords for the SDK's create_container, besides image, host_config and the name."""
    # The warden ends if nobody configures it, and with its lifeline: standard input, which the engine closes
    # when the one connection that was attached to it has gone, however it went.
    arguments = ["--listen", SOCKET, "--peer-uid", str(RELAY_UID)]
    if not pool:
        arguments += ["--lonely", str(CREATION_S)]
    return {
        "entrypoint": runtime.argv(),
        "command": [*arguments, "--lifeline-fd", "0"] if spec.ephemeral else arguments,
        "stdin_open": spec.ephemeral,
        "labels": {
            INSTANCE: instance,
            ID: spec.id,
            SPEC: json.dumps(spec.as_dict()),
            MAKER: this_process(),
            **({POOL: "yes"} if pool else {NAME: spec.full_name}),
        },
        "user": f"{CAVE_UID}:{CAVE_UID}",
        "hostname": "cave",
        "working_dir": "/",
        "stop_signal": "SIGTERM",
        "healthcheck": {"test": ["NONE"]},
        "environment": {
            "HOME": "/home/cave",
            "USER": "cave",
            "LOGNAME": "cave",
            "TMPDIR": TMP,
            **ENVIRONMENT,
        },
    }


def walls(spec: CaveSpec, runtime_volume: str, instance: str) -> dict[str, Any]:
    """Keywords for the SDK's create_host_config: what the container may do and use."""
    limits = spec.limits
    tmpfs = "rw,exec,nosuid,nodev"
    return {
        # What is ephemeral goes by itself when it has ended, its volumes too: nobody need be there.
        "auto_remove": spec.ephemeral,
        "mounts": [
            Mount("/.ghost", runtime_volume, type="volume", read_only=True, no_copy=True),
            *_folders(spec, instance),
            *(
                Mount(path, source, type="bind", read_only=True)
                for path, source in spec.mounts.items()
            ),
        ],
        "tmpfs": {
            TMP: f"{tmpfs},size={limits.tmp_bytes},mode=1777",
            f"/var{TMP}": f"{tmpfs},size={limits.tmp_bytes},mode=1777",
            "/run/ghost": f"{tmpfs},size={RUN_BYTES},mode=0711,uid={CAVE_UID},gid={CAVE_UID}",
        },
        "shm_size": SHM_BYTES,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges", f"seccomp={_filter()}"],
        "network_mode": "bridge" if spec.network.mode == "open" else "none",
        "ipc_mode": "private",
        "pids_limit": limits.pids,
        "mem_limit": limits.memory_bytes,
        "memswap_limit": limits.memory_bytes,
        "device_requests": None if spec.gpus is None else [_gpus(spec.gpus)],
        "nano_cpus": None if limits.cpus is None else int(limits.cpus * 1e9),
        "log_config": LogConfig(
            type=LogConfig.types.JSON, config={"max-size": "8m", "max-file": "2"}
        ),
    }


def _gpus(asked: str) -> DeviceRequest:
    """As ``docker run --gpus`` has it."""
    kind, _, ids = asked.partition("=")
    if ids:
        return DeviceRequest(device_ids=ids.split(","), capabilities=[["gpu"]])
    return DeviceRequest(count=-1 if kind == "all" else int(kind), capabilities=[["gpu"]])


@cache
def _filter() -> str:
    """What programs may not ask of the kernel: see configs/seccomp/policy.toml."""
    text = Path(__file__).with_name("seccomp.json").read_text(encoding="utf-8")
    return json.dumps(json.loads(text), separators=(",", ":"))


def _folders(spec: CaveSpec, instance: str) -> list[Mount]:
    """What the cave may write and keep: volumes without a name, which go with it, unless it was given another.

    A fresh volume becomes as the image's folder of that path: see dressing().
    """
    labels = {INSTANCE: instance, ID: spec.id}
    size = spec.limits.disk_bytes
    # A project quota of the file system that the engine's volumes are on, where it has such.
    driver = None if size is None else DriverConfig("local", {"size": str(size)})
    own = {
        path: Mount(path, None, type="volume", labels=labels, driver_config=driver)
        for path in OWN.values()
    }
    if spec.workspace is not None:
        named = _VOLUME.match(spec.workspace)
        own[OWN["workspace"]] = (
            Mount(OWN["workspace"], named[1], type="volume")
            if named
            else Mount(OWN["workspace"], spec.workspace, type="bind")
        )
    return list(own.values())


# --- who is there ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """What a container of a pool has become, and when (seconds since the epoch, the engine's clock)."""

    spec: CaveSpec
    at: float


@dataclass(frozen=True, slots=True)
class Seen:
    """A container that is a cave: the engine's inspect of it, and what it has become if it was in a pool."""

    raw: Mapping[str, Any]
    spec: CaveSpec
    claimed_at: float | None = None

    @property
    def container(self) -> str:
        return str(self.raw["Id"])


def record(claim: Claim) -> list[str]:
    """A claim as a command that nobody runs. Labels cannot be changed, but an exec can be added to a container;
    it is shown by the engine, out of reach for the cave, and gone with the container."""
    return [RECORD, json.dumps({"at": claim.at, "spec": claim.spec.as_dict()})]


def claim_of(execs: Iterable[Mapping[str, Any]], name: str, instance: str) -> Claim | None:
    """The claim under the container's present name, from the engine's execs; the newest, should there be several."""
    found = []
    for one in execs:
        process = one["ProcessConfig"]
        if process["entrypoint"] == RECORD and not one["Running"]:
            told = json.loads(process["arguments"][0])
            claim = Claim(CaveSpec.from_dict(told["spec"]), told["at"])
            if cave_name(instance, claim.spec.full_name) == name:
                found.append(claim)
    return max(found, key=lambda claim: claim.at, default=None)


def info_of(seen: Seen, about: Mapping[str, Any]) -> CaveInfo | None:
    """The cave, from what was seen and the engine's info; None: not yet one, or no more."""
    state = _state(seen.raw["State"])
    if state is None:
        return None
    spec = seen.spec
    started = seen.claimed_at or _seconds(seen.raw["State"]["StartedAt"])
    return CaveInfo(
        spec=spec,
        state=state,
        created_at=seen.claimed_at or _seconds(seen.raw["Created"]),
        deadline_at=None if spec.timeout_s is None else started + spec.timeout_s,
        assurance=_assurance(spec, about),
    )


def _state(seen: Mapping[str, Any]) -> State | None:
    if seen["Status"] in ("created", "removing"):
        return None
    if seen["Paused"]:
        return State.PAUSED
    if seen["Running"]:
        return State.RUNNING
    return State.STOPPED if seen["ExitCode"] == STOPPED_CODE else State.ENDED


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _assurance(spec: CaveSpec, about: Mapping[str, Any]) -> dict[str, Assurance]:
    seccomp = any("seccomp" in option for option in about.get("SecurityOptions") or ())
    lines = {
        "isolation": (
            True,
            "own pid, mount, network, ipc and uts namespaces; no capabilities; read-only system",
        ),
        "user": (
            False,
            f"user {CAVE_UID} of the engine's machine, as for every cave there: they share that user's quotas",
        ),
        "syscalls": (
            seccomp,
            "seccomp filter; no nested user namespaces"
            if seccomp
            else "the engine has no seccomp filter",
        ),
        "network": _network(spec),
        "tmp": (True, f"{TMP} and /var{TMP} are tmpfs of {spec.limits.tmp_bytes} bytes each"),
        "disk": _disk(spec),
        "lifetime": (True, "the cave's own PID 1 ends it"),
        "browser": (
            False,
            "Chromium runs without its own sandbox here: the cave around it is the barrier",
        ),
        **_limits(spec, about),
        **({"services": SERVICES} if spec.project is not None and spec.project.sides else {}),
    }
    return {name: Assurance(enforced=enforced, how=how) for name, (enforced, how) in lines.items()}


def _disk(spec: CaveSpec) -> tuple[bool, str]:
    if spec.limits.disk_bytes is None:
        return False, "no limit was asked for"
    own = [path for path in OWN.values() if spec.workspace is None or path != OWN["workspace"]]
    quota = f"{' and '.join(own)}: {spec.limits.disk_bytes} bytes each, by project quota"
    return spec.workspace is None, quota


SERVICES = (
    False,
    (
        "they have the rights that their file gives them, and end with the cave: by its hub, by a helper that "
        "outlives a killed hub, or when caves are next listed"
    ),
)


def _network(spec: CaveSpec) -> tuple[bool, str]:
    if spec.network.mode == "open":
        return False, "open: the engine's own network; nothing keeps it from the engine's machine"
    if spec.project is not None and spec.project.sides:
        return True, (
            "its project's network without a way out, on which the engine's machine has no address; "
            "side services can pass on what they reach themselves"
            + (
                "; a proxy outside reaches what its rules list"
                if spec.network.mode == "allow"
                else ""
            )
        )
    return True, network_line(spec.network)


def _limits(spec: CaveSpec, about: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    swap = "swap included" if about.get("SwapLimit") else "swap is not bounded"
    asked = {
        "memory": (spec.limits.memory_bytes, "MemoryLimit", f"cgroup; {swap}"),
        "cpu": (spec.limits.cpus, "CpuCfsQuota", "cgroup"),
        "pids": (spec.limits.pids, "PidsLimit", "cgroup"),
    }
    lines = {}
    for name, (limit, able, how) in asked.items():
        if limit is None:
            lines[name] = (False, "no limit was asked for")
        elif about.get(able):
            lines[name] = (True, how)
        else:
            lines[name] = (False, "the engine's machine cannot")
    return lines


def dressing(accounts: Mapping[str, bytes]) -> bytes:
    """An archive to lay over an image: the folders that a cave's own volumes begin as, its user's, and that user.

    ``accounts`` is what the image has of ``passwd`` and ``group``.
    """
    entries = {
        "passwd": f"cave:x:{CAVE_UID}:{CAVE_UID}::{OWN['home']}:/bin/sh\n",
        "group": f"cave:x:{CAVE_UID}:\n",
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        # A tmpfs takes the mode of the folder below it.
        folders = {TMP: (0o1777, 0), f"/var{TMP}": (0o1777, 0)}
        folders |= dict.fromkeys(OWN.values(), (0o700, CAVE_UID))
        for path, (mode, owner) in folders.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            entry.uid = entry.gid = owner
            archive.addfile(entry)
        preload = NODE_PRELOAD.encode()
        entry = tarfile.TarInfo("etc/ghost/node.cjs")
        entry.mode, entry.size = 0o644, len(preload)
        archive.addfile(entry, io.BytesIO(preload))
        for name, line in entries.items():
            there = accounts.get(name, b"")
            if any(one.split(b":")[2:3] == [b"%d" % CAVE_UID] for one in there.splitlines()):
                continue
            if there and not there.endswith(b"\n"):
                there += b"\n"
            entry = tarfile.TarInfo(f"etc/{name}")
            entry.mode, entry.size = 0o644, len(there) + len(line)
            archive.addfile(entry, io.BytesIO(there + line.encode()))
    return packed.getvalue()


def pack_runtime(folder: Path) -> bytes:
    """The warden's runtime as an archive, the marker that says it is whole last."""
    loader = (
        folder / "ld.so"
    )  # closed to readers, in the archive too; but whoever packs it need not be root
    os.chmod(loader, 0o511)  # noqa: S103
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted([folder, *folder.rglob("*")]):
            entry = archive.gettarinfo(path, f"runtime/{path.relative_to(folder)}")
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            if path == loader:
                entry.mode = 0o111
            if path.is_file():
                with path.open("rb") as file:
                    archive.addfile(entry, file)
            else:
                archive.addfile(entry)
        archive.addfile(tarfile.TarInfo(f"runtime/{MARKER}"))
    return packed.getvalue()


def repack_runtime(brought: bytes) -> bytes:
    """The same archive from that of an image's /.ghost."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(brought)) as source,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for entry in source:
            entry.name = f"runtime{entry.name.removeprefix('.ghost')}"
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            if entry.name == "runtime/ld.so":
                entry.mode = 0o111
            archive.addfile(entry, source.extractfile(entry) if entry.isfile() else None)
        archive.addfile(tarfile.TarInfo(f"runtime/{MARKER}"))
    return packed.getvalue()
