# A route is a row: what it takes, what it answers, what it needs. The document at /openapi.json is made of the same rows.
"""The shape of a REST route, and what all of them have in common."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ghost_hub.principal import principal_of
from ghost_mcp.errors import GhostError, InvalidArgument
from ghost_mcp.warden.wire import DEEPEST, is_deep

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from ghost_hub.hub import Hub
    from ghost_hub.owned import Caller

__all__ = ["JSON", "MULTIPART", "RAW", "Ask", "Row", "answer", "parse", "route"]

M = TypeVar("M", bound=BaseModel)
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
JSON, MULTIPART, RAW = "application/json", "multipart/form-data", "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, as a row's handler sees it. ``caves`` are the caller's own."""

    hub: Hub
    request: Request
    caves: Caller

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty one. Raises InvalidArgument."""
        raw = await self.request.body()
        try:
            found = json.loads(raw) if raw.strip() else {}
        except (ValueError, RecursionError) as exc:
            raise InvalidArgument(
                f"the body is not JSON: {str(exc)[:100]}", hint="Send a JSON object."
            ) from None
        if not isinstance(found, dict):
            raise InvalidArgument("the body must be a JSON object")
        if raw.count(b"[") + raw.count(b"{") > DEEPEST and is_deep(found):
            raise InvalidArgument("the body is nested too deeply")
        return found


Handler = Callable[[Ask], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One route. Schemas are JSON Schema; ``query`` are the names of parameters and what they mean.

    An ``operation`` is done within the layers of calls, audit and quota among them, as a tool is.
    """

    method: str
    path: str
    summary: str
    tag: str
    scope: str
    handler: Handler
    body: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    statuses: tuple[int, ...] = (200,)
    media: str = JSON
    body_media: tuple[str, ...] = (JSON,)
    example: Mapping[str, Any] | None = None
    operation: bool = False


def route(hub: Hub, row: Row) -> Route:
    """The row as a route: who may, then the handler. What it raises is rendered by the application."""
    return Route(row.path, _Endpoint(hub, row), methods=[row.method])


class _Endpoint:
    """A row as an ASGI application: around a function Starlette would handle once more what the application handles."""

    def __init__(self, hub: Hub, row: Row) -> None:
        self._hub, self._row = hub, row

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        row, request = self._row, Request(scope, receive, send)
        principal_of(scope).need(row.scope)
        _check_query(request, row)
        ask = Ask(hub=self._hub, request=request, caves=self._hub.of_scope(scope))
        response = await (_operate(row, ask) if row.operation else row.handler(ask))
        await response(scope, receive, send)


async def _operate(row: Row, ask: Ask) -> Response:
    given = {**ask.request.path_params, **ask.request.query_params}
    if row.body is not None and row.body_media == (JSON,):  # others are of any size
        with suppress(GhostError):  # the handler says what is wrong with it
            given |= await ask.json()
    cave = given.get("id") or given.get("cave") or given.get("name")
    if cave is None and _acts_in_a_cave(row):
        cave = ask.caves.usual
    return await ask.hub.calls.operate(
        ask.caves,
        f"{row.method} {row.path}",
        given,
        cave=cave if isinstance(cave, str) else None,
        effect="read" if row.scope == "read" else "write",
        kind="ending"
        if row.method == "DELETE" or row.path.endswith(("/stop", "/interrupt"))
        else "operation",
        work=partial(row.handler, ask),
    )


def _acts_in_a_cave(row: Row) -> bool:
    """Whether the row does its work in the caller's own cave when none is named."""
    return "cave" in row.query or "cave" in (row.body or {}).get("properties", {})


def _check_query(request: Request, row: Row) -> None:
    if not request.scope["query_string"]:
        return
    known = set(row.query)
    if unknown := sorted(set(request.query_params) - known):
        raise InvalidArgument(
            f"unknown in the address: {unknown[0][:64]!r}",
            hint=f"Known here: {', '.join(sorted(known)) or 'nothing'}.",
        )


def parse(model: type[M], given: Mapping[str, Any]) -> M:
    """The body as a model. Raises InvalidArgument, with the place and without the value."""
    try:
        return model.model_validate(dict(given))
    except ValidationError as exc:
        problems = exc.errors(include_url=False, include_input=False)[:5]
        lines = [
            f"{'.'.join(map(str, one['loc']))[:100] or 'body'}: {_reason(one)}" for one in problems
        ]
        raise InvalidArgument(
            "; ".join(lines), hint="See /openapi.json for what this route takes."
        ) from None


def _reason(problem: Mapping[str, Any]) -> str:
    """In words for who wrote the body, not for who wrote the model."""
    return "no such field" if problem["type"] == "extra_forbidden" else problem["msg"][:200]


def answer(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON. Half characters, as odd file names give them, become question marks."""
    return Response(_encode(data).encode("utf-8", "replace"), status, headers, media_type=JSON)
