"""The kernels of kernels.cpp: norm, residual sum, gate, convolution, and the scan of Mamba1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.kernels.native.library import call, empty
from thalweg.packing import Packing


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """(N, D) float32, (D,) -> (N, D) `dtype`: each row by its root mean square, times weight."""
    x = x.contiguous()
    out = empty(*x.shape, dtype=dtype)
    call("rms_norm", dtype, x, weight.float(), out, len(x), x.shape[1], float(eps))
    return out


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, packing: Packing, *, initial_state: Tensor | None, silu: bool
) -> Tensor:
    """y of `ops.causal_conv`; its final state is made of x alone."""
    out = empty(*x.shape, dtype=x.dtype)
    taps = weight.t().float().contiguous()
    rows, channels = x.shape
    call(
        "causal_conv", x.dtype, x, x.stride(0), packing.segment_ids, packing.starts,
        None if initial_state is None else initial_state.to(x.dtype).contiguous(), packing.initial_rows,
        taps, None if bias is None else bias.float(), out, rows, channels, len(taps), int(silu),
    )  # fmt: skip
    return out


def add(u: Tensor, x: Tensor) -> Tensor:
    """(N, D) float32 += (N, D), both contiguous."""
    call("add", x.dtype, u, x, *x.shape)
    return u


def silu_multiply(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, (N, F) each, written to gate."""
    call("silu_multiply", gate.dtype, gate, gate.stride(0), up, up.stride(0), *gate.shape)
    return gate


def rms_norm_gate(y: Tensor, gate: Tensor, weight: Tensor, eps: float, act: str) -> Tensor:
    """(N, H, P), (N, H * P) -> (N, H, P), written to y where that is contiguous."""
    y = y.contiguous()
    call("rms_norm_gate", y.dtype, y, gate, gate.stride(0), weight.float(), *y.shape, float(eps), int(act == "silu"))
    return y


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    packing: Packing,
    *,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    initial_state: Tensor | None,
    rows: Sequence[int] | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """`ops.selective_scan` token by token (`chunk_size` has no meaning). The running states are float64."""
    n, channels = x.shape
    width = A.shape[1]
    y, final = empty(n, channels, dtype=x.dtype), empty(len(packing.wanted), width, channels)
    call(
        "selective_scan", x.dtype, x, x.stride(0), dt, dt.stride(0), A.float().t().contiguous(), B.float().contiguous(),
        C.float().contiguous(), None if dt_bias is None else dt_bias.float(), None if D is None else D.float(),
        int(dt_softplus), packing.bounds, packing.wanted_rows, packing.n_segments,
        None if initial_state is None else initial_state.contiguous(), packing.initial_rows, y, final, channels, width,
    )  # fmt: skip
    return (y if rows is None else y[list(rows)]), final
