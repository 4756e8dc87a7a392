# A link is for one browser: see ghost_hub.preview.passes.
"""``/v1/caves/{id}/previews``: what listens in a cave, and links to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from ghost_hub.preview.ports import listening
from ghost_hub.rest.row import Ask, Row, answer, parse
from ghost_mcp.errors import InvalidArgument, NotFound, Unsupported

if TYPE_CHECKING:
    from starlette.responses import Response

    from ghost_mcp.places import Place

__all__ = ["rows"]


class _NewPreview(BaseModel):
    """A port of the cave, a service of it, or with both a port of a side service; ``path`` is what it opens there."""

    model_config = ConfigDict(extra="forbid")

    port: int | None = Field(default=None, ge=1, le=65535)
    service: str | None = Field(default=None, min_length=1, max_length=40)
    path: str = Field(
        default="/",
        max_length=2_000,
        pattern=r"^/[!\"$-~]*$",
        description="With a query, if need be.",
    )


_LINK: dict[str, Any] = {
    "type": "object",
    "properties": {
        "url": {
            "type": "string",
            "description": "Opens once, in one browser, which then is let in.",
        },
        "expires": {"type": "number", "description": "Until when, in seconds since the epoch."},
    },
    "required": ["url", "expires"],
}


_PORTS: dict[str, Any] = {
    "type": "object",
    "properties": {"ports": {"type": "array", "items": {"type": "integer"}}},
    "required": ["ports"],
}


def rows() -> list[Row]:
    """The rows of this module."""
    path = "/v1/caves/{id}/previews"
    return [
        Row(method="GET", path=path, summary="Which ports of a cave something listens on.", tag="services", scope="read", handler=_list, result=_PORTS),
        Row(method="POST", path=path, summary="A link that shows a port, or a service, of a cave to a browser.", tag="services", scope="use", handler=_link, operation=True, statuses=(201,), body=_NewPreview.model_json_schema(), result=_LINK, example={"port": 8000}),
    ]  # fmt: skip


async def _list(ask: Ask) -> Response:
    place = await ask.caves.place(ask.request.path_params["id"])
    return answer({"ports": await listening(place.cave)})


async def _link(ask: Ask) -> Response:
    asked = parse(_NewPreview, await ask.json())
    if asked.port is None and asked.service is None:
        raise InvalidArgument("port or service: one is needed", hint='{"port": 8000}')
    place = await ask.caves.place(ask.request.path_params["id"])
    target = await _target(ask, place, asked)
    link = ask.hub.previews.link(ask.request.scope, place, target, asked.path)
    return answer({"url": link.url, "expires": link.expires_at}, 201)


async def _target(ask: Ask, place: Place, asked: _NewPreview) -> int | str:
    """Raises NotFound for a service that is not there."""
    if asked.service is None:
        assert asked.port is not None  # noqa: S101 - one of them is given
        return asked.port
    if asked.port is not None:
        try:
            await place.cave.address(asked.service)
        except Unsupported as error:
            raise NotFound(error.message, hint="Compose caves have some.") from error
        return f"{asked.service}-{asked.port}"
    if asked.service not in ask.hub.previews.doors:
        place.cave.service(asked.service)
    return asked.service
