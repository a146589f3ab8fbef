"""Gates and sums between the matrix products of a layer, computed in float32 and rounded once, each row on its own.

float64 is computed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg import kernels
from thalweg.ops.activations import silu
from thalweg.ops.tiles import in_tiles, tiles, wide


def silu_multiply(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, (N, F) each -> (N, F); without gradients on the CPU gate is overwritten."""
    if run := kernels.kernel("silu_multiply", gate, up):
        return run(gate, up)
    if not in_tiles(gate):
        return (silu(gate.to(wide(gate))) * up).to(gate.dtype)
    for rows in tiles(len(gate)):
        if gate.dtype == wide(gate):
            silu(gate[rows], inplace=True).mul_(up[rows])
        else:
            gate[rows] = silu(gate[rows].float(), inplace=True).mul_(up[rows])
    return gate


def add(u: Tensor, x: Tensor) -> Tensor:
    """u + x, (N, D) each -> (N, D) in u's dtype; without gradients u is overwritten."""
    if torch.is_grad_enabled():
        return u + x
    if u.dtype == torch.float32 and u.is_contiguous() and (run := kernels.kernel("add", x)):
        return run(u, x)
    return u.add_(x)
