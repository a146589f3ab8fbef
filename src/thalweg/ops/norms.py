"""Norms between the matrix products of a layer, alone or with the gate beside them, each row on its own.

Legend: N rows, D channels, G groups of D / G channels, H heads of P channels.

    rms_norm(x)   = x / sqrt(mean(x^2) + eps) * weight
    layer_norm(x) = (x - mean(x)) / sqrt(variance(x) + eps)

Everything is computed in float32 (float64 for float64) and rounded once at the end.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg import kernels
from thalweg.ops.activations import sigmoid, silu
from thalweg.ops.tiles import in_tiles, tiles, wide

Gate: TypeAlias = Literal["silu", "sigmoid"]


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    groups: int = 1,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(…, D) -> (…, D) `dtype`: each of `groups` equal parts by its own root mean square, times weight, plus bias."""
    if groups == 1 and bias is None and (run := kernels.kernel("rms_norm", x, dtype=dtype)):
        return run(x, weight, eps, dtype)
    parts = x.unflatten(-1, (groups, -1))
    square = torch.linalg.vector_norm(parts, dim=-1, keepdim=True, dtype=wide(x)).square()
    scale = torch.rsqrt(square / parts.shape[-1] + eps)
    normed = (parts.to(wide(x)) * scale).flatten(-2) * weight
    return (normed if bias is None else normed + bias).to(dtype)


def rms_norm_blocks(n: int, width: int, device: torch.device, dtype: torch.dtype) -> list[int]:
    """Bytes of each tensor that `rms_norm` of n rows to `dtype` makes besides its result."""
    if dtype.itemsize != 2 or kernels.planned("rms_norm", device, dtype):
        return []
    return [4 * n * width] * 6


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    """(N, D) twice -> (N, D) in y's dtype: the norm of y * silu(z), of each group on its own (Mamba2)."""
    if not in_tiles(y):
        gated = y.to(wide(y)) * silu(z.to(wide(y)))
        return rms_norm(gated, weight, eps, groups=groups, dtype=y.dtype)
    out = torch.empty_like(y)
    for rows in tiles(len(y)):
        gated = silu(z[rows].to(wide(z)), inplace=z.dtype != wide(z)).mul_(y[rows])
        parts = gated.unflatten(1, (groups, -1))
        square = torch.linalg.vector_norm(parts, dim=2, keepdim=True).square_()
        parts.mul_(square.div_(parts.shape[2]).add_(eps).rsqrt_())
        torch.mul(gated, weight, out=gated)
        out[rows] = gated
    return out


def rms_norm_gate(y: Tensor, gate: Tensor | None, weight: Tensor, eps: float, act: Gate = "silu") -> Tensor:
    """(N, H, P) and (N, H * P) -> (N, H, P) in y's dtype: the norm of each head, times act(gate) (Gated DeltaNet).

    Without gradients the memory of y and gate is used again.
    """
    if gate is not None and (run := kernels.kernel("rms_norm_gate", y, gate)):
        return run(y, gate, weight, eps, act)
    gate = None if gate is None else gate.view_as(y)
    function = silu if act == "silu" else sigmoid

    def compute(y: Tensor, gate: Tensor | None) -> Tensor:
        normed = rms_norm(y, weight, eps, dtype=wide(y))
        if gate is None:
            return normed.to(y.dtype)
        gate = gate.to(normed.dtype)
        return (normed * function(gate, inplace=not gate.requires_grad)).to(y.dtype)

    if not in_tiles(y):
        return compute(y, gate)
    for rows in tiles(len(y)):
        y[rows] = compute(y[rows], None if gate is None else gate[rows])
    return y


def head_norm_gate(y: Tensor, o: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(N, H, P) and (N, H * P) -> (N, H * P) in y's dtype: LayerNorm of each head, times weight, plus bias, times
    sigmoid(o) (xLSTM). Without gradients o's memory is used again."""
    if run := kernels.kernel("head_norm_gate", y, o):
        return run(y, o, weight, bias, eps)

    def norm(y: Tensor) -> Tensor:
        normed = F.layer_norm(y.to(wide(y)), y.shape[2:], eps=eps).flatten(1)
        return normed * weight if bias is None else torch.addcmul(bias.to(normed.dtype), normed, weight)

    if not in_tiles(y):
        return (norm(y) * sigmoid(o.to(wide(o)))).to(y.dtype)
    for rows in tiles(len(y)):
        o[rows] = norm(y[rows]).mul_(sigmoid(o[rows].to(wide(o)), inplace=True))
    return o
