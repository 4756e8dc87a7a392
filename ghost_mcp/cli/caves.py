# Commands on caves. What only looks at local caves reads the state folder and starts no event loop.
"""``create``, ``list``, ``info``, ``start``, ``stop``, ``destroy``, ``logs``."""

from __future__ import annotations

import codecs
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ghost_mcp.backends.registry import is_local
from ghost_mcp.cli.output import age
from ghost_mcp.errors import GhostError, InvalidArgument

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from ghost_mcp.cli.output import Output
    from ghost_mcp.ghost import Ghost
    from ghost_mcp.services import ServiceStatus
    from ghost_mcp.spec import CaveInfo, CaveSpec, Project, Usage

__all__ = ["create", "destroy", "find", "info", "list_caves", "logs", "on_ghost", "start", "stop"]

_T = TypeVar("_T")


def create(options: argparse.Namespace, out: Output) -> int:
    from ghost_mcp.cli import services

    spec, wanted = _spec(options), services.wanted(options)

    async def act(ghost: Ghost) -> tuple[CaveInfo, list[dict[str, Any]]]:
        cave = await ghost.create(spec)
        return cave.info, [await services.started(cave, name) for name in wanted]

    with out.progress(f"creating {spec.name}"):
        made, told = on_ghost(options.backend, act)
    if out.json and told:
        out.document({**made.as_dict(), "services": told})
    else:
        _show(made, f"created {made.full_name}", out)
        services.tell(told, out)
    return 0


def list_caves(options: argparse.Namespace, out: Output) -> int:
    found = _survey(options.backend)
    if out.json:
        out.document([info.as_dict() for info in found])
    elif not found:
        out.note("no caves; make one: ghost create NAME")
    else:
        headers = ("NAME", "STATE", "BACKEND", "AGE", "ENDS IN", "ID")
        out.table(headers, [_row(info, time.time()) for info in found])
    return 0


def info(options: argparse.Namespace, out: Output) -> int:
    found, usage = find(options.cave, options.backend), _usage(options)
    running = _services(options, found)
    if out.json:
        from dataclasses import asdict

        services = [one.as_dict() for one in running]
        out.document({**found.as_dict(), "usage": asdict(usage), "services": services})
    else:
        from ghost_mcp.cli.describe import describe

        describe(found, usage, running, out)
    return 0


def start(options: argparse.Namespace, out: Output) -> int:
    async def act(ghost: Ghost) -> CaveInfo:
        return await ghost.start(options.cave)

    with out.progress(f"starting {options.cave}"):
        started = on_ghost(options.backend, act)
    _show(started, f"started {started.full_name}", out)
    return 0


def stop(options: argparse.Namespace, out: Output) -> int:
    async def act(ghost: Ghost) -> CaveInfo:
        return await (await ghost.get(options.cave)).stop(pause=options.pause)

    with out.progress(f"stopping {options.cave}"):
        stopped = on_ghost(options.backend, act)
    _show(stopped, f"{stopped.state.value} {stopped.full_name}", out)
    return 0


def destroy(options: argparse.Namespace, out: Output) -> int:
    if bool(options.caves) == options.all:
        raise InvalidArgument("say which caves, or --all", hint="ghost destroy CAVE...")
    names: list[str] = []

    async def act(ghost: Ghost) -> None:
        if options.all:
            found = [info for info in await ghost.list() if not info.spec.ephemeral]
        else:  # all or none: a name that is not there stops before the first is gone
            found = [(await ghost.get(name)).info for name in options.caves]
        for info in dict.fromkeys((info.id, info.full_name) for info in found):
            await ghost.destroy(info[0])
            names.append(info[1])

    with out.progress("destroying"):
        on_ghost(options.backend, act)
    if out.json:
        out.document({"destroyed": names})
    for name in names:
        out.line(f"destroyed {name}")
    return 0


def logs(options: argparse.Namespace, out: Output) -> int:
    if options.follow and out.json:
        raise InvalidArgument("--follow and --json exclude each other", hint="Leave one out.")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces: list[str] = []

    async def act(ghost: Ghost) -> str:
        cave = await ghost.get(options.cave)
        async for piece in cave.logs(service=options.service, follow=options.follow):
            text = decoder.decode(piece)
            out.text(text)
            if out.json:
                pieces.append(text)
        return cave.name

    name = on_ghost(options.backend, act)
    if out.json:
        out.document({"name": name, "log": "".join(pieces)})
    return 0


# --- finding ------------------------------------------------------------------------------------


def find(name: str, backend: str | None) -> CaveInfo:
    """The cave of that name or id. Raises CaveNotFound."""
    if is_local(backend):
        from ghost_mcp.backends.local.cgroups import detect
        from ghost_mcp.backends.local.state import StateDir

        state = StateDir()
        return state.info(state.find(name), detect())

    async def act(ghost: Ghost) -> CaveInfo:
        return (await ghost.get(name)).info

    return on_ghost(backend, act)


