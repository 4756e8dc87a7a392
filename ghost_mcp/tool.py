# A tool is a typed function and its declaration. Importing a module of tools registers nothing anywhere.
"""The seam between what an agent calls and what a cave does.

A handler is ``async def name(call: Call, *, argument: Annotated[type, Field(description=...)]) -> Reply``.
Its docstring is the description a model reads. Adapters (MCP, REST, CLI) call :func:`invoke`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from ghost_mcp.errors import InvalidArgument
from ghost_mcp.keep import Keep

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave
    from ghost_mcp.reply import Reply

__all__ = ["Call", "Effect", "Keep", "Progress", "Tool", "Toolset", "invoke", "silent", "tool"]

Effect = Literal["read", "write", "destroy"]
CAVE_ARGUMENT = {"type": "string", "description": "Default: your own."}


class Progress(Protocol):
    async def __call__(
        self, done: float, total: float | None = None, message: str | None = None
    ) -> None: ...


async def silent(done: float, total: float | None = None, message: str | None = None) -> None:
    """Nobody wants to know the progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a handler is given besides its arguments: the cave, and a way to report progress.

    ``keep`` holds what a server wants to have again at the next call in the same cave (a browser); the
    hub closes it, with ``aclose()``, when the cave or the hub ends.
    """

    cave: Cave
    progress: Progress = silent
    keep: Keep = field(default_factory=Keep)


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One tool. ``effect``: ``read`` changes nothing, ``write`` may change something, ``destroy`` may lose it."""

    name: str
    title: str
    description: str
    effect: Effect
    idempotent: bool
    open_world: bool
    handler: Callable[..., Awaitable[Reply]]
    result: type[Any]

    @cached_property
    def arguments(self) -> type[BaseModel]:
        """The model of the arguments; unknown ones are refused."""
        hints = get_type_hints(self.handler, include_extras=True)
        fields: dict[str, Any] = {}
        for parameter in list(inspect.signature(self.handler).parameters.values())[1:]:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
        return create_model(
            f"{self.name}_arguments", __config__=ConfigDict(extra="forbid"), **fields
        )

    @cached_property
    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments, the optional ``cave`` included."""
        schema = compact(self.arguments.model_json_schema())
        schema.setdefault("properties", {})["cave"] = CAVE_ARGUMENT
        return schema

    @cached_property
    def output_schema(self) -> dict[str, Any]:
        """JSON Schema of the structured result."""
        return compact(TypeAdapter(self.result).json_schema())


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolset:
    """One MCP server: its name, what a model is told about it, its tools in the order they are listed."""

    name: str
    instructions: str
    tools: tuple[Tool, ...]


def tool(
    *,
    title: str,
    effect: Effect,
    result: type[Any],
    idempotent: bool = False,
    open_world: bool = False,
) -> Callable[[Callable[..., Awaitable[Reply]]], Tool]:
    """Declare a handler as a tool of its function's name. ``result`` is a TypedDict: the structured answer."""

    def declare(handler: Callable[..., Awaitable[Reply]]) -> Tool:
        return Tool(
            name=handler.__name__.rstrip("_"),
            title=title,
            description=inspect.cleandoc(handler.__doc__ or ""),
            effect=effect,
            idempotent=idempotent or effect == "read",
            open_world=open_world,
            handler=handler,
            result=result,
        )

    return declare


async def invoke(declared: Tool, call: Call, arguments: Mapping[str, Any]) -> Reply:
    """Check the arguments and run the handler. Raises InvalidArgument with a message a model can act on."""
    for name, value in arguments.items():
        if not _is_unicode(value):
            raise InvalidArgument(f"{declared.name}: {name[:64]!r} holds half of a character")
    try:
        checked = declared.arguments.model_validate(dict(arguments))
    except ValidationError as exc:
        raise InvalidArgument(_explain(declared, exc), hint="") from None
    return await declared.handler(call, **vars(checked))


def _is_unicode(value: object) -> bool:
    """Whether every text in a JSON value can be encoded: JSON can name lone surrogates, UTF-8 cannot."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    elif isinstance(value, Mapping):
        return all(_is_unicode(key) and _is_unicode(part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        return all(map(_is_unicode, value))
    return True


def _explain(declared: Tool, error: ValidationError) -> str:
    """Short lines, without the values: ``path: required``, ``unknown argument 'x' (known: ...)``."""
    known = ", ".join([*declared.arguments.model_fields, "cave"])
    lines = []
    for problem in error.errors(include_url=False, include_input=False)[:5]:
        where = ".".join(
            str(part)
            for part in problem["loc"]
            if not str(part).startswith(("function-", "list[", "str", "dict["))
        )
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown argument {where[:64]!r} (known: {known})")
        elif problem["type"] == "missing":
            lines.append(f"{where}: required")
        else:
            lines.append(f"{where[:64]}: {problem['msg'][:200]}")
    return f"{declared.name}: " + "; ".join(dict.fromkeys(lines))


def compact(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without what a model does not need: titles, $defs, ``null`` alternatives, and what goes
    without saying (``default`` null or false, further properties allowed)."""
    definitions = schema.pop("$defs", {})
    shrunk: dict[str, Any] = _shrink(schema, definitions)
    return shrunk


def _shrink(node: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_shrink(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        return _shrink({**target, **{k: v for k, v in node.items() if k != "$ref"}}, definitions)
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            out[key] = {name: _shrink(part, definitions) for name, part in value.items()}
        elif key == "anyOf":
            kept = [_shrink(part, definitions) for part in value if part != {"type": "null"}]
            out.update(kept[0] if len(kept) == 1 else {"anyOf": kept})
        elif not _goes_without_saying(key, value):
            out[key] = _shrink(value, definitions)
    return out


def _goes_without_saying(key: str, value: Any) -> bool:
    if key == "default":
        return value is None or value is False
    if key == "title":  # a property of that name is a schema
        return isinstance(value, str)
    return key == "additionalProperties" and value is True
