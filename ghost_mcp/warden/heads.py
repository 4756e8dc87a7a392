# A head says what the hub, or whoever holds it, liked: what is read from one here is bounded, or refused.
"""Values out of a message's head. All raise invalid_argument."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]

from .peers import WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_SECONDS = 1e9


def number(head: dict[str, Any], key: str, default: int, low: int, high: int) -> int:
    """A bounded whole number from a head."""
    value = head.get(key)
    if value is None:
        return default
    if type(value) is not int:
        raise WardenError("invalid_argument", f"{key} is not a whole number: {str(value)[:40]}")
    return max(low, min(value, high))


def seconds(head: dict[str, Any], key: str) -> float | None:
    """A span of time from a head, or None."""
    value = head.get(key)
    if value is None:
        return None
    if type(value) not in (int, float):
        raise WardenError(
            "invalid_argument", f"{key} is not a number of seconds: {str(value)[:40]}"
        )
    return max(0.0, min(float(value), MAX_SECONDS))


def signal_number(head: dict[str, Any]) -> int:
    """The signal a head names; 0 reaches nobody and only counts."""
    number = head.get("signal", _signal.SIGTERM)
    if type(number) is not int or not 0 <= number < _signal.NSIG:
        raise WardenError("invalid_argument", f"not a signal: {str(number)[:40]}")
    return number


def rows_and_columns(size: Any) -> tuple[int, int]:
    """A terminal's size."""
    if type(size) is not list or [type(n) for n in size] != [int, int]:
        raise WardenError(
            "invalid_argument", f"not a terminal's rows and columns: {str(size)[:40]}"
        )
    rows, columns = (max(1, min(n, 1000)) for n in size)
    return rows, columns
