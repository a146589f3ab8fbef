"""How rows are treated: in which dtype, and, on the CPU where no gradients are wanted, some at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CACHE_ROWS = 128
"""Rows treated at a time between two matrix products, so that float32 temporaries stay in a core's cache."""


def in_tiles(x: Tensor) -> bool:
    """Whether results may be written over arguments, some rows at a time: on the CPU, without gradients."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def tiles(n: int, size: int = CACHE_ROWS) -> Iterator[slice]:
    """0 … n in slices of `size`."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def wide(t: Tensor) -> torch.dtype:
    """What is computed in between two roundings: float32, and float64 for float64."""
    return torch.float32 if t.dtype.itemsize < 8 else torch.float64