def _survey(backend: str | None) -> list[CaveInfo]:
    """All caves, oldest first. What is to be swept is left to the backend itself."""
    if is_local(backend):
        from ghost_mcp.backends.local.cgroups import detect
        from ghost_mcp.backends.local.state import StateDir

        state, cgroups = StateDir(), detect()
        found = [state.listed(cave, cgroups) for cave in state.all()]
        if None not in found:
            kept = [info for info in found if info is not None]
            return sorted(kept, key=lambda info: info.created_at)

    async def act(ghost: Ghost) -> list[CaveInfo]:
        return await ghost.list()

    return on_ghost(backend, act)


def _usage(options: argparse.Namespace) -> Usage:
    if is_local(options.backend):
        from ghost_mcp.backends.local.cgroups import detect
        from ghost_mcp.backends.local.state import StateDir
        from ghost_mcp.spec import Usage

        state = StateDir()
        return Usage(**state.group(state.find(options.cave), detect()).usage())

    async def act(ghost: Ghost) -> Usage:
        return await (await ghost.get(options.cave)).usage()

    return on_ghost(options.backend, act)


def _services(options: argparse.Namespace, found: CaveInfo) -> list[ServiceStatus]:
    """Those of a cave's services that run; of a cave that does not, nothing is known."""
    if found.state.value != "running":
        return []
    from ghost_mcp.cli.programs import runs_services

    async def act(ghost: Ghost) -> list[ServiceStatus]:
        known = await (await ghost.get(options.cave)).services()
        return [one for one in known if one.state not in ("stopped", "missing")]

    with suppress(GhostError):  # the rest of it can be told all the same
        if not is_local(options.backend) or runs_services(options.cave):
            return on_ghost(options.backend, act)
    return []


def on_ghost(backend: str | None, act: Callable[[Ghost], Awaitable[_T]]) -> _T:
    """What ``act`` returns, given an open Ghost of that backend."""
    import anyio

    from ghost_mcp.ghost import Ghost
    from ghost_mcp.secrets.process import no_core_dump

    no_core_dump()

    async def run() -> _T:
        async with Ghost(backend=backend) as ghost:
            return await act(ghost)

    return anyio.run(run)


# --- what was asked for, and what is shown ------------------------------------------------------


def _spec(options: argparse.Namespace) -> CaveSpec:
    from ghost_mcp.cli.programs import environment
    from ghost_mcp.spec import (
        DESKTOP,
        CaveSpec,
        Limits,
        NetworkPolicy,
        check_name,
        parse_size,
        parse_span,
    )

    limits: dict[str, Any] = {"cpus": options.cpu, "pids": options.pids}
    limits["memory_bytes"] = options.memory and parse_size(options.memory)
    limits["disk_bytes"] = options.disk and parse_size(options.disk)
    labels = dict(_pair(label) for label in options.label)
    if options.vnc:
        labels.setdefault(DESKTOP, "vnc")
    workspace = options.workspace
    if workspace and not workspace.startswith("volume:"):
        workspace = os.path.abspath(workspace)
    return CaveSpec(
        name=check_name(options.name),
        backend=options.backend or "",
        image=options.image,
        env=environment(options.env),
        secrets=tuple(options.secret),
        limits=Limits(**{name: value for name, value in limits.items() if value is not None}),
        timeout_s=options.timeout and parse_span(options.timeout),
        idle_timeout_s=options.idle_timeout and parse_span(options.idle_timeout),
        network=NetworkPolicy(
            mode=options.network or ("allow" if options.allow else "none"),
            allow=tuple(options.allow),
        ),
        workspace=workspace,
        gpus=options.gpus,
        labels=labels,
        project=_project(options),
    )


def _project(options: argparse.Namespace) -> Project | None:
    if options.file is None:
        if options.service is not None:
            raise InvalidArgument("--service needs a compose file", hint="Add: --file compose.yaml")
        return None
    from ghost_mcp.backends.compose.reading import read

    return read(options.file, options.service or "cave")


def _pair(text: str) -> tuple[str, str]:
    key, given, value = text.partition("=")
    if not given:
        raise InvalidArgument(f"not KEY=VALUE: {text[:64]!r}")
    return key, value


def _row(info: CaveInfo, now: float) -> tuple[str, ...]:
    ends = "" if info.deadline_at is None else age(info.deadline_at - now)
    return (
        info.full_name,
        info.state.value,
        info.backend,
        age(now - info.created_at),
        ends if info.state.value == "running" else "",
        info.id,
    )


def _show(info: CaveInfo, text: str, out: Output) -> None:
    if out.json:
        out.document(info.as_dict())
    else:
        out.line(text)
