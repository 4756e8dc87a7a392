# Only a person's yes grants here, for one exact target and a bounded time. Silence, doubt and odd answers are a no.
"""Asking the person at the client about what a cave's network refused, in both protocol eras.

A client of the handshake era is sent a request while its call waits. A client of the modern era gets its answer in
two rounds: the call's own outcome is held here meanwhile, so that its second round does not run the tool again.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mcp import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequiredResult,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from ghost_mcp.egress.refusals import askable, granted
from ghost_mcp.errors import GhostError

if TYPE_CHECKING:
    from ghost_mcp.calls import Answer
    from ghost_mcp.cave import Cave
    from ghost_mcp.places import Caves
    from ghost_servers.serving.server import Context

__all__ = ["Asking"]

GRANT_S = 600.0
ANSWER_S = 45.0  # some clients give a call a minute
HELD_S = 300.0
MAX_HELD = 64
QUIET_S = 600.0  # who was asked about a target is not asked about it again so soon
MAX_QUIET = 4096
_KEY = "network"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """An outcome that waits for the person's word. ``cave`` and ``params`` are what the second round must repeat."""

    answer: Answer
    cave: Cave
    rules: tuple[str, ...]
    params: tuple[str, dict[str, Any]]
    until: float = field(default_factory=lambda: time.monotonic() + HELD_S)


class Asking:
    """One for each server. What it remembers is bounded, and lost with the process: a second round then fails."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._asked: dict[tuple[str, str], float] = {}

    async def ask(
        self, ctx: Context, params: CallToolRequestParams, caves: Caves, answer: Answer
    ) -> Answer | InputRequiredResult:
        """The answer, with what the person granted told in it; or the question about it, for a modern client."""
        refused = answer.outcome.data.get("blocked")
        if not refused or answer.place is None or not caves.may_grant or not _can_be_asked(ctx):
            return answer
        cave = answer.place.cave
        rules = self._fresh(cave.id, askable(refused))
        if not rules:
            return answer
        form = _form(cave.name, rules)
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            held = _Held(answer=answer, cave=cave, rules=rules, params=_identity(params))
            return InputRequiredResult(
                input_requests={_KEY: ElicitRequest(params=form)}, request_state=self._hold(held)
            )
        if ctx.session.can_send_request:
            _grant(cave, rules, await _elicited(ctx, form), answer)
        return answer

    async def second_round(self, params: CallToolRequestParams, caves: Caves) -> Answer:
        """What was held for a call that comes again. Raises MCPError when it is not that call, or too late."""
        held = self._held.pop(params.request_state or "", None)
        if held is None or held.until < time.monotonic() or held.params != _identity(params):
            raise _lost()
        try:
            place = await caves.place(_identity(params)[1].get("cave"))
        except GhostError:
            raise _lost() from None
        if place.cave.id != held.cave.id or not caves.may_grant:
            raise _lost()
        given = (params.input_responses or {}).get(_KEY)
        word = given if isinstance(given, ElicitResult) else None
        _grant(held.cave, held.rules, word, held.answer)
        return held.answer

    def _fresh(self, cave_id: str, rules: list[str]) -> tuple[str, ...]:
        """Those that nobody was asked about lately, marked as asked: a cave cannot wear a person out."""
        now = time.monotonic()
        while self._asked and (
            len(self._asked) > MAX_QUIET or next(iter(self._asked.values())) < now
        ):
            del self._asked[next(iter(self._asked))]
        fresh = tuple(rule for rule in rules if (cave_id, rule) not in self._asked)
        self._asked.update({(cave_id, rule): now + QUIET_S for rule in fresh})
        return fresh

    def _hold(self, held: _Held) -> str:
        now = time.monotonic()
        while self._held and (
            len(self._held) >= MAX_HELD or next(iter(self._held.values())).until < now
        ):
            del self._held[next(iter(self._held))]
        key = secrets.token_urlsafe(32)
        self._held[key] = held
        return key


def _lost() -> MCPError:
    return MCPError(
        code=INVALID_PARAMS,
        message="Invalid or expired requestState: the call was carried out once",
    )


def _identity(params: CallToolRequestParams) -> tuple[str, dict[str, Any]]:
    return params.name, params.arguments or {}


def _can_be_asked(ctx: Context) -> bool:
    """Whether the client shows forms. ``elicitation: {}`` is from before there were other kinds."""
    told = ctx.session.client_capabilities
    elicitation = told.elicitation if told is not None else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


def _form(cave: str, rules: tuple[str, ...]) -> ElicitRequestFormParams:
    minutes = f"{GRANT_S / 60:g} minutes"
    return ElicitRequestFormParams(
        message=f"A program in the cave {cave} wanted to reach {', '.join(rules)}, which its network policy "
        f"does not list. What you allow, any program there may reach for {minutes}, and send to.",
        requested_schema={
            "type": "object",
            "properties": {
                f"allow_{number}": {
                    "type": "boolean",
                    "title": f"Allow {rule} for {minutes}",
                    "default": False,
                }
                for number, rule in enumerate(rules)
            },
        },
    )


async def _elicited(ctx: Context, form: ElicitRequestFormParams) -> ElicitResult | None:
    try:
        return await ctx.session.send_request(
            ElicitRequest(params=form),
            ElicitResult,
            request_read_timeout_seconds=ANSWER_S,
            metadata=ServerMessageMetadata(related_request_id=ctx.request_id),
        )
    except (MCPError, ValueError) as exc:  # no answer in time, or none that means anything
        _log.info("the person was not asked about the network: %s", type(exc).__name__)
        return None


def _grant(cave: Cave, rules: tuple[str, ...], word: ElicitResult | None, answer: Answer) -> None:
    content = (word.content or {}) if word is not None and word.action == "accept" else {}
    chosen = [rule for number, rule in enumerate(rules) if content.get(f"allow_{number}") is True]
    try:
        for rule in chosen:
            cave.allow(rule, for_s=GRANT_S)
    except (GhostError, OSError) as exc:
        _log.warning("what was allowed to cave %s could not be granted: %s", cave.name, exc)
        return
    granted(answer.outcome, chosen, GRANT_S)
