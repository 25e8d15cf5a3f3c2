"""The C library's heap: what this process frees, it keeps.

By default glibc gives memory at the top of its heap, and every array of 128 KiB or more, back to the kernel, and the
next one has to be had again page by page: at 0.2 … 12 µs a page (a virtual machine's are the dearest) an agent's report
of one second stood still for up to 20 ms, and with it the schedule.
"""

from __future__ import annotations

import contextlib
import ctypes

KEPT_BYTES = 128 << 20
MMAP_BYTES = 32 << 20  # the largest threshold that glibc takes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def keep() -> None:
    """From now on; does nothing where the C library is another one than glibc."""
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
