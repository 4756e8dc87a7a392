"""REST: the services of a cave, and its Jupyter kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from ghost_hub.rest.row import Ask, Row, answer, parse
from ghost_mcp.errors import InvalidArgument
from ghost_mcp.services.kernels import MAX_TIMEOUT_S, Kernels

if TYPE_CHECKING:
    from starlette.responses import Response

    from ghost_mcp.services import Service

__all__ = ["rows"]

_SERVICE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "about": {"type": "string"},
        "state": {
            "type": "string",
            "enum": ["stopped", "starting", "ready", "waiting", "failed", "missing"],
        },
        "uses": {"type": "integer", "description": "Connections, and tools that hold it."},
        "restarts": {"type": "integer"},
        "age_s": {"type": ["number", "null"]},
        "processes": {"type": "integer"},
        "memory_bytes": {"type": "integer"},
        "command": {"type": ["string", "null"]},
        "hint": {"type": "string", "description": "What to do where the cave lacks it."},
        "url": {"type": "string", "description": "Its page at this hub; empty when it has none."},
    },
    "required": ["name", "state"],
}
_SESSION: dict[str, Any] = {
    "type": "object",
    "properties": {
        "session": {"type": "string"},
        "kernel": {"type": "string"},
        "busy": {"type": "boolean"},
        "execution_count": {"type": "integer"},
        "idle_s": {"type": "number"},
    },
    "required": ["session", "kernel", "busy"],
}
_EXECUTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "session": {"type": "string"},
        "kernel": {"type": "string"},
        "status": {"type": "string", "description": "ok, error or aborted."},
        "execution_count": {"type": "integer"},
        "outputs": {
            "type": "array",
            "description": "In order: stream (name, text), display and result (data by media type; "
            "pictures as base64), error (name, value, traceback).",
            "items": {"type": "object"},
        },
        "truncated": {"type": "boolean"},
        "timed_out": {"type": "boolean"},
        "duration_s": {"type": "number"},
        "note": {"type": "string"},
    },
    "required": ["session", "status", "outputs"],
}
_CAVE = {"cave": {"type": "string", "description": "Your default one when left out."}}


class _Execute(BaseModel):
    model_config = ConfigDict(extra="forbid")

    code: str
    kernel: str | None = Field(
        default=None, description="python3, ir, julia, ...; python3 when left out."
    )
    session: str | None = Field(
        default=None, description="One that was created; the kernel's own one when left out."
    )
    timeout: float = Field(
        default=60.0, gt=0, le=MAX_TIMEOUT_S, description="Seconds; then the code is interrupted."
    )
    stdin: list[str] | None = Field(
        default=None, description="The lines that the code may ask for, one for each input()."
    )
    cave: str | None = None


class _NewSession(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kernel: str | None = None
    session: str | None = Field(default=None, description="Its name; one is made when left out.")
    cave: str | None = None


def rows() -> list[Row]:
    """The rows of services and kernels."""
    service, session = "/v1/caves/{id}/services", "/v1/jupyter/sessions"
    many = {"type": "object", "properties": {"services": {"type": "array", "items": _SERVICE}}}
    sessions = {"type": "object", "properties": {"sessions": {"type": "array", "items": _SESSION}}}
    kernels = {
        "type": "object",
        "properties": {"kernels": {"type": "array", "items": {"type": "object"}}},
    }

    def jupyter(method: str, path: str, summary: str, scope: str, handler: Any, **more: Any) -> Row:
        return Row(
            method=method,
            path=path,
            summary=summary,
            tag="jupyter",
            scope=scope,
            handler=handler,
            **more,
        )

    example = {"code": "1 + 1", "kernel": "python3"}
    return [
        Row(method="GET", path=service, summary="What runs in a cave for whoever dials it.", tag="services", scope="read", handler=_list, result=many),
        Row(method="POST", path=f"{service}/{{service}}/start", summary="Start a service; answers when it is ready.", tag="services", scope="use", handler=_start, operation=True, result=_SERVICE),
        Row(method="POST", path=f"{service}/{{service}}/stop", summary="End a service and all it started.", tag="services", scope="use", handler=_stop, operation=True, result=_SERVICE),
        jupyter("POST", "/v1/jupyter/execute", "Run code in a Jupyter kernel, whose state is kept.", "use", _execute, operation=True, body=_Execute.model_json_schema(), result=_EXECUTED, example=example),
        jupyter("GET", "/v1/jupyter/kernels", "The kernels that a cave has.", "use", _kernels, query=_CAVE, result=kernels),
        jupyter("GET", session, "The sessions of a cave's kernels.", "use", _sessions, query=_CAVE, result=sessions),
        jupyter("POST", session, "Start a kernel for a new session.", "use", _create, operation=True, statuses=(201,), body=_NewSession.model_json_schema(), result=_SESSION, example={"kernel": "python3"}),
        jupyter("DELETE", f"{session}/{{session}}", "End a session and its kernel.", "use", _delete, operation=True, query=_CAVE, result=_SESSION),
        jupyter("POST", f"{session}/{{session}}/interrupt", "Interrupt what a session runs.", "use", _interrupt, operation=True, query=_CAVE, result=_SESSION),
    ]  # fmt: skip


async def _service(ask: Ask) -> Service:
    place = await ask.caves.place(ask.request.path_params["id"])
    return place.cave.service(ask.request.path_params["service"])


async def _list(ask: Ask) -> Response:
    place = await ask.caves.place(ask.request.path_params["id"])
    return answer({"services": [one.as_dict() for one in await place.cave.services()]})


async def _start(ask: Ask) -> Response:
    return answer((await (await _service(ask)).start()).as_dict())


async def _stop(ask: Ask) -> Response:
    service = await _service(ask)
    await service.stop()
    return answer((await service.status()).as_dict())


async def _of(ask: Ask, cave: str | None) -> Kernels:
    place = await ask.caves.place(cave)
    return place.keep.get("kernels", lambda: Kernels(place.cave))


async def _named(ask: Ask) -> Kernels:
    """The kernels of the cave that the address names, for routes without a body."""
    if ask.request.method == "POST" and await ask.request.body():
        raise InvalidArgument("this route takes no body", hint="The cave goes into the address.")
    return await _of(ask, ask.request.query_params.get("cave"))


async def _execute(ask: Ask) -> Response:
    asked = parse(_Execute, await ask.json())
    kernels = await _of(ask, asked.cave)
    done = await kernels.execute(
        asked.code,
        session=asked.session,
        kernel=asked.kernel,
        timeout_s=asked.timeout,
        stdin=asked.stdin,
    )
    return answer(done)


async def _kernels(ask: Ask) -> Response:
    return answer({"kernels": await (await _named(ask)).kernels()})


async def _sessions(ask: Ask) -> Response:
    return answer({"sessions": await (await _named(ask)).sessions()})


async def _create(ask: Ask) -> Response:
    asked = parse(_NewSession, await ask.json())
    kernels = await _of(ask, asked.cave)
    return answer(await kernels.create(kernel=asked.kernel, session=asked.session), 201)


async def _delete(ask: Ask) -> Response:
    return answer(await (await _named(ask)).delete(ask.request.path_params["session"]))


async def _interrupt(ask: Ask) -> Response:
    return answer(await (await _named(ask)).interrupt(ask.request.path_params["session"]))
