"""Calls into `quantize.cpp`: what comes before and after a product of 8-bit integers."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.kernels.native.library import call, empty


def quantize_rows(x: Tensor, signs: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """`ops.quantized.quantize_rows_reference` in one pass: (M, K), (K,) float32 -> (M, K) uint8, (M,) float32."""
    rows, width = x.shape
    q, scales = empty(rows, width, dtype=torch.uint8), empty(rows)
    call("quantize_rows", x.dtype, x, x.stride(0), signs, q, scales, rows, width, block)
    return q, scales


def scale_rows(x: Tensor, scales: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """x (M, N) float32 times (M,) plus (N,), rounded once, to `out` (M, N), whose rows may lie apart."""
    call("scale_rows", out.dtype, x, scales, None if bias is None else bias.float(), out, out.stride(0), *x.shape)
