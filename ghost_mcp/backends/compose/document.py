# Only this file decides what of a compose file reaches the tool, and what of it the cave takes.
"""From a CaveSpec to the compose file of its project. Pure: no engine is asked here.

The file is the owner's and his side services keep what he wrote, with four exceptions: they carry two labels, do
not wait for the cave, may not share a namespace with it, and the networks they have in common with it lead
nowhere else unless the cave's network is open.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ghost_mcp.errors import InvalidArgument, Unsupported

if TYPE_CHECKING:
    from ghost_mcp.spec import CaveSpec, Project

__all__ = [
    "DEFAULT",
    "ISOLATED",
    "OF",
    "PROJECT",
    "awaited",
    "check",
    "document",
    "environment",
    "image",
    "moot",
    "networks",
    "project_name",
]

#: The labels of all that belongs to a project: whose it is, and which cave it surrounds.
PROJECT, OF = "ghost.project", "ghost.project-of"
DEFAULT = "default"

#: A bridge without a way out. On an internal one the engine's machine still has an address; on this it has none.
ISOLATED = {
    "internal": True,
    "driver_opts": {"com.docker.network.bridge.inhibit_ipv4": "true"},
}

# What a service of the file keeps when it becomes the cave.
KEPT = frozenset({"image", "environment", "depends_on", "networks"})
# What has no meaning in a cave, whose first process is the warden and whose limits are the spec's.
MOOT = frozenset(
    {
        *("command", "entrypoint", "restart", "healthcheck", "init", "stdin_open", "tty", "scale"),
        *("container_name", "hostname", "labels", "logging", "pull_policy", "platform"),
        *("ports", "expose", "user", "working_dir", "stop_signal", "stop_grace_period"),
        *("cap_drop", "read_only", "cpus", "mem_limit", "memswap_limit", "pids_limit"),
    }
)
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}\Z")
_SHARED = ("network_mode", "pid", "ipc")


@cache
def _validator() -> Any:
    from jsonschema import Draft201909Validator

    # The schema of the Compose Specification, Apache-2.0, as docker-compose 1.29.2 ships it.
    schema = json.loads(files(__package__).joinpath("compose-spec.json").read_text("utf-8"))
    return Draft201909Validator(schema)


def check(project: Project) -> None:
    """Refuse what is no compose file, and what would loosen the cave. Raises InvalidArgument, Unsupported."""
    _validate(project.file)
    _check_cave(project)
    for key in networks(project):
        _check_network(project, key)
    for name, service in project.sides.items():
        _check_side(project, name, service)


def _validate(file: Mapping[str, Any]) -> None:
    wrong = next(_validator().iter_errors(dict(file)), None)
    if wrong is not None:
        where = ".".join(str(part) for part in wrong.absolute_path) or "the file"
        raise InvalidArgument(
            f"not a compose file: {where}: {wrong.message[:200]}",
            hint="See https://github.com/compose-spec/compose-spec/blob/main/spec.md",
        )


def _check_cave(project: Project) -> None:
    for key in _cave(project):
        if key not in KEPT | MOOT and not key.startswith("x-"):
            raise InvalidArgument(
                f"service {project.service}: {key} would loosen the cave, or cannot be in one",
                hint="Take it out, or give the cave another service: --service NAME.",
            )
    for name, value in _variables(project).items():
        if value is None:
            raise InvalidArgument(
                f"service {project.service}: {name} has no value", hint=f"Use --env {name}."
            )
    joined = _cave(project).get("networks")
    if isinstance(joined, Mapping) and any(joined.values()):
        raise InvalidArgument(
            f"service {project.service}: a cave has no address or alias of its own in a network"
        )
    for text in (image(project) or "", *map(_text, _variables(project).values())):
        if "$" in text.replace("$$", ""):
            raise InvalidArgument(
                f"service {project.service}: nothing is put in for {text[:64]!r} in a cave",
                hint="Write the value, or use --image and --env.",
            )
    if unknown := sorted(set(_depends(project)) - set(project.sides)):
        raise InvalidArgument(
            f"service {project.service} depends on {unknown[0]}, which is not there"
        )


def _check_network(project: Project, key: str) -> None:
    given = _given_networks(project).get(key) or {}
    known = key == DEFAULT or key in _given_networks(project)
    if not known or not set(given) <= {"driver", "driver_opts", "internal", "labels", "ipam"}:
        raise InvalidArgument(
            f"the cave cannot join the network {key}: it has to be of its project alone",
            hint="Leave out external, name and attachable.",
        )
    if given.get("driver", "bridge") != "bridge" or given.get("driver_opts"):
        raise Unsupported(f"the cave cannot join the network {key}: it is no plain bridge")


def _check_side(project: Project, name: str, service: Mapping[str, Any]) -> None:
    shared = [service.get(key) == f"service:{project.service}" for key in _SHARED]
    borrowed = [str(one).split(":")[0] for one in service.get("volumes_from", ())]
    if any(shared) or project.service in borrowed:
        raise InvalidArgument(f"service {name} cannot share namespaces or volumes with the cave")


# --- reading it -----------------------------------------------------------------------------------


def _services(project: Project) -> Mapping[str, Any]:
    return project.file.get("services") or {}


def _cave(project: Project) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _services(project).get(project.service) or {}
    return found


def _given_networks(project: Project) -> Mapping[str, Any]:
    return project.file.get("networks") or {}


def moot(project: Project) -> list[str]:
    """What the file says of the cave's service that does not apply to a cave."""
    return sorted(set(_cave(project)) & MOOT)


