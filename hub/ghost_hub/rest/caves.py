# Making and ending caves by REST. What a caller may ask of a cave is here, and it is less than a CaveSpec can say.
"""``/v1/caves``, and ``/v1/sandbox`` in the words of the mission's examples."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette.sse import EventSourceResponse
from starlette.responses import Response, StreamingResponse

from ghost_hub.monitor import STEP_S
from ghost_hub.rest.row import Ask, Row, answer, parse
from ghost_mcp.errors import InvalidArgument, PermissionRefused
from ghost_mcp.spec import CaveInfo, CaveSpec, Limits

if TYPE_CHECKING:
    from ghost_hub.owned import OwnerCaves
    from ghost_mcp.cave import Cave

__all__ = ["rows"]

MIB = 1 << 20
RECENT = 60  # samples of each cave in a listing: five minutes
CONNECTIONS = 500


class NewCave(BaseModel):
    """A cave that is kept until it is destroyed, or its time is over."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(default="", description="1 to 40 of a-z, 0-9 and -; made up when left out.")
    backend: str = Field(default="", description="local, docker, ...; the hub's own when left out.")
    image: str | None = Field(
        default=None, description="An image's reference, where the backend has images."
    )
    env: dict[str, str] = Field(default_factory=dict)
    secrets: list[str] = Field(
        default_factory=list,
        description="Names of secrets of yours, as set on the hub's machine; their values are never told.",
    )
    cpus: float | None = Field(default=None, ge=0.01)
    memory_bytes: int | None = Field(default=Limits().memory_bytes, ge=32 * MIB)
    pids: int | None = Field(default=Limits().pids, ge=16)
    disk_bytes: int | None = Field(default=None, ge=8 * MIB)
    timeout_s: float | None = Field(
        default=None, ge=0.1, description="Ends it so long after its start."
    )
    idle_timeout_s: float | None = Field(
        default=None, ge=0.1, description="Ends it so long after its last call."
    )
    labels: dict[str, str] = Field(default_factory=dict)
    gpus: str | None = Field(
        default=None,
        description="all, how many, or device=ID,ID; with the scope admin only, where the backend has some.",
    )

    def spec(self) -> CaveSpec:
        """Raises InvalidArgument, PermissionRefused."""
        if self.image is not None and self.image.startswith(("/", ".")):
            raise PermissionRefused(
                "folders of the hub's machine cannot be named over the network",
                hint="Name an image, or leave it out.",
            )
        return CaveSpec(
            name=self.name,
            backend=self.backend.lower(),
            image=self.image,
            env=self.env,
            secrets=tuple(dict.fromkeys(self.secrets)),
            limits=Limits(
                cpus=self.cpus,
                memory_bytes=self.memory_bytes,
                pids=self.pids,
                disk_bytes=self.disk_bytes,
            ),
            timeout_s=self.timeout_s,
            idle_timeout_s=self.idle_timeout_s,
            labels=self.labels,
            gpus=self.gpus,
        )


class SandboxConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image: str | None = None
    cpu_limit: float | None = Field(default=None, ge=0.01, description="Processors.")
    memory_limit: int | None = Field(default=None, ge=32, le=1 << 30, description="MiB.")
    disk_limit: int | None = Field(default=None, ge=8, le=1 << 30, description="MiB.")
    pids_limit: int | None = Field(default=None, ge=16)
    timeout: float | None = Field(default=None, ge=0.1, description="Seconds from its start.")
    environment: dict[str, str] = Field(default_factory=dict)
    network_mode: Literal["none"] = "none"
    gpus: str | None = Field(
        default=None, description="all, how many, or device=ID,ID; with the scope admin only."
    )


