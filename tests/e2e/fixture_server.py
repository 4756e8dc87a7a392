"""The tools and resources that the conformance suite asks for, through Ghost's serving layer, over HTTP.

For tests only: ``python -m tests.e2e.fixture_server`` prints its address and serves until it is ended.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import uvicorn
from mcp.types import (
    BlobResourceContents,
    ListResourcesResult,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)
from pydantic import Field
from starlette.applications import Starlette
from typing_extensions import TypedDict

from ghost_hub.guard import Guard
from ghost_hub.settings import HubSettings
from ghost_hub.transports import Transports
from ghost_mcp import Ghost
from ghost_mcp.calls import Calls
from ghost_mcp.errors import InvalidArgument, NotFound
from ghost_mcp.places import Caves, Places, SessionCaves
from ghost_mcp.reply import Picture, Reply
from ghost_mcp.tool import Call, tool
from ghost_servers.serving import build

if TYPE_CHECKING:
    from starlette.types import ASGIApp

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
)


class Nothing(TypedDict, total=False):
    pass


@tool(title="Text", effect="read", result=Nothing)
async def test_simple_text(call: Call) -> Reply:
    """Return a text."""
    return Reply(text="This is a simple text response for testing.", data={})


@tool(title="Image", effect="read", result=Nothing)
async def test_image_content(call: Call) -> Reply:
    """Return a picture."""
    return Reply(text="", data={}, pictures=[Picture(data=PNG, mime_type="image/png")])


@tool(title="Error", effect="read", result=Nothing)
async def test_error_handling(call: Call) -> Reply:
    """Fail."""
    raise InvalidArgument("This tool intentionally returns an error for testing")


@tool(title="Progress", effect="read", result=Nothing)
async def test_tool_with_progress(call: Call) -> Reply:
    """Report progress, with real work in between."""
    for done in (0, 50, 100):
        await call.progress(done, 100, f"{done} of 100")
        await call.cave.exec(["true"])
    return Reply(text="done", data={})


@tool(title="Logging", effect="read", result=Nothing)
async def test_logging_tool(call: Call) -> Reply:
    """Work without a word: what Ghost logs goes to its own log, never to the client."""
    await call.cave.exec(["true"])
    return Reply(text="done", data={})


@tool(title="Header", effect="read", result=Nothing)
async def test_headers(
    call: Call, *, region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]
) -> Reply:
    """An argument that HTTP clients repeat as a header."""
    return Reply(text=region, data={})


@tool(title="Schema", effect="read", result=Nothing)
async def json_schema_2020_12_tool(call: Call) -> Reply:
    """A schema with much of the vocabulary."""
    return Reply(text="", data={})


# A tool's schema is made once and kept; this one is given.
json_schema_2020_12_tool.__dict__["input_schema"] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

TOOLS = (
    test_simple_text,
    test_image_content,
    test_error_handling,
    test_tool_with_progress,
    test_logging_tool,
    test_headers,
    json_schema_2020_12_tool,
)


class FixtureResources:
    """The resources that the suite reads."""

    templates = (ResourceTemplate(name="data", uri_template="test://template/{id}/data"),)

    async def list(self, caves: Caves, cursor: str | None) -> ListResourcesResult:
        return ListResourcesResult(
            resources=[
                Resource(name="text", uri="test://static-text", mime_type="text/plain"),
                Resource(name="binary", uri="test://static-binary", mime_type="image/png"),
            ]
        )

    async def read(self, caves: Caves, uri: str) -> ReadResourceResult:
        if uri == "test://static-text":
            text = "This is the content of the static text resource."
            return _text(uri, "text/plain", text)
        if uri == "test://static-binary":
            blob = base64.b64encode(PNG).decode()
            content = BlobResourceContents(uri=uri, mime_type="image/png", blob=blob)
            return ReadResourceResult(contents=[content])
        if found := re.fullmatch(r"test://template/(\w+)/data", uri):
            data = {"id": found[1], "templateTest": True, "data": f"Data for ID: {found[1]}"}
            return _text(uri, "application/json", json.dumps(data))
        raise NotFound(f"no such resource: {uri[:200]}")


def _text(uri: str, mime_type: str, text: str) -> ReadResourceResult:
    return ReadResourceResult(
        contents=[TextResourceContents(uri=uri, mime_type=mime_type, text=text)]
    )


class _Fixture:
    """What the hub is to its transports."""

    def __init__(self, caves: Caves) -> None:
        self._caves = caves
        self.calls = Calls({one.name: one for one in TOOLS})
        self.server = build(
            "fixture",
            instructions="For the conformance suite.",
            calls=self.calls,
            resources=FixtureResources(),
            caves=lambda _: caves,
        )

    def of_scope(self, scope: Mapping[str, Any]) -> Caves:
        return self._caves


@contextlib.asynccontextmanager
async def endpoint() -> AsyncIterator[ASGIApp]:
    """The hub's own transports behind its own guard, for one caller and without tokens."""
    settings = HubSettings(auth=False)
    async with (
        Ghost(backend="local") as ghost,
        Places(ghost) as places,
        SessionCaves(places) as caves,
    ):
        transports = Transports(_Fixture(caves), settings)
        async with transports.run():
            yield Guard(Starlette(routes=transports.routes()), settings, None)


async def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    async with endpoint() as app:
        config: Any = uvicorn.Config(app, log_level="warning", lifespan="off")
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    anyio.run(main)
