# What is plainly one request is known by the SDK's own checks. The least doubt, and the SDK answers it.
"""Plain requests of the modern era over HTTP, which the hub answers without the SDK's detour."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcp.shared.inbound import (
    InboundModernRoute,
    classify_inbound_request,
    find_duplicated_routing_header,
)
from mcp_types.methods import validate_client_request
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

__all__ = ["JSON_HEADERS", "Plain", "document", "plainly", "replayed", "respond", "wants"]

JSON_HEADERS = [(b"content-type", b"application/json")]
_KEYS = {"jsonrpc", "id", "method", "params"}
# Values of arguments that a client repeats in headers: none of our tools asks for that.
_REPEATED = "mcp-param-"


@dataclass(frozen=True, slots=True)
class Plain:
    """One request: its id, the protocol's version, and the method's parameters with the envelope in ``_meta``."""

    id: str | int
    version: str
    params: dict[str, Any]


def wants(scope: Scope, method: bytes) -> bool:
    """Whether the headers alone name the method, so that a look at the body is worth it."""
    return scope["method"] == "POST" and (b"mcp-method", method) in scope["headers"]


def plainly(scope: Scope, message: Message, method: str) -> Plain | None:
    """The request that a whole body is, when the SDK would find nothing wrong with it."""
    if message["type"] != "http.request" or message.get("more_body"):
        return None
    pairs = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"]]
    headers = dict(pairs)
    if not _acceptable(headers) or find_duplicated_routing_header(pairs) is not None:
        return None
    try:
        body = json.loads(message.get("body", b""))
        known = body.keys() == _KEYS and body["jsonrpc"] == "2.0" and body["method"] == method
        number, params = body["id"], body["params"]
        if not known or type(number) not in (int, str):
            return None
        route = classify_inbound_request(body, headers=headers)
        if not isinstance(route, InboundModernRoute):
            return None
        validate_client_request(method, route.protocol_version, params)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return Plain(number, route.protocol_version, params)


def _acceptable(headers: dict[str, str]) -> bool:
    accepted = headers.get("accept", "")
    return (
        headers.get("mcp-protocol-version") in MODERN_PROTOCOL_VERSIONS
        and "application/json" in accepted
        and "text/event-stream" in accepted
        and headers.get("content-type", "").partition(";")[0].strip() == "application/json"
        and not any(name.startswith(_REPEATED) for name in headers)
    )


def replayed(first: Message, receive: Receive) -> Receive:
    """The client's messages with the first, which was looked at, before them."""
    waiting = [first]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def document(number: str | int, result: bytes) -> bytes:
    """The JSON-RPC response around a result that is JSON already."""
    return b'{"jsonrpc":"2.0","id":' + json.dumps(number).encode() + b',"result":' + result + b"}"


async def respond(send: Send, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """A whole answer at once."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
