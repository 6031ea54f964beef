"""How the CPU's memory is kept between steps.

A step's activations are freed in its backward pass. The C library then gives large blocks back to the kernel, which
hands them out again page by page, each set to zero, in the next step: some 60,000 page faults and 3 % of the time of a
step of 50 M parameters. Whoever works through blocks of many MiB, as workers of `data tokenize`, has the same.
"""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers, of malloc.h."""
KEPT_BYTES = 1 << 30
"""Freed memory that a process keeps at most at the end of its heap."""
_LARGEST_BLOCK = 256 << 20
"""Larger ones are the kernel's own, and go back to it."""
_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_blocks() -> bool:
    """Has the C library keep what is freed, up to KEPT_BYTES; whether so.

    Not where the user's environment says how, nor in a C library without `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in _USERS_OWN):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES))


def give_back_freed_blocks() -> None:
    """Gives what is freed to the kernel, before a fork: who writes there next gets new pages and copies none.

    Not where the user's environment says how it is kept, nor in a C library without `malloc_trim`.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None and not any(name in os.environ for name in _USERS_OWN):
        trim(0)
