"""How the CPU's memory is kept between steps.

A step's activations are freed in its backward pass. The C library then gives large blocks back to the kernel, which
hands them out again page by page, each set to zero, in the next step: some 60,000 page faults and 3 % of the time of a
step of 50 M parameters. Whoever works through blocks of many MiB, as workers of `data tokenize`, has the same.
"""

import contextlib
import ctypes
import mmap
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
    mallopt = _of_c_library("mallopt")
    return mallopt is not None and bool(
        mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
    )


def give_back_freed_blocks() -> None:
    """Gives what is freed to the kernel, before a fork: who writes there next gets new pages and copies none.

    Not where the user's environment says how it is kept, nor in a C library without `malloc_trim`.
    """
    if (trim := _of_c_library("malloc_trim")) is not None:
        trim(0)


def _of_c_library(name: str):
    """Its function that says how memory is kept; None where it has none, or where the user's environment says how."""
    return None if any(name in os.environ for name in _USERS_OWN) else getattr(ctypes.CDLL(None), name, None)


def huge_pages(size: int) -> mmap.mmap:
    """New memory of zeros, at the begin of a page; in huge pages where the kernel has them."""
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them: small pages do, slower
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
