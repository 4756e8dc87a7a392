# Made of the rows themselves, so that it cannot say what is not so.
"""The OpenAPI 3.1 document of the REST routes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ghost_hub.principal import SCOPES
from ghost_mcp import __version__

if TYPE_CHECKING:
    from ghost_hub.rest.row import Row

__all__ = ["document"]

PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "Stable: what a program may decide by."},
        "hint": {"type": "string", "description": "What to do next."},
        "retryable": {"type": "boolean"},
        "data": {"type": "object"},
    },
    "required": ["type", "title", "status", "detail", "code"],
}


def document(rows: Iterable[Row]) -> dict[str, Any]:
    """All rows by path and method."""
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Ghost",
            "version": __version__,
            "description": "Caves, and sixteen tools in them, by REST. MCP is at /mcp.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": {"Problem": PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Problem": {
                    "description": "It was refused, or it failed.",
                    "content": {
                        "application/problem+json": {
                            "schema": {"$ref": "#/components/schemas/Problem"}
                        }
                    },
                }
            },
        },
    }


def _operation(row: Row) -> dict[str, Any]:
    name = row.path.strip("/").replace("/", "_").replace("{", "").replace("}", "").replace(".", "_")
    content: dict[str, Any] = {row.media: {"schema": _inline(row.result) if row.result else {}}}
    made: dict[str, Any] = {
        "operationId": f"{row.method.lower()}_{name}",
        "summary": row.summary,
        "description": f"Needs the scope `{row.scope}` (of {', '.join(SCOPES)}).",
        "tags": [row.tag],
        "parameters": [*_path_parameters(row), *_query_parameters(row)],
        "responses": {
            **{
                str(status): {"description": "Done.", "content": content} for status in row.statuses
            },
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }
    if row.body is not None:
        made["requestBody"] = {"required": True, "content": _bodies(row)}
    return made


def _bodies(row: Row) -> dict[str, Any]:
    schemas: dict[str, Any] = {
        "application/json": {"schema": _inline(row.body or {})},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "path": {"type": "string"},
                    "file": {"type": "string", "contentMediaType": "application/octet-stream"},
                },
                "required": ["file"],
            }
        },
        "application/octet-stream": {},
    }
    if row.example is not None:
        schemas["application/json"]["example"] = dict(row.example)
    return {media: schemas[media] for media in row.body_media}


def _path_parameters(row: Row) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in row.path.split("/") if part.startswith("{")]
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in names
    ]


def _query_parameters(row: Row) -> list[dict[str, Any]]:
    found = []
    for name, schema in row.query.items():
        own = {key: value for key, value in schema.items() if key != "description"}
        parameter = {"name": name, "in": "query", "schema": own}
        if "description" in schema:
            parameter["description"] = schema["description"]
        found.append(parameter)
    return found


def _inline(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema that stands by itself: what it defines is put where it is used."""
    definitions = schema.get("$defs", {})

    def put(node: Any) -> Any:
        if isinstance(node, list):
            return [put(one) for one in node]
        if not isinstance(node, Mapping):
            return node
        if "$ref" in node and str(node["$ref"]).startswith("#/$defs/"):
            rest = {key: value for key, value in node.items() if key != "$ref"}
            return put({**definitions[node["$ref"].removeprefix("#/$defs/")], **rest})
        return {key: put(value) for key, value in node.items() if key != "$defs"}

    found: dict[str, Any] = put(schema)
    return found
