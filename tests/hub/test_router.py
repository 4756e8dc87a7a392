"""Addresses that are looked up are answered as Starlette would have answered them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router

from ghost_hub.app import build_app
from ghost_hub.hub import Hub
from ghost_hub.router import Addresses
from ghost_hub.settings import HubSettings

PATHS = [
    "/a/b",
    "/a/x",
    "/c",
    "/c/",
    "/m/in",
    "/m/none",
    "/slash",
    "/slash/",
    "/none",
    "/C",
    "/%63",
]


def _said(word: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        route = request.scope["route"].path
        return JSONResponse([word, request.method, route, request.path_params])

    return endpoint


def _app(kind: type[Router]) -> Starlette:
    inner = Starlette(routes=[Route("/in", _said("in"))])
    routes: list[BaseRoute] = [
        Route("/a/{name}", _said("any of a"), methods=["GET"]),
        Route("/a/b", _said("behind it"), methods=["GET", "POST"]),
        Route("/c", _said("got"), methods=["GET"]),
        Route("/c", _said("posted"), methods=["POST"]),
        Route("/c", _said("never"), methods=["GET"]),
        Mount("/m", inner),
        Route("/m/in", _said("behind the mount")),
        Route("/slash/", _said("slash")),
    ]
    app = Starlette()
    app.router = kind(routes)
    return app


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
async def test_it_answers_as_starlette_does(method: str) -> None:
    for root in ("", "/m", "/a"):
        told = []
        for kind in (Router, Addresses):
            transport = httpx2.ASGITransport(app=_app(kind), root_path=root)
            async with httpx2.AsyncClient(transport=transport, base_url="http://hub") as http:
                answers = [await http.request(method, path) for path in PATHS]
            told.append([(a.status_code, a.headers.get("allow"), a.headers.get("location"), a.text) for a in answers])  # fmt: skip
        assert told[0] == told[1]


def test_a_hub_knows_its_addresses() -> None:
    guard = build_app(Hub(), HubSettings(), None)
    router = guard._app.router  # type: ignore[attr-defined]
    assert {("POST", "/mcp/execute"), ("POST", "/v1/file/read"), ("GET", "/health")} <= set(router._known)  # fmt: skip
