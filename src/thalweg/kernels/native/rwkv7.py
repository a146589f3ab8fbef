"""The kernels of rwkv7.cpp: RWKV-7 between its matrix products, and its scan. Letters: ops/time_mix.py, ops/wkv7.py.

All tensors are contiguous; "products" are of the dtype of the weights, everything else is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.kernels.native.library import call, empty, row_targets
from thalweg.packing import Packing


def token_mix(x: Tensor, before: Tensor, mixes: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """`ops.time_mix.token_mix`."""
    out = empty(len(mixes), *x.shape, dtype=dtype)
    call("mix", dtype, x, before, mixes, len(mixes), out, *x.shape)
    return out.unbind()


def scan_inputs(
    w: Tensor,
    a: Tensor,
    k: Tensor,
    v: Tensor,
    bias_w: Tensor,
    bias_a: Tensor,
    k_k: Tensor,
    k_a: Tensor,
    blend: tuple[Tensor, Tensor, Tensor] | None,
    n_heads: int,
    out: Sequence[Tensor] | None,
) -> Sequence[Tensor]:
    """`ops.time_mix.scan_inputs`."""
    rows, d = k.shape
    out = out or [empty(rows, width) for width in (d, d, v.shape[1], d, d)]
    parameters = [p.float() for p in (bias_w, bias_a, k_k, k_a)]
    lora, bias, first = blend or (None, None, None)
    call(
        "rwkv7_written", v.dtype, w, a, k, *parameters, v, lora, None if bias is None else bias.float(), first, *out,
        rows, n_heads, d // n_heads, v.shape[1],
    )  # fmt: skip
    return out


def scan_output(
    y: Tensor, r: Tensor, k: Tensor, v: Tensor, r_k: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """`ops.time_mix.scan_output`."""
    heads, width = r_k.shape
    out = torch.empty_like(gate)
    call(
        "rwkv7_read", gate.dtype, y, r, k, v, r_k.float(), gate, weight.float(), bias.float(), out, len(y), heads,
        width, y.shape[1] // heads, float(eps),
    )  # fmt: skip
    return out


def relu_square(x: Tensor) -> Tensor:
    """relu(x)^2 in place, (n, F) products."""
    call("relu_square", x.dtype, x, *x.shape)
    return x


def wkv7(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    kk: Tensor,
    a: Tensor,
    packing: Packing,
    *,
    initial_state: Tensor | None,
    rows: Sequence[int] | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """`ops.wkv7` token by token (`chunk_size` has no meaning), all float32."""
    r = r if rows is None or len(r) != packing.n_tokens else r[list(rows)]
    r, log_w, k, v, kk, a = (t.contiguous() for t in (r, log_w, k, v, kk, a))
    heads, key_width = k.shape[1:]
    y = empty(len(r), *v.shape[1:])
    final = empty(len(packing.wanted), *v.shape[1:], key_width)
    call(
        "wkv7", None, r, log_w, k, v, kk, a, row_targets(packing.n_tokens, rows), packing.bounds,
        packing.wanted_rows, packing.n_segments,
        None if initial_state is None else initial_state.float().contiguous(), packing.initial_rows, y, final, heads,
        key_width, v.shape[2],
    )  # fmt: skip
    return y, final
