"""prctl(2), which Python does not offer, without the price of importing ctypes."""

from __future__ import annotations

import _ctypes

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36

_handle = _ctypes.dlopen("libc.so.6", 2)
_prctl = _ctypes.dlsym(_handle, "prctl")


def prctl(option: int, value: int) -> int:
    """prctl(2); 0 or -1."""
    return int(_ctypes.call_function(_prctl, (option, value, 0, 0, 0)))
