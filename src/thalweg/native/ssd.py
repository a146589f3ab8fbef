"""The kernel of ssd.cpp: the scan of Mamba2, its matrix products included. Letters: ops/ssd.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.native import call
from thalweg.packing import Packing

MACHINES = {"best": -1, "narrow": 0, "wide": 1, "paired": 2}
"""What the products are made for: registers of 8 floats, of 16, of pairs of bfloat16 (for bfloat16 only); they run
everywhere. "best": what this machine has."""


def ssd(
    x: Tensor,
    delta: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    packing: Packing,
    *,
    D: Tensor | None,
    initial_state: Tensor | None,
    rows: Sequence[int] | None,
    chunk_size: int,
    machine: str = "best",
) -> tuple[Tensor, Tensor]:
    """As `ops.ssd`, from delta and log_decay (N, H) float32; x (N, H, P), B, C (N, G, K) as `native.usable` asks.

    Accumulates in float32; in bfloat16 "paired" rounds what it multiplies: decayed scores, states and steps times x.
    """
    x, B, C = (t if t.stride(1) == t.shape[2] else t.contiguous() for t in (x, B, C))
    n, heads, width = x.shape
    groups, state_width = B.shape[1:]
    wanted = None
    if rows is not None:
        wanted = torch.zeros(n, dtype=torch.uint8)
        wanted[list(rows)] = 1
    blocks = packing.block_table(chunk_size)
    y = torch.empty(n, heads, width, dtype=x.dtype)
    final = torch.empty(len(packing.final), state_width, heads, width)
    call(
        "ssd", x.dtype, x, x.stride(0), B, B.stride(0), C, C.stride(0), delta.contiguous(), log_decay.contiguous(),
        None if D is None else D.float(), blocks, len(blocks), min(n, chunk_size), packing.first_seen, wanted,
        None if initial_state is None else initial_state.contiguous(), y, final, heads, groups, state_width, width,
        MACHINES[machine],
    )  # fmt: skip
    return y if rows is None else y[list(rows)], final
