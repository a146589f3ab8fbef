"""The kernel of ssd.cpp: the scan of Mamba2, matrix products included, alone or with what surrounds it.

Letters: ops/ssd.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.kernels.native import call
from thalweg.packing import Packing

MACHINES = {"best": -1, "narrow": 0, "wide": 1, "paired": 2}
"""What the products are made for: registers of 8 floats, of 16, of pairs of bfloat16. Where a machine has no registers
of 16 it is "narrow" for all of them."""


class Convolution(NamedTuple):
    """weight (E, W), bias (E,) or None, and the columns before the run, (S_in, W - 1, E) or None for zeros."""

    weight: Tensor
    bias: Tensor | None
    columns: Tensor | None


class Gate(NamedTuple):
    """z (N or M, H * P), and the norm's weight (H * P,), groups and eps."""

    z: Tensor
    weight: Tensor
    groups: int
    eps: float


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
    convolution: Convolution | None = None,
    gate: Gate | None = None,
    machine: str = "best",
) -> tuple[Tensor, Tensor]:
    """As `ops.ssd`, from delta and log_decay (N, H) float32; x (N, H, P), B, C (N, G, K) as `native.usable` asks.

    With a `convolution` x, B and C are neighbours in one tensor, (N, E), and become silu(causal_conv) of it first. With
    a `gate` y becomes its norm of y * silu(z). Everything is summed in float32 and rounded once at the end; "paired"
    also rounds what is multiplied.
    """
    x, B, C = (t if t.stride(1) == t.shape[2] else t.contiguous() for t in (x, B, C))
    n, heads, width = x.shape
    groups, state_width = B.shape[1:]
    targets = None
    if rows is not None:
        targets = torch.full((n,), -1)
        targets[list(rows)] = torch.arange(len(rows))
    taps = bias = columns = z = weight = None
    n_taps = z_stride = norm_groups = 0
    eps = 0.0
    if convolution is not None:
        taps, n_taps = convolution.weight.t().float().contiguous(), convolution.weight.shape[1]
        bias = None if convolution.bias is None else convolution.bias.float()
        columns = None if convolution.columns is None else convolution.columns.to(x.dtype).contiguous()
    if gate is not None:
        z, weight, norm_groups, eps = gate.z, gate.weight.float(), gate.groups, float(gate.eps)
        z_stride = z.stride(0)
    blocks = packing.block_table(chunk_size)
    final = torch.empty(len(packing.wanted), state_width, heads, width)
    y = torch.empty(n if rows is None else len(rows), heads, width, dtype=x.dtype)
    call(
        "ssd", x.dtype, x, x.stride(0), B, B.stride(0), C, C.stride(0), taps, bias, n_taps, columns,
        delta.contiguous(), log_decay.contiguous(), None if D is None else D.float(), blocks, len(blocks),
        min(n, chunk_size), packing.segment_ids, packing.first_seen, packing.n_carried, targets,
        None if initial_state is None else initial_state.contiguous(), z, z_stride, weight, norm_groups, eps,
        y, final, heads, groups, state_width, width, MACHINES[machine],
    )  # fmt: skip
    return y, final