class NewSandbox(BaseModel):
    """The same in other words: ``cave_type`` is the backend, and sizes are MiB."""

    model_config = ConfigDict(extra="forbid")

    name: str = ""
    cave_type: str = Field(default="", description="Local, Docker, Compose or Kubernetes.")
    config: SandboxConfig = SandboxConfig()

    def cave(self) -> NewCave:
        given = self.config
        asked: dict[str, Any] = {
            "name": self.name,
            "backend": self.cave_type,
            "image": given.image,
            "env": given.environment,
            "cpus": given.cpu_limit,
            "timeout_s": given.timeout,
            "memory_bytes": given.memory_limit and given.memory_limit * MIB,
            "disk_bytes": given.disk_limit and given.disk_limit * MIB,
            "pids": given.pids_limit,
            "gpus": given.gpus,
        }
        return NewCave(**{key: value for key, value in asked.items() if value is not None})


CAVE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "name": {"type": "string"},
        "backend": {"type": "string"},
        "state": {"type": "string", "enum": ["running", "paused", "stopped", "ended"]},
        "created_at": {"type": "number", "description": "Seconds since the epoch."},
        "deadline_at": {"type": ["number", "null"]},
        "spec": {"type": "object"},
        "assurance": {
            "type": "object",
            "description": "Each boundary: whether it is enforced, and by what.",
            "additionalProperties": {
                "type": "object",
                "properties": {"enforced": {"type": "boolean"}, "how": {"type": "string"}},
            },
        },
    },
    "required": ["id", "name", "backend", "state"],
}
_MANY = {
    "type": "object",
    "properties": {"caves": {"type": "array", "items": CAVE_SCHEMA}},
    "required": ["caves"],
}
_ONE_PATHS = ("/v1/caves/{id}", "/v1/sandbox/{id}")


def rows() -> list[Row]:
    """The rows of caves; the two families of addresses have the same handlers."""

    def row(method: str, path: str, summary: str, scope: str, handler: Any, **more: Any) -> Row:
        tag = "sandbox" if path.startswith("/v1/sandbox") else "caves"
        return Row(
            method=method, path=path, summary=summary, tag=tag, scope=scope, handler=handler, **more
        )

    example = {
        "name": "dev-cave",
        "cave_type": "Docker",
        "config": {"image": "ubuntu:22.04", "cpu_limit": 2.0, "memory_limit": 2048},
    }
    one = "/v1/caves/{id}"
    gone = {"type": "object", "properties": {"destroyed": {"type": "string"}}}
    return [
        row("GET", "/v1/caves", "List your caves.", "read", _list, result=_MANY),
        row("GET", "/v1/sandbox", "List your caves.", "read", _list, result=_MANY),
        row("POST", "/v1/caves", "Make a cave.", "manage", _create, operation=True, result=CAVE_SCHEMA, statuses=(201,), body=NewCave.model_json_schema(), example={"name": "dev"}),
        row("POST", "/v1/sandbox", "Make a cave.", "manage", _create_sandbox, operation=True, result=CAVE_SCHEMA, statuses=(201,), body=NewSandbox.model_json_schema(), example=example),
        *(row("GET", path, "What a cave is, and what is enforced around it.", "read", _get, result=CAVE_SCHEMA) for path in _ONE_PATHS),
        *(row("DELETE", path, "Destroy a cave and everything in it.", "manage", _destroy, operation=True, result=gone) for path in _ONE_PATHS),
        row("POST", f"{one}/start", "Bring a stopped, paused or ended cave back.", "manage", _start, operation=True, result=CAVE_SCHEMA),
        row("POST", f"{one}/stop", "End its processes and keep its files.", "manage", _stop, operation=True, result=CAVE_SCHEMA, query={"pause": {"type": "boolean", "description": "Freeze it instead."}}),
        row("GET", f"{one}/stats", "What it uses, and what it may use.", "read", _stats, result={"type": "object"}),
        row("GET", f"{one}/stats/history", "What it used during the last hour, while somebody looked.", "read", _history, result={"type": "object"}),
        row("GET", f"{one}/stats/events", "What it uses, as it is measured.", "read", _follow, media="text/event-stream"),
        row("GET", "/v1/stats", "What each of your caves has used of late.", "read", _all_stats, result={"type": "object"}),
        row("GET", f"{one}/egress", "Its latest connections to the outside, allowed and refused.", "read", _egress, result={"type": "object"}),
        row("GET", f"{one}/logs", "The log of the cave itself.", "read", _logs, media="text/plain", query={"follow": {"type": "boolean", "description": "Go on until it ends."}}),
    ]  # fmt: skip


