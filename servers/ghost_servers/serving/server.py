# Only this file knows how MCP asks for tools and resources. Handlers never see the protocol.
"""An MCP server over published tools: both protocol eras, any transport of the SDK."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mcp import MCPError
from mcp.server import CacheHint, Server, ServerRequestContext
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    InputRequiredResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    ResourceTemplate,
)

from ghost_mcp import __version__
from ghost_mcp.calls import foreseen
from ghost_servers.serving.answers import listed, protocol_error, rendered
from ghost_servers.serving.asking import Asking

if TYPE_CHECKING:
    from ghost_mcp.calls import Calls
    from ghost_mcp.places import Caves
    from ghost_mcp.tool import Progress

__all__ = ["Context", "Resources", "build"]

Context = ServerRequestContext[Any, Any]
MAX_MESSAGE_CHARS = 200
# What a server offers is fixed while it runs, and the same for everyone.
_FIXED = CacheHint(ttl_ms=3_600_000, scope="public")


class Resources(Protocol):
    """What can be read besides calling tools. ``caves`` says what the caller may see."""

    @property
    def templates(self) -> Sequence[ResourceTemplate]: ...

    async def list(self, caves: Caves, cursor: str | None) -> ListResourcesResult: ...

    async def read(self, caves: Caves, uri: str) -> ReadResourceResult:
        """Raises InvalidArgument, NotFound, and what reaching the cave raises."""


def build(
    name: str,
    *,
    instructions: str,
    calls: Calls,
    resources: Resources,
    caves: Callable[[Context], Caves],
) -> Server[Any]:
    """A server that lists the tools of ``calls`` in their order, by their published names.

    ``caves`` answers, for a request, with the caves of the caller that sent it.
    """
    serving = _Serving(calls, resources, caves)
    return Server(
        name,
        version=__version__,
        instructions=instructions,
        cache_hints={
            "tools/list": _FIXED,
            "resources/templates/list": _FIXED,
            "server/discover": _FIXED,
        },
        get_tool_input_schema=lambda tool: (
            calls.tools[tool].input_schema if tool in calls.tools else None
        ),
        on_list_tools=serving.list_tools,
        on_call_tool=serving.call_tool,
        on_list_resources=serving.list_resources,
        on_list_resource_templates=serving.list_templates,
        on_read_resource=serving.read_resource,
    )


class _Serving:
    def __init__(
        self,
        calls: Calls,
        resources: Resources,
        caves: Callable[[Context], Caves],
    ) -> None:
        self._calls = calls
        self._resources = resources
        self._caves = caves
        self._asking = Asking()
        self._listing: ListToolsResult | None = None

    # --- tools -----------------------------------------------------------------------------------

    async def list_tools(
        self, ctx: Context, params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        if self._listing is None:
            self._listing = ListToolsResult(
                tools=[listed(name, tool) for name, tool in self._calls.tools.items()]
            )
        return self._listing

    async def call_tool(
        self, ctx: Context, params: CallToolRequestParams
    ) -> CallToolResult | InputRequiredResult:
        if params.name not in self._calls.tools:
            raise MCPError(code=INVALID_PARAMS, message=f"Unknown tool: {params.name[:64]}")
        caves = self._caves(ctx)
        if params.request_state is not None:
            return rendered(params.name, await self._asking.second_round(params, caves))
        answer = await self._calls.run(caves, params.name, params.arguments or {}, _progress(ctx))
        asked = await self._asking.ask(ctx, params, caves, answer)
        return asked if isinstance(asked, InputRequiredResult) else rendered(params.name, asked)

    # --- resources -------------------------------------------------------------------------------

    async def list_resources(
        self, ctx: Context, params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        cursor = params.cursor if params is not None else None
        try:
            return await self._resources.list(self._caves(ctx), cursor)
        except Exception as exc:
            raise protocol_error(foreseen(exc, "resources/list")) from exc

    async def list_templates(
        self, ctx: Context, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(resource_templates=list(self._resources.templates))

    async def read_resource(
        self, ctx: Context, params: ReadResourceRequestParams
    ) -> ReadResourceResult:
        try:
            return await self._resources.read(self._caves(ctx), params.uri)
        except Exception as exc:
            raise protocol_error(foreseen(exc, "resources/read"), uri=params.uri[:1000]) from exc


def _progress(ctx: Context) -> Progress:
    async def report(done: float, total: float | None = None, message: str | None = None) -> None:
        told = message[:MAX_MESSAGE_CHARS] if message is not None else None
        await ctx.session.report_progress(done, total, told)

    return report
