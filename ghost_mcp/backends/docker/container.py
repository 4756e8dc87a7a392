# Only this file decides what a docker cave is made of: what it sees, who it is, what it may use.
"""From a CaveSpec to a container and back. Pure: no engine is asked here."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from docker.types import LogConfig, Mount

from ghost_mcp.errors import InvalidArgument, Unsupported
from ghost_mcp.lifecycle import State
from ghost_mcp.spec import Assurance, CaveInfo, CaveSpec
from ghost_mcp.warden import runtime

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "ID",
    "INSTANCE",
    "MARKER",
    "NAME",
    "RELAY",
    "SPEC",
    "check",
    "config",
    "info_of",
    "pack_folders",
    "pack_runtime",
    "volumes",
    "walls",
]

INSTANCE, ID, NAME, SPEC = "ghost.instance", "ghost.id", "ghost.name", "ghost.spec"

CAVE_UID = 1000
RELAY_UID = 1001  # who may speak with the warden: nobody in the cave is this user
SOCKET = "/run/ghost/warden.sock"
CREATION_S = 30  # a cave that nobody has configured by then ends
STOPPED_CODE = 143  # the warden's, when it was told to end
RUN_BYTES = SHM_BYTES = 256 << 20
TMP = "/tmp"  # noqa: S108  (the cave's)
MARKER = ".complete"

#: How to run the relay: the command and its user.
RELAY = ([*runtime.argv(), "--relay", SOCKET], f"{RELAY_UID}:{RELAY_UID}")


def check(spec: CaveSpec) -> None:
    """Refuse what a docker cave cannot be. Raises InvalidArgument, Unsupported."""
    if not spec.image:
        raise InvalidArgument(
            "a docker cave needs an image", hint="Name one that the engine has: image=debian:12."
        )
    if spec.network.mode != "none":
        raise Unsupported(f"a docker cave cannot have the network mode {spec.network.mode!r} yet")
    if spec.limits.disk_bytes is not None:
        raise Unsupported("this engine's volumes have no limit of size", hint="Leave disk out.")
    if spec.workspace is not None:
        raise Unsupported(
            "a docker cave has a workspace of its own", hint="Copy the files in, or mount them."
        )
    if both := set(spec.secrets) & set(spec.env):
        raise InvalidArgument(f"{min(both)} is given as a secret and as a plain variable")


def volumes(cave_id: str) -> dict[str, str]:
    """The cave's own volumes, by what they are for."""
    return {name: f"ghost-{cave_id}-{name}" for name in ("workspace", "home")}


def config(spec: CaveSpec, instance: str) -> dict[str, Any]:
    """Keywords for the SDK's create_container, besides image and host_config."""
    # The warden ends if nobody configures it, and with its lifeline: standard input, which the engine closes
    # when the one connection that was attached to it has gone, however it went.
    arguments = ["--listen", SOCKET, "--peer-uid", str(RELAY_UID), "--lonely", str(CREATION_S)]
    return {
        "entrypoint": runtime.argv(),
        "command": [*arguments, "--lifeline-fd", "0"] if spec.ephemeral else arguments,
        "stdin_open": spec.ephemeral,
        "name": f"ghost-{instance}-{spec.full_name.replace('/', '.')}",
        "labels": {
            INSTANCE: instance,
            ID: spec.id,
            NAME: spec.full_name,
            SPEC: json.dumps(spec.as_dict()),
        },
        "user": f"{CAVE_UID}:{CAVE_UID}",
        "hostname": "cave",
        "working_dir": "/",
        "stop_signal": "SIGTERM",
        "healthcheck": {"test": ["NONE"]},
        "environment": {"HOME": "/home/cave", "USER": "cave", "LOGNAME": "cave", "TMPDIR": TMP},
    }


def walls(spec: CaveSpec, runtime_volume: str) -> dict[str, Any]:
    """Keywords for the SDK's create_host_config: what the container may do and use."""
    limits, own = spec.limits, volumes(spec.id)
    tmpfs = "rw,exec,nosuid,nodev"
    return {
        "binds": [
            f"{runtime_volume}:/.ghost:ro,nocopy",
            f"{own['workspace']}:/workspace:rw,nocopy",
            f"{own['home']}:/home/cave:rw,nocopy",
        ],
        "mounts": [
            Mount(path, source, type="bind", read_only=True) for path, source in spec.mounts.items()
        ],
        "tmpfs": {
            TMP: f"{tmpfs},size={limits.tmp_bytes},mode=1777",
            "/run/ghost": f"{tmpfs},size={RUN_BYTES},mode=0711,uid={CAVE_UID},gid={CAVE_UID}",
        },
        "shm_size": SHM_BYTES,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "network_mode": "none",
        "ipc_mode": "private",
        "pids_limit": limits.pids,
        "mem_limit": limits.memory_bytes,
        "memswap_limit": limits.memory_bytes,
        "nano_cpus": None if limits.cpus is None else int(limits.cpus * 1e9),
        "log_config": LogConfig(
            type=LogConfig.types.JSON, config={"max-size": "8m", "max-file": "2"}
        ),
    }


def info_of(seen: Mapping[str, Any], about: Mapping[str, Any]) -> CaveInfo | None:
    """The cave that a container is, from the engine's inspect and info; None: not yet one, or no more."""
    state = _state(seen["State"])
    if state is None:
        return None
    spec = CaveSpec.from_dict(json.loads(seen["Config"]["Labels"][SPEC]))
    started = _seconds(seen["State"]["StartedAt"])
    return CaveInfo(
        spec=spec,
        state=state,
        created_at=_seconds(seen["Created"]),
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
        "user": (False, f"user {CAVE_UID} of the engine's machine, as for every cave there"),
        "syscalls": (
            seccomp,
            "the engine's seccomp filter" if seccomp else "the engine has no seccomp filter",
        ),
        "network": (True, "none: a network namespace with nothing but its own loopback"),
        "tmp": (True, f"{TMP} is a tmpfs of {spec.limits.tmp_bytes} bytes"),
        "disk": (False, "this engine's volumes have no limit of size"),
        "lifetime": (True, "the cave's own PID 1 ends it"),
        **_limits(spec, about),
    }
    return {name: Assurance(enforced=enforced, how=how) for name, (enforced, how) in lines.items()}


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


def pack_folders() -> bytes:
    """An archive of what the cave's own volumes begin as: folders that are its user's."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in volumes(""):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o700
            entry.uid = entry.gid = CAVE_UID
            archive.addfile(entry)
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