def _owned(ask: Ask) -> OwnerCaves:
    return ask.hub.owned(ask.caves.owner)


async def _cave(ask: Ask) -> Cave:
    return await ask.caves.find(ask.request.path_params["id"])


def _shown(info: CaveInfo, status: int = 200) -> Response:
    return answer(info.as_dict(), status)


def _flag(ask: Ask, name: str) -> bool:
    word = ask.request.query_params.get(name, "false")
    if word not in ("true", "false", "1", "0"):
        raise InvalidArgument(f"{name}: true or false", hint=f"?{name}=true")
    return word in ("true", "1")


async def _list(ask: Ask) -> Response:
    return answer({"caves": [info.as_dict() for info in await ask.caves.list()]})


async def _create(ask: Ask) -> Response:
    return await _made(ask, parse(NewCave, await ask.json()))


async def _create_sandbox(ask: Ask) -> Response:
    return await _made(ask, parse(NewSandbox, await ask.json()).cave())


async def _made(ask: Ask, asked: NewCave) -> Response:
    if asked.gpus is not None and not ask.caves.principal.may("admin"):
        raise PermissionRefused(
            "GPUs are the machine's, and not a cave's own to ask for over the network",
            hint="They need a token with the scope admin.",
        )
    cave = await _owned(ask).create(asked.spec())
    return answer(cave.info.as_dict(), 201, {"Location": f"/v1/caves/{cave.name}"})


async def _get(ask: Ask) -> Response:
    return _shown((await _cave(ask)).info)


async def _destroy(ask: Ask) -> Response:
    name = ask.request.path_params["id"]
    await _owned(ask).destroy(name)
    return answer({"destroyed": name})


async def _start(ask: Ask) -> Response:
    return _shown(await (await _cave(ask)).start())


async def _stop(ask: Ask) -> Response:
    return _shown(await (await _cave(ask)).stop(pause=_flag(ask, "pause")))


async def _stats(ask: Ask) -> Response:
    cave = await _cave(ask)
    usage = asdict(await cave.usage())
    return answer(
        {
            "name": cave.name,
            "state": cave.info.state.value,
            "usage": usage,
            "limits": asdict(cave.info.spec.limits),
        }
    )


async def _history(ask: Ask) -> Response:
    info = (await _cave(ask)).info
    told = {"name": info.name, "step_s": STEP_S, "limits": asdict(info.spec.limits)}
    return answer({**told, "samples": ask.hub.monitor.samples(info)})


async def _follow(ask: Ask) -> Response:
    info = (await _cave(ask)).info

    async def events() -> AsyncIterator[dict[str, str]]:
        async for sample in ask.hub.monitor.follow(info):
            yield {"event": "sample", "data": json.dumps(sample)}

    return EventSourceResponse(events(), ping=15)


async def _all_stats(ask: Ask) -> Response:
    found = {
        info.name: {
            "state": info.state.value,
            "limits": asdict(info.spec.limits),
            "samples": ask.hub.monitor.samples(info, RECENT),
        }
        for info in await ask.caves.list()
    }
    return answer({"step_s": STEP_S, "caves": found})


async def _egress(ask: Ask) -> Response:
    cave = await _cave(ask)
    records = await anyio.to_thread.run_sync(cave.connections)
    network = cave.info.spec.network
    shown = {"mode": network.mode, "connections": records[-CONNECTIONS:]}
    return answer(shown)


async def _logs(ask: Ask) -> Response:
    cave = await _cave(ask)
    follow = _flag(ask, "follow")

    async def pieces() -> AsyncIterator[bytes]:
        async for piece in cave.logs(follow=follow):
            yield piece

    return StreamingResponse(
        pieces(),
        media_type="text/plain; charset=utf-8",
        headers={"X-Content-Type-Options": "nosniff"},
    )
