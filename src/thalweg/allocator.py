"""The C library's memory allocator, told what it would otherwise find out by and by."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

LARGE = 32 << 20
"""Bytes from which a freed block goes back to the system at once; smaller ones are kept for reuse."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@functools.cache
def settle() -> None:
    """Fix the thresholds of glibc at once where they end up anyway.

    They begin at 128 KiB and move towards 32 MiB with every larger block that is freed. Until then blocks are spread
    over two kinds of memory in an order that differs from run to run, and so does the peak: by 5 % between short and
    long texts, and by a fifth between two equal runs of large steps. Does nothing on other C libraries, or where the
    user has set thresholds in the environment.
    """
    chosen = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    if sys.platform != "linux" or any(name in os.environ for name in chosen):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE)
        mallopt(_M_TRIM_THRESHOLD, 2 * LARGE)
