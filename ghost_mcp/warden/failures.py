"""How a failure is told to the hub. Loaded when something fails."""

from __future__ import annotations

import errno
import os

from .peers import WardenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ERRNO_CODES = {
    errno.ENOENT: "file_not_found",
    errno.ENOTDIR: "not_a_directory",
    errno.EISDIR: "is_a_directory",
    errno.EEXIST: "file_exists",
    errno.EACCES: "permission_refused",
    errno.EPERM: "permission_refused",
    errno.EROFS: "read_only",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EFBIG: "too_large",
    errno.ENAMETOOLONG: "invalid_path",
    errno.ELOOP: "invalid_path",
    errno.EINVAL: "invalid_argument",
    errno.ENOTEMPTY: "not_empty",
    errno.ECONNREFUSED: "connection_refused",
    errno.EAGAIN: "limit_exceeded",
    errno.ENOMEM: "limit_exceeded",
    errno.EMFILE: "limit_exceeded",
}


def error_head(exc: BaseException) -> dict[str, Any]:
    """What a failed operation answers with; an unforeseen error says its class, never its text."""
    if isinstance(exc, WardenError):
        return exc.head
    if isinstance(exc, OSError):
        name = f"{exc.filename}: " if isinstance(exc.filename, str) else ""
        code = _ERRNO_CODES.get(exc.errno or 0, "io_error")
        return {"code": code, "message": f"{name}{os.strerror(exc.errno or errno.EIO)}"[:1000]}
    return {"code": "internal", "message": f"the warden failed: {type(exc).__name__}"}
