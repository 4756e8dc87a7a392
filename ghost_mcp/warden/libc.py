"""What Python does not offer of the C library, without the price of importing ctypes."""

from __future__ import annotations

import _ctypes

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

_handle = _ctypes.dlopen("libc.so.6", 2)
_prctl = _ctypes.dlsym(_handle, "prctl")


def prctl(option: int, value: int) -> int:
    """prctl(2); 0 or -1."""
    return int(_ctypes.call_function(_prctl, (option, value, 0, 0, 0)))


def keep_freed(size_bytes: int) -> None:
    """Keep so much freed memory for the next piece of a stream: given back each time, it comes as page faults."""
    mallopt = _ctypes.dlsym(_handle, "mallopt")
    for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        _ctypes.call_function(mallopt, (option, size_bytes))
