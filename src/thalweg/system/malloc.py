"""The C library's memory allocator, told what it would otherwise find out by and by."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Iterable

import torch

from thalweg.system.resident import resident_bytes

LARGE = 30 << 20
"""Bytes from which a freed block goes back to the system at once; smaller ones are kept for reuse. A little below the
32 MiB that glibc allows: steps of 16,384 tokens are seldom full, and blocks just below leave the largest holes."""

MOST_RESERVED = 256 << 20
"""Bytes that are taken in advance at most. Steps that need more were not the same at every run with half of it."""

LEAST_ROOM, MOST_ROOM = 20 << 20, 40 << 20
"""Bytes of holes between temporaries, at least and at most."""

BLOCK = 8 << 20
"""Bytes of the pieces in which they are taken: as large as a temporary, and below `LARGE`."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_reserved = 0
"""Bytes."""
_enough = 0
"""Bytes of temporaries and holes after a step at which the holes are given back."""
_live = 0
"""Bytes that were resident when they last were."""


@functools.cache
def settle() -> bool:
    """Fix the thresholds of glibc at once where they end up anyway.

    They begin at 128 KiB and move towards 32 MiB with every larger block that is freed. Until then blocks are spread
    over two kinds of memory in an order that differs from run to run, and so does the peak: by 5 % between short and
    long texts, and by a fifth between two equal runs of large steps. False on other C libraries, or where the user
    has set thresholds in the environment: nothing is changed then.
    """
    chosen = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    if sys.platform != "linux" or any(name in os.environ for name in chosen):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt(_M_MMAP_THRESHOLD, LARGE)
    mallopt(_M_TRIM_THRESHOLD, 2 * MOST_RESERVED)
    return True


def pooled(blocks: Iterable[int]) -> int:
    """Bytes of those blocks that come from the pool of freed memory; very large ones are mappings of their own."""
    return sum(size for size in blocks if size < LARGE)


def room(n_bytes: int) -> int:
    """Bytes of holes that temporaries of `n_bytes` end up with.

    They are of many sizes and leave holes that the next ones do not fill: up to half as much again after a hundred
    steps (measured), and one block more within a step.
    """
    return min(max(n_bytes // 2, LEAST_ROOM), MOST_ROOM) + BLOCK


def reserve(blocks: Iterable[int]) -> None:
    """Before a step: take the memory for temporaries of so many bytes at once, with room for holes.

    Happens once in a process for each larger step, so that a long text's peak is that of its first step. A step that is
    only a little larger takes of the room (62.0 MiB after 61.8).

    Holes still grow, in four runs of six by up to 20 MiB in a million tokens, as small blocks that stay come to lie in
    them. When they fill half of their room, so that a step may still take a large block more, all are given back: the
    steps that follow take again what they need. Nothing on other C libraries.
    """
    global _reserved, _enough
    if not settle():
        return
    n_bytes = pooled(blocks)
    if _reserved < min(n_bytes + room(n_bytes) // 2, MOST_RESERVED):
        _give_back()
        _reserved = min(n_bytes + room(n_bytes), MOST_RESERVED)
        _enough = n_bytes + room(n_bytes) // 2
        _take(torch.zeros)
    elif (resident_bytes() or 0) > _live + _enough:
        _give_back()
        # The heap's end stays part of it, though not in memory: where it is cut off, the next small blocks come to lie
        # there and leave no room for large temporaries (a run with large states took 351 MiB instead of 290).
        _take(torch.empty)


def _give_back() -> None:
    """Pages of free blocks go to the system."""
    global _live
    ctypes.CDLL(None).malloc_trim(0)
    _live = resident_bytes() or 0


def _take(new: Callable[..., torch.Tensor]) -> None:
    """Have all that is reserved in blocks for a moment."""
    blocks = [new(min(BLOCK, _reserved - start), dtype=torch.uint8) for start in range(0, _reserved, BLOCK)]
    del blocks
