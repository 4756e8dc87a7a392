# Bounds are checked, not published: in a schema they would cost every conversation what few calls need.
"""A check for a number among a tool's arguments."""

from __future__ import annotations

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError


def within(low: int, high: int | None = None) -> AfterValidator:
    """Refuses a number outside of the bounds, which are allowed themselves; None passes."""

    def check(value: int | None) -> int | None:
        if value is not None and (value < low or (high is not None and value > high)):
            span = f"at least {low}" if high is None else f"{low} to {high}"
            raise PydanticCustomError("range", f"must be {span}")
        return value

    return AfterValidator(check)
