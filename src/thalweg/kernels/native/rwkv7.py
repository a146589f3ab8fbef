"""The kernels of rwkv7.cpp: RWKV-7 between its matrix products, and its scan. Letters: models/rwkv7.py, ops/wkv7.py.

All tensors are contiguous; "products" are of the dtype of the weights, everything else is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.kernels.native import call
from thalweg.packing import Packing


def mix(x: Tensor, before: Tensor, mixes: Tensor, dtype: torch.dtype) -> Tensor:
    """x, before (n, D), mixes (m, D) -> (m, n, D) `dtype`: x + (before - x) * mix."""
    out = torch.empty(len(mixes), *x.shape, dtype=dtype)
    call("mix", dtype, x, before, mixes, len(mixes), out, *x.shape)
    return out


def written(
    products: Sequence[Tensor],
    parameters: Sequence[Tensor],
    v: Tensor,
    blend: tuple[Tensor, Tensor, Tensor] | None,
    out: Sequence[Tensor],
    n_heads: int,
) -> None:
    """What the state needs of n tokens, written to out: log w, k, v, kk, a.

    products: of w, a and k, (n, D) each; parameters: bias of w, bias of a, k_k, k_a, (D,) each; v: (n, H V) product;
    blend: product (n, H V) and bias (H V,) of lora_v, and v_first (n, H V), or None in the first layer.
    """
    rows, d = products[0].shape
    lora, bias, first = blend or (None, None, None)
    call(
        "rwkv7_written", v.dtype, *products, *parameters, v, lora, bias, first, *out, rows, n_heads, d // n_heads,
        v.shape[1],
    )  # fmt: skip


def read(
    y: Tensor, r: Tensor, k: Tensor, v: Tensor, r_k: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """(n, H V) products' dtype: y normalised by heads, plus (sum of r k r_k over the head) v, times gate.

    y, v (n, H V), r, k (n, D), r_k (H, K), gate (n, H V) product, weight, bias (H V,).
    """
    heads, width = r_k.shape
    out = torch.empty_like(gate)
    call(
        "rwkv7_read", gate.dtype, y, r, k, v, r_k, gate, weight, bias, out, len(y), heads, width,
        y.shape[1] // heads, float(eps),
    )  # fmt: skip
    return out


def relu_square_(x: Tensor) -> Tensor:
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
    initial_state: Tensor | None,
    rows: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """`ops.wkv7` token by token, all float32; r (M, H, K) where rows are given."""
    heads, key_width = k.shape[1:]
    y = torch.empty(len(r), *v.shape[1:])
    final = torch.empty(len(packing.wanted), *v.shape[1:], key_width)
    y_row = None
    if rows is not None:
        y_row = torch.full((packing.n_tokens,), -1)
        y_row[list(rows)] = torch.arange(len(rows))
    call(
        "wkv7", None, r, log_w, k, v, kk, a, y_row, packing.bounds, packing.wanted_rows, packing.n_segments,
        None if initial_state is None else initial_state.contiguous(), packing.n_carried, y, final, heads, key_width,
        v.shape[2],
    )  # fmt: skip
    return y, final