def image(project: Project) -> str | None:
    return _cave(project).get("image")


def environment(project: Project) -> dict[str, str]:
    """The variables that the file gives the cave's service."""
    texts = {name: _text(value) for name, value in _variables(project).items()}
    return {name: text.replace("$$", "$") for name, text in texts.items()}


def _variables(project: Project) -> dict[str, Any]:
    given = _cave(project).get("environment") or {}
    if isinstance(given, Mapping):
        return dict(given)
    pairs = (line.partition("=") for line in given)
    return {name: value if equals else None for name, equals, value in pairs}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _depends(project: Project) -> dict[str, str]:
    given = _cave(project).get("depends_on") or {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(given, "service_started")
    return {name: how["condition"] for name, how in given.items()}


def awaited(project: Project) -> dict[str, str]:
    """What the cave waits for before it starts: service and condition."""
    return {name: how for name, how in _depends(project).items() if how != "service_started"}


def networks(project: Project) -> list[str]:
    """The networks of the project that the cave joins, by their names in the file."""
    return list(_cave(project).get("networks") or [DEFAULT])


def beside(project: Project) -> list[str]:
    """The names that lead from the cave to itself and to the services in its networks, not to the outside."""
    joined = set(networks(project))
    names = [project.service]
    for name, service in project.sides.items():
        given = service.get("networks") or [DEFAULT]
        shared = joined & set(given)
        if shared and "network_mode" not in service:
            names += [name, service.get("container_name", "")]
            names += [alias for key in shared for alias in _aliases(given, key)]
    return [name for name in dict.fromkeys(names) if _HOST.match(name)]


def _aliases(given: Any, key: str) -> list[str]:
    return (given[key] or {}).get("aliases", []) if isinstance(given, Mapping) else []


def project_name(cave_id: str) -> str:
    return f"ghost_{cave_id}"


# --- writing it -----------------------------------------------------------------------------------


def document(spec: CaveSpec, project: Project, instance: str) -> dict[str, Any]:
    """The compose file that the tool is given. JSON, and so YAML too."""
    labels = {PROJECT: instance, OF: spec.id}
    made = {key: value for key, value in project.file.items() if key != "version"}
    services = {name: _side(one, project, labels) for name, one in project.sides.items()}
    made["services"] = {**services, project.service: _cave_entry(spec, project)}
    joined = () if spec.network.mode == "open" else networks(project)
    made["networks"] = {
        key: _labelled({**(one or {}), **(ISOLATED if key in joined else {})}, labels)
        for key, one in {DEFAULT: {}, **_given_networks(project)}.items()
    }
    if volumes := project.file.get("volumes"):
        made["volumes"] = {key: _labelled(one or {}, labels) for key, one in volumes.items()}
    _validate(made)
    return made


def _cave_entry(spec: CaveSpec, project: Project) -> dict[str, Any]:
    """The cave as a service. The tool never makes it: what a cave needs besides (a lifeline, an end that removes
    it) has no words in a compose file. It is made as every docker cave is, and labelled as this service."""
    return {
        "image": (spec.image or "").replace("$", "$$"),
        "user": "1000:1000",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": True,
        "networks": networks(project),
        "profiles": ["ghost"],
    }


def _side(
    service: Mapping[str, Any], project: Project, labels: Mapping[str, str]
) -> dict[str, Any]:
    made = dict(_labelled(service, labels))
    for key in ("depends_on", "links"):
        if key in made:
            made[key] = _without(made[key], project.service)
    return made


def _without(given: Any, cave: str) -> Any:
    if isinstance(given, Mapping):
        return {name: how for name, how in given.items() if name != cave}
    return [one for one in given if one.split(":")[0] != cave]


def _labelled(thing: Mapping[str, Any], labels: Mapping[str, str]) -> Mapping[str, Any]:
    if thing.get("external"):
        return thing
    given = thing.get("labels") or {}
    if not isinstance(given, Mapping):
        given = dict(_split(given))
    return {**thing, "labels": {**given, **labels}}


def _split(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition("=")
        yield name, value
