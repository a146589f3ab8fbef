"""glibc's allocator: thresholds that are fixed where a process is thalweg's own, and the holes between temporaries.

A program that imports thalweg keeps its allocator as it is. `THALWEG_MALLOC=1` fixes the thresholds of glibc and takes
the memory of temporaries in advance, so that the peak of a run is that of its first step and the same in every process;
the command line and the benchmarks set it unless it is set.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Iterable

import torch

from thalweg.errors import InvalidInputError
from thalweg.system.resident import resident_bytes

SWITCH = "THALWEG_MALLOC"
"""The variable of the environment."""

LARGE = 30 << 20
"""Bytes from which a block that does not fit into the heap becomes a mapping of its own, which goes back to the system
when it is freed. A little below the 32 MiB that glibc allows: steps of 16,384 tokens are seldom full, and blocks just
below leave the largest holes."""

MOST_RESERVED = 512 << 20
"""Bytes that are taken in advance at most. The peaks of equal runs that need more differ."""

LEAST_HOLES, MOST_HOLES = 20 << 20, 40 << 20
"""Bytes of holes between temporaries, at least and at most."""

BLOCK = 8 << 20
"""Bytes of the pieces in which they are taken: as large as a temporary, and below `LARGE`."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_reserved = 0
"""Bytes."""
_trim_above = 0
"""Bytes of temporaries and holes after a step at which the holes are given back."""
_after_trim = 0
"""Bytes that were resident when they last were."""


@functools.cache
def fix_thresholds() -> bool:
    """Fix glibc's thresholds at once where they would end up, if `THALWEG_MALLOC=1`; whether they are fixed.

    They begin at 128 KiB and move towards 32 MiB with every larger block that is freed. Until then blocks are spread
    over two kinds of memory in an order that differs from run to run, and so does the peak, by up to a fifth between
    two equal runs. False on other C libraries, or where the user has set thresholds in the environment.

    Raises:
        InvalidInputError: the variable is neither 0 nor 1.
    """
    switch = os.environ.get(SWITCH, "0")
    if switch not in ("0", "1"):
        raise InvalidInputError(f"{SWITCH} must be 0 or 1, got {switch!r}")
    chosen = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    if switch == "0" or sys.platform != "linux" or any(name in os.environ for name in chosen):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt(_M_MMAP_THRESHOLD, LARGE)
    mallopt(_M_TRIM_THRESHOLD, 2 * MOST_RESERVED)  # an int
    return True


def fragmentation_allowance(blocks: Iterable[int]) -> int:
    """Bytes of the holes between temporaries of these sizes that live at once: what a memory plan adds to their sum.

    They are of many sizes and leave holes that the next ones do not fill. With fixed thresholds: up to half as much
    again after a hundred steps (measured), and one block more within a step; that much is taken in advance. As the
    allocator is found nothing is taken in advance, and an eighth is the median of what was measured (docs/log.md: five
    families, steps of 2,048 to 16,384 tokens, 8- and 4-bit weights; single runs had from a quarter less than what is
    counted to two fifths more).
    """
    blocks = list(blocks)
    if not fix_thresholds():
        return sum(size for size in blocks if size < LARGE) // 8  # the others are mappings
    n_bytes = sum(blocks)
    return min(max(n_bytes // 2, LEAST_HOLES), MOST_HOLES) + BLOCK


def reserve(blocks: Iterable[int]) -> None:
    """Before a step: take the memory for temporaries of so many bytes at once, with room for holes.

    Happens once in a process for each larger step, so that a long text's peak is that of its first step. The largest
    blocks are counted too, although glibc may map them: it does so only where they do not fit into the heap, and if
    that depends on where holes lie, the peaks of equal runs differ (104 to 140 MiB were seen). A step that is only a
    little larger takes of the room (62.0 MiB after 61.8).

    Holes still grow, in four runs of six by up to 20 MiB in a million tokens, as small blocks that stay come to lie in
    them. When they fill half of their room, so that a step may still take a large block more, all are given back: the
    steps that follow take again what they need. Nothing where the thresholds are not fixed.
    """
    global _reserved, _trim_above
    if not fix_thresholds():
        return
    blocks = list(blocks)
    n_bytes, allowance = sum(blocks), fragmentation_allowance(blocks)
    if _reserved < min(n_bytes + allowance // 2, MOST_RESERVED):
        _give_back()
        _reserved = min(n_bytes + allowance, MOST_RESERVED)
        _trim_above = n_bytes + allowance // 2
        _take(torch.zeros)
    elif (resident_bytes() or 0) > _after_trim + _trim_above:
        _give_back()
        # The heap's end stays part of it, though not in memory: where it is cut off, the next small blocks come to lie
        # there and leave no room for large temporaries (a run with large states took 351 MiB instead of 290).
        _take(torch.empty)


def _give_back() -> None:
    """Pages of free blocks go to the system."""
    global _after_trim
    ctypes.CDLL(None).malloc_trim(0)
    _after_trim = resident_bytes() or 0


def _take(new: Callable[..., torch.Tensor]) -> None:
    """Have all that is reserved in blocks for a moment."""
    blocks = [new(min(BLOCK, _reserved - start), dtype=torch.uint8) for start in range(0, _reserved, BLOCK)]
    del blocks
