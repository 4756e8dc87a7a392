# A cave's states as a table: what is absent is illegal. Nothing else decides what may follow what.
"""States of a cave and what may be asked of it in each."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType

from ghost_mcp.errors import CaveGone, Conflict

__all__ = ["TRANSITIONS", "Event", "State", "after"]


class State(StrEnum):
    """``running`` answers calls; ``paused`` is frozen; ``stopped`` has files but no processes; ``ended``
    reached its deadline or died, and is removed at the next sweep; ``gone`` no longer exists."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    ENDED = "ended"
    GONE = "gone"


class Event(StrEnum):
    CALL = "call"
    START = "start"
    STOP = "stop"
    PAUSE = "pause"
    DESTROY = "destroy"


TRANSITIONS = MappingProxyType(
    {
        State.RUNNING: {
            Event.CALL: State.RUNNING,
            Event.START: State.RUNNING,
            Event.STOP: State.STOPPED,
            Event.PAUSE: State.PAUSED,
            Event.DESTROY: State.GONE,
        },
        State.PAUSED: {
            Event.START: State.RUNNING,
            Event.STOP: State.STOPPED,
            Event.PAUSE: State.PAUSED,
            Event.DESTROY: State.GONE,
        },
        State.STOPPED: {
            Event.START: State.RUNNING,
            Event.STOP: State.STOPPED,
            Event.DESTROY: State.GONE,
        },
        State.ENDED: {
            Event.START: State.RUNNING,
            Event.STOP: State.STOPPED,
            Event.DESTROY: State.GONE,
        },
        State.GONE: {Event.DESTROY: State.GONE},
    }
)


def after(state: State, event: Event, name: str) -> State:
    """The state that ``event`` leads to. Raises Conflict or CaveGone, with the way out."""
    following = TRANSITIONS[state].get(event)
    if following is not None:
        return following
    if state is State.GONE:
        raise CaveGone(f"cave {name} no longer exists", hint="Create it again.")
    if Event.START in TRANSITIONS[state]:
        raise Conflict(f"cave {name} is {state.value}", hint=f"Start it first: ghost start {name}")
    raise Conflict(f"cave {name} is {state.value}: cannot {event.value} it")
