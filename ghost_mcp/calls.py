# Every call of a tool passes here, whoever speaks which protocol: audit, quotas and masking cannot be walked around.
"""One way to run a tool for a caller. MCP, REST and all that comes after them only render its Answer."""

from __future__ import annotations

import logging
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ghost_mcp.errors import GhostError, Internal, InvalidArgument, NotFound
from ghost_mcp.reply import Reply
from ghost_mcp.tool import Call, Effect, Progress, Tool, invoke, silent
from ghost_mcp.warden.wire import is_deep

if TYPE_CHECKING:
    from ghost_mcp.cave import Cave
    from ghost_mcp.places import Caves, Place
    from ghost_mcp.secrets.masker import Masker

__all__ = ["Answer", "Asked", "Calls", "Kind", "Layer", "Run", "foreseen"]

T = TypeVar("T")
Kind = Literal["tool", "operation", "ending"]
_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Asked:
    """One call under way. ``arguments`` are the tool's own; ``cave`` is the name that was given, if any.

    ``effect`` is the tool's: ``read`` changes nothing. ``kind`` says whether it is a tool's call, an
    operation that is no tool, or an ending: an operation that ends something, which no quota may hold up.
    ``place`` is set once the cave is known: in a layer, after the inner call has returned.
    """

    id: str
    caves: Caves
    name: str
    effect: Effect
    arguments: Mapping[str, Any]
    cave: str | None
    progress: Progress = silent
    kind: Kind = "tool"
    place: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a call ended. ``note`` tells the caller something about the cave that it cannot know.

    ``place`` is where it ran, None when it did not.
    """

    outcome: Reply | GhostError
    note: str = ""
    place: Place | None = None


Run = Callable[[Asked], Awaitable[Answer]]
#: What happens around each call: it is given the inner call, and may look at, change or refuse what passes.
Layer = Callable[[Run, Asked], Awaitable[Answer]]


class Calls:
    """The tools a server offers, by their published names, and the layers around each call, outermost first."""

    def __init__(self, tools: Mapping[str, Tool], layers: Sequence[Layer] = ()) -> None:
        self.tools = tools
        self._layers = tuple(reversed(layers))

    async def run(
        self,
        caves: Caves,
        name: str,
        arguments: Mapping[str, Any],
        progress: Progress = silent,
    ) -> Answer:
        """Run a tool in the cave that the argument ``cave`` names, or in the caller's own.

        What goes wrong, foreseen or not, is the answer's outcome; only cancellation passes, and what was
        cancelled is dead. Raises NotFound for a tool that is not offered.
        """
        tool = self.tools.get(name)
        if tool is None:
            raise NotFound(f"no such tool: {name[:64]}", hint="List the tools to see their names.")
        own = dict(arguments)
        cave = own.pop("cave", None)
        asked = Asked(
            id=secrets.token_hex(8),
            caves=caves,
            name=name,
            effect=tool.effect,
            arguments=own,
            cave=cave if isinstance(cave, str) else None,
            progress=progress,
        )
        if cave is not None and asked.cave is None:
            return Answer(outcome=InvalidArgument("cave: must be the name of a cave"))
        if is_deep(own):  # the layers walk through it too
            return Answer(outcome=InvalidArgument(f"{tool.name}: an argument is nested too deeply"))
        return await self._around(partial(_run, tool), asked)

    async def operate(
        self,
        caves: Caves,
        name: str,
        arguments: Mapping[str, Any],
        *,
        cave: str | None,
        effect: Effect,
        kind: Kind,
        work: Callable[[], Awaitable[T]],
    ) -> T:
        """Do what is no tool within the same layers: make a cave, send a file, run code in a kernel.

        Raises what ``work`` raises, and the GhostError by which a layer refused it.
        """
        done: list[T] = []

        async def run(asked: Asked) -> Answer:
            try:
                done.append(await work())
            except GhostError as error:
                return Answer(outcome=error)
            return Answer(outcome=Reply(text="", data={}))

        asked = Asked(
            id=secrets.token_hex(8),
            caves=caves,
            name=name,
            effect=effect,
            arguments=arguments,
            cave=cave,
            kind=kind,
        )
        answer = await self._around(run, asked)
        if isinstance(answer.outcome, GhostError):
            raise answer.outcome
        return done[0]

    async def _around(self, run: Run, asked: Asked) -> Answer:
        for layer in self._layers:
            run = partial(layer, run)
        return await run(asked)


async def _run(tool: Tool, asked: Asked) -> Answer:
    """The innermost: find the cave, check the arguments, run the handler."""
    try:
        place = asked.place = await asked.caves.place(asked.cave)
    except Exception as exc:  # noqa: BLE001 - foreseen() logs what nobody foresaw
        return Answer(outcome=foreseen(exc, asked.name))
    masker = place.link.masker
    progress = asked.progress if masker is None else partial(_report, asked.progress, masker)
    began = time.time()
    try:
        call = Call(cave=place.cave, keep=place.keep, progress=progress)
        reply = await invoke(tool, call, asked.arguments)
        _tell_refusals(place.cave, began, reply)
        return Answer(outcome=_masked(reply, masker), note=place.note, place=place)
    except Exception as exc:  # noqa: BLE001 - as above
        error = await asked.caves.failed(place, foreseen(exc, asked.name, masker))
        _tell_refusals(place.cave, began, error)
        return Answer(outcome=_masked_error(error, masker), note=place.note, place=place)


def _tell_refusals(cave: Cave, began: float, outcome: Reply | GhostError) -> None:
    """Say with an outcome what the cave's network refused meanwhile, so that the caller can act on it."""
    if cave.info.spec.network.mode == "none":
        return
    from ghost_mcp.egress import refusals  # most caves have no network

    if refused := refusals.refused_since(cave, began):
        refusals.told(outcome, refused)


# The link masks what a warden says. What a page says comes another way, and what is said may be put together
# from pieces: hence once more, here.


def _masked(reply: Reply, masker: Masker | None) -> Reply:
    if masker is None:
        return reply
    return replace(
        reply,
        text=masker.text(reply.text),
        data=masker.value(reply.data),
        handles=[replace(handle, name=masker.text(handle.name)) for handle in reply.handles],
    )


def _masked_error(error: GhostError, masker: Masker | None) -> GhostError:
    if masker is not None:
        error.message, error.hint = masker.text(error.message), masker.text(error.hint)
        error.data, error.args = masker.value(error.data), (error.message,)
    return error


async def _report(
    progress: Progress,
    masker: Masker,
    done: float,
    total: float | None = None,
    message: str | None = None,
) -> None:
    await progress(done, total, None if message is None else masker.text(message))


def foreseen(exc: Exception, what: str, masker: Masker | None = None) -> GhostError:
    """The GhostError behind an exception. Anything else is a bug: logged under an id, told only by the id."""
    leaf = exc
    while isinstance(leaf, ExceptionGroup):
        leaf = (leaf.subgroup(GhostError) or leaf).exceptions[0]
    if isinstance(leaf, GhostError):
        return leaf
    number = secrets.token_hex(4)
    if masker is None:
        _log.error("error %s in %s", number, what, exc_info=exc)
    else:
        trace = masker.text("".join(traceback.format_exception(exc)))
        _log.error("error %s in %s\n%s", number, what, trace)
    return Internal(
        f"Ghost failed inside (error {number})",
        hint="Its log says why, under that id. Another way of asking may work.",
    )
