# Only this file decides what a cave in a cluster is made of: what it sees, who it is, what it may use.
"""From a CaveSpec to the objects of a cave; ``reading`` is the way back. Pure: no cluster is asked here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ghost_mcp.errors import InvalidArgument, Unsupported
from ghost_mcp.warden import runtime

if TYPE_CHECKING:
    from ghost_mcp.backends.kubernetes.settings import Settings
    from ghost_mcp.spec import CaveSpec

__all__ = [
    "CAVE",
    "CAVE_UID",
    "COPIER",
    "CREATED",
    "ID",
    "INSTANCE",
    "LATER_S",
    "MAKER",
    "NAME",
    "OWNER",
    "POOL",
    "RELAY",
    "SPARE_S",
    "SPEC",
    "STOPPED",
    "TAKEN",
    "TMP",
    "check",
    "labels_of",
    "pod",
    "quantity",
    "record",
    "record_name",
    "selector",
    "volume",
]

_DOMAIN = "ghost-mcp.dev"
INSTANCE, ID, OWNER, NAME = (f"{_DOMAIN}/{word}" for word in ("instance", "id", "owner", "name"))
MAKER = f"{_DOMAIN}/maker"
POOL = f"{_DOMAIN}/pool"  # on what was made to be claimed: its shape, or TAKEN
TAKEN = "taken"
SPEC, CREATED, STOPPED = (f"{_DOMAIN}/{word}" for word in ("spec", "created-at", "stopped"))

CAVE, COPIER = "cave", "runtime"  # the containers' names
CAVE_UID = 1000
COPIER_UID = 1001  # who owns the runtime: nobody in the cave is this user
SOCKET = "/run/ghost/warden.sock"
CREATION_S = 60  # a cave that nobody has configured by then ends
SPARE_S = 600  # one that waits in a pool
LATER_S = 10  # the cluster's deadline comes after the warden's own
RUN_BYTES = 16 << 20
SHM_BYTES = 256 << 20
TMP = "/tmp"  # noqa: S108  (the cave's)

RELAY = [*runtime.argv(), "--relay", SOCKET]
# The kubelet puts a file of the node there that anybody may write to and nobody counts: where the cave cannot go.
SEALED = "/.ghost/sealed"
# The loader is closed to readers, as everywhere: what runs by it cannot be looked into by its own user.
_COPY = """
import os, shutil
for entry in os.scandir("/.ghost"):
    (shutil.copytree if entry.is_dir() else shutil.copy)(entry.path, "/into/" + entry.name)
os.chmod("/into/ld.so", 0o111)
os.mkdir("/into/sealed", 0o700)
open("/into/sealed/log", "x").close()
"""


def check(spec: CaveSpec, settings: Settings) -> None:
    """Refuse what a cave in a cluster cannot be. Raises InvalidArgument, Unsupported."""
    if not spec.image:
        raise InvalidArgument(
            "a cave in a cluster needs an image",
            hint="Name one that its nodes can have: --image debian:12.",
        )
    if any(part.isspace() or not part.isprintable() for part in spec.image):
        raise InvalidArgument(f"not an image reference: {spec.image[:100]!r}")
    if spec.workspace is not None or spec.mounts:
        raise Unsupported(
            "a cluster's nodes do not share folders with this machine", hint="Copy the files in."
        )
    if spec.gpus is not None:
        raise Unsupported("a cave in a cluster has no GPUs", hint="Use --backend docker.")
    if spec.limits.disk_bytes is not None and not spec.ephemeral and not settings.storage_enforced:
        raise Unsupported(
            "whether a storage class bounds its volumes is not known to Ghost",
            hint="Where it does, set storage_enforced in the Kubernetes settings.",
        )
    if both := set(spec.secrets) & set(spec.env):
        raise InvalidArgument(f"{min(both)} is given as a secret and as a plain variable")


def record_name(full_name: str) -> str:
    """The name of the object that a cave's full name is reserved by."""
    return f"ghost-cave-{full_name.replace('/', '.')}"


def selector(instance: str, **more: str) -> dict[str, str]:
    """The query that finds our objects; ``more`` are further labels, by the last part of their names."""
    labels = {INSTANCE: instance} | {f"{_DOMAIN}/{key}": value for key, value in more.items()}
    return {"labelSelector": ",".join(f"{key}={value}" for key, value in labels.items())}


