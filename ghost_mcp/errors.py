# Every failure that a person, a model or a program can act on is one of these. Nothing else crosses a border.
"""One family of errors: a stable ``code``, a message for people, a ``hint`` (the way out), ``retryable``.

MCP, REST (RFC 9457 problem details) and the CLI (exit codes) render the same object. Errors cross the
cave's border as ``{code, message, hint}`` and are rebuilt here from a table, never from a class path.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

__all__ = [
    "BackendUnavailable",
    "CaveGone",
    "CaveNotFound",
    "Conflict",
    "GhostError",
    "Internal",
    "InvalidArgument",
    "LimitExceeded",
    "NotFound",
    "PermissionRefused",
    "ProtocolFailure",
    "QuotaExceeded",
    "TimedOut",
    "Unauthenticated",
    "Unsupported",
    "from_wire",
    "map_os_errors",
]

_MAX_TEXT = 2_000


class GhostError(Exception):
    """An anticipated failure. ``str(error)`` is the message; ``hint`` says what to do next, or is empty."""

    code: str = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.data = dict(data or {})
        if code is not None:
            self.code = code

    def render(self) -> str:
        """Message and hint as one short text, for a model or a terminal."""
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def as_dict(self) -> dict[str, Any]:
        """The error as JSON: ``{code, message, hint, retryable, data?}``."""
        out: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "retryable": self.retryable,
        }
        return {**out, "data": self.data} if self.data else out


class InvalidArgument(GhostError):
    """The caller gave something that cannot be meant."""

    code, http_status, exit_code = "invalid_argument", 400, 2


class PermissionRefused(GhostError):
    """The cave's own permissions, or Ghost's rules, forbid it."""

    code, http_status, exit_code = "permission_refused", 403, 3


class Unauthenticated(GhostError):
    """Nobody knows who asks: no token, or none that is valid."""

    code, http_status, exit_code = "unauthenticated", 401, 3


class NotFound(GhostError):
    """Something named does not exist."""

    code, http_status, exit_code = "not_found", 404, 4


class CaveNotFound(NotFound):
    """No cave of that name."""

    code = "cave_not_found"

    @classmethod
    def among(cls, name: str, there: Iterable[str]) -> Self:
        """The hint tells the first ten of the full names that there are: to an owner those of its own, and to who asks
        by an id none, for that may be anybody's."""
        from ghost_mcp.spec import is_id  # which imports this module

        if is_id(name):
            return cls(f"no such cave: {name}")
        owner, slash, _ = name.partition("/")
        own = [one for one in there if not slash or one.startswith(f"{owner}/")]
        known = ", ".join(sorted(own)[:10])
        hint = f"Caves here: {known}." if known else "There are none: ghost create NAME"
        return cls(f"no such cave: {name[:64]}", hint=hint)


class Conflict(GhostError):
    """The thing is in a state that does not allow this: it exists, it changed, it is stopped."""

    code, http_status, exit_code = "conflict", 409, 5


class CaveGone(GhostError):
    """The cave ended while, or before, it was asked."""

    code, http_status, exit_code, retryable = "cave_gone", 410, 6, True


class LimitExceeded(GhostError):
    """A limit was reached: size, count, memory, disk."""

    code, http_status, exit_code = "limit_exceeded", 413, 7


class QuotaExceeded(GhostError):
    """The caller has, or asks for, more at once than one caller may."""

    code, http_status, exit_code, retryable = "quota_exceeded", 429, 7, True


class TimedOut(GhostError):
    """It did not finish within its time."""

    code, http_status, exit_code, retryable = "timed_out", 504, 8, True


class Unsupported(GhostError):
    """This backend, platform or image cannot do it."""

    code, http_status, exit_code = "unsupported", 501, 9


class BackendUnavailable(GhostError):
    """What the backend stands on is missing or does not answer."""

    code, http_status, exit_code, retryable = "backend_unavailable", 503, 10, True


class ProtocolFailure(GhostError):
    """A warden or an upstream server broke the rules of its protocol."""

    code, http_status, exit_code = "protocol_failure", 502, 11


class Internal(GhostError):
    """A bug in Ghost. Carries an id that stands in the log beside the traceback."""

    code = "internal"


_FAMILIES: tuple[type[GhostError], ...] = (
    InvalidArgument,
    PermissionRefused,
    NotFound,
    CaveNotFound,
    Conflict,
    CaveGone,
    LimitExceeded,
    TimedOut,
    Unsupported,
    ProtocolFailure,
)
# Codes that a warden may answer with, and the family each belongs to.
_WIRE_CODES: dict[str, type[GhostError]] = {cls.code: cls for cls in _FAMILIES} | {
    "file_not_found": NotFound,
    "not_a_directory": InvalidArgument,
    "is_a_directory": InvalidArgument,
    "not_a_file": InvalidArgument,
    "invalid_path": InvalidArgument,
    "path_outside": PermissionRefused,
    "file_exists": Conflict,
    "file_changed": Conflict,
    "not_empty": Conflict,
    "no_space": LimitExceeded,
    "too_large": LimitExceeded,
    "read_only": PermissionRefused,
    "program_not_found": NotFound,
    "session_not_found": NotFound,
    "command_not_found": NotFound,
    "session_busy": Conflict,
    "connection_refused": NotFound,
    "service_not_found": NotFound,
    "service_failed": BackendUnavailable,
    "service_missing": Unsupported,
    "bad_pattern": InvalidArgument,
    "unsupported_format": InvalidArgument,
    "io_error": LimitExceeded,
}


def from_wire(head: Mapping[str, Any]) -> GhostError:
    """Rebuild an error that a warden answered with. Unknown codes become ProtocolFailure; text is bounded."""
    code = str(head.get("code", ""))[:64]
    message = str(head.get("message", "the warden gave no reason"))[:_MAX_TEXT]
    hint = str(head.get("hint", ""))[:_MAX_TEXT]
    data = head.get("data")
    family = _WIRE_CODES.get(code, ProtocolFailure)
    return family(
        message,
        hint=hint,
        code=code if family is not ProtocolFailure else None,
        data=data if isinstance(data, dict) else None,
    )


_OS_CODES: dict[int, tuple[type[GhostError], str]] = {
    errno.ENOSPC: (LimitExceeded, "no_space"),
    errno.EDQUOT: (LimitExceeded, "no_space"),
    errno.EMFILE: (LimitExceeded, "limit_exceeded"),
    errno.ENFILE: (LimitExceeded, "limit_exceeded"),
    errno.EAGAIN: (LimitExceeded, "limit_exceeded"),
    errno.ENOMEM: (LimitExceeded, "limit_exceeded"),
    errno.EACCES: (PermissionRefused, "permission_refused"),
    errno.EPERM: (PermissionRefused, "permission_refused"),
    errno.EROFS: (PermissionRefused, "read_only"),
}


@contextmanager
def map_os_errors(doing: str) -> Iterator[None]:
    """Turn the operating system's refusals in a block into errors of this family; ``doing`` says what failed."""
    try:
        yield
    except OSError as exc:
        family, code = _OS_CODES.get(exc.errno or 0, (BackendUnavailable, "backend_unavailable"))
        where = f" ({exc.filename})" if isinstance(exc.filename, str) else ""
        raise family(f"{doing}: {exc.strerror or exc}{where}", code=code) from exc