def record(
    spec: CaveSpec, instance: str, created_at: float, owned_by: Mapping[str, str] | None
) -> dict[str, Any]:
    """The object that says a cave is there, whatever runs of it. With ``owned_by`` it goes with that pod."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": record_name(spec.full_name),
            "labels": labels_of(spec, instance),
            "annotations": {SPEC: json.dumps(spec.as_dict()), CREATED: repr(created_at)},
            "ownerReferences": [owned_by] if owned_by else [],
        },
        "immutable": False,
    }


def volume(spec: CaveSpec, settings: Settings) -> dict[str, Any]:
    """The claim of a cave that is kept."""
    size = spec.limits.disk_bytes or settings.storage_bytes
    asked: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": str(size)}},
    }
    if settings.storage_class is not None:
        asked["storageClassName"] = settings.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": _volume_name(spec), "labels": labels_of(spec, settings.instance)},
        "spec": asked,
    }


def _volume_name(spec: CaveSpec) -> str:
    return f"ghost-{spec.id}"


def labels_of(spec: CaveSpec, instance: str) -> dict[str, str]:
    return {INSTANCE: instance, ID: spec.id, OWNER: spec.owner, NAME: spec.name}


def pod(
    spec: CaveSpec, settings: Settings, *, name: str, maker: str, pool: str | None = None
) -> dict[str, Any]:
    """The pod of a cave: restricted in the sense of the Pod Security Standards, and without an identity.

    ``maker`` is who watches over its start. In a ``pool`` it waits to be claimed.
    """
    labels = {MAKER: maker, "app.kubernetes.io/managed-by": "ghost"}
    if pool is not None:
        labels |= {INSTANCE: settings.instance, ID: spec.id, POOL: pool}
    else:
        labels |= labels_of(spec, settings.instance)
    made: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostname": "cave",
        "terminationGracePeriodSeconds": 2,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": CAVE_UID,
            "runAsGroup": CAVE_UID,
            "fsGroup": CAVE_UID,
            "seccompProfile": dict(settings.seccomp),
        },
        "initContainers": [_copier(settings)],
        "containers": [_cave(spec, settings, CREATION_S if pool is None else SPARE_S)],
        "volumes": _volumes(spec, settings),
        "nodeSelector": dict(settings.node_selector),
        "tolerations": [dict(one) for one in settings.tolerations],
        "imagePullSecrets": [{"name": one} for one in settings.pull_secrets],
    }
    if spec.timeout_s is not None:
        made["activeDeadlineSeconds"] = math.ceil(spec.timeout_s) + LATER_S
    if settings.runtime_class is not None:
        made["runtimeClassName"] = settings.runtime_class
    if settings.priority_class is not None:
        made["priorityClassName"] = settings.priority_class
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": made,
    }


_CLOSED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def _copier(settings: Settings) -> dict[str, Any]:
    """Copies the warden's runtime to where the cave sees it, so that any image will do."""
    return {
        "name": COPIER,
        "image": settings.runtime_image,
        "imagePullPolicy": settings.pull_policy,
        "command": [*runtime.argv()[:-1], _COPY],
        "securityContext": {**_CLOSED, "runAsUser": COPIER_UID, "runAsGroup": COPIER_UID},
        "resources": {
            "limits": {"cpu": "1", "memory": "128Mi", "ephemeral-storage": "64Mi"},
            "requests": {"cpu": "10m", "memory": "32Mi"},
        },
        "volumeMounts": [{"name": "runtime", "mountPath": "/into"}],
    }


def _cave(spec: CaveSpec, settings: Settings, lonely_s: int) -> dict[str, Any]:
    limits = spec.limits
    most: dict[str, str] = {
        "ephemeral-storage": str(limits.disk_bytes or settings.disk_default_bytes)
    }
    if limits.memory_bytes is not None:
        most["memory"] = str(limits.memory_bytes)
    if limits.cpus is not None:
        most["cpu"] = f"{math.ceil(limits.cpus * 1000)}m"
    return {
        "name": CAVE,
        "image": spec.image,
        "imagePullPolicy": settings.pull_policy,
        "command": [
            *runtime.argv(),
            "--listen",
            SOCKET,
            "--from-outside",
            "--lonely",
            str(lonely_s),
        ],
        "workingDir": "/",
        "env": [
            {"name": name, "value": value}
            for name, value in (
                ("HOME", "/home/cave"),
                ("USER", "cave"),
                ("LOGNAME", "cave"),
                ("TMPDIR", TMP),
            )
        ],
        "terminationMessagePath": f"{SEALED}/log",
        "securityContext": dict(_CLOSED),
        "resources": {"limits": most, "requests": _requests(settings.requests, most)},
        "volumeMounts": [
            {"name": "runtime", "mountPath": "/.ghost", "readOnly": True},
            {"name": "files", "mountPath": "/workspace", "subPath": "workspace"},
            {"name": "files", "mountPath": "/home/cave", "subPath": "home"},
            {"name": "tmp", "mountPath": TMP},
            {"name": "run", "mountPath": "/run/ghost"},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  (the cave's)
        ],
    }


def _requests(asked: Mapping[str, str], most: Mapping[str, str]) -> dict[str, str]:
    """What the scheduler sets aside: never more than the limit, which the API refuses."""
    return {
        key: most[key] if key in most and quantity(most[key]) < quantity(value) else value
        for key, value in asked.items()
    }


_SUFFIXES = {
    "m": 1e-3,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
}


def quantity(text: str) -> float:
    """A number as the API writes it: ``64Mi``, ``50m``."""
    for suffix, factor in _SUFFIXES.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def _volumes(spec: CaveSpec, settings: Settings) -> list[dict[str, Any]]:
    def memory(name: str, size: int) -> dict[str, Any]:
        return {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": str(size)}}

    files: dict[str, Any] = {"persistentVolumeClaim": {"claimName": _volume_name(spec)}}
    if spec.ephemeral:
        size = spec.limits.disk_bytes or settings.disk_default_bytes
        files = {"emptyDir": {"sizeLimit": str(size)}}
    return [
        {"name": "runtime", "emptyDir": {"sizeLimit": "64Mi"}},
        {"name": "files", **files},
        memory("tmp", spec.limits.tmp_bytes),
        memory("run", RUN_BYTES),
        memory("shm", SHM_BYTES),
    ]
