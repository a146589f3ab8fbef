"""RWKV-7 (arXiv 2503.14456) between its matrix products, each token on its own but for the one before it.

Legend: n tokens, D width, H heads of K = D / H keys and V values. Letters: models/rwkv7.py.

"Products" are of the dtype of the weights, everything else is float32 (float64 for float64).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg import kernels
from thalweg.ops.activations import sigmoid
from thalweg.ops.tiles import wide

MAX_DECAY = 0.6065306597126334
"""exp(-0.5): the strongest decay of a token, as -log w."""


def token_mix(x: Tensor, before: Tensor, mixes: Tensor, dtype: torch.dtype) -> Sequence[Tensor]:
    """x, before (n, D), mixes (m, D) -> m of (n, D) `dtype`: x + (before - x) * mix."""
    if run := kernels.kernel("token_mix", x, before, dtype=dtype):
        return run(x, before, mixes, dtype)
    change = before - x
    return [torch.addcmul(x, change, mix).to(dtype) for mix in mixes]


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
    out: Sequence[Tensor] | None = None,
) -> Sequence[Tensor]:
    """What the scan takes of n tokens: log w, k, v, kk, a.

    Args:
        w, a, k: (n, D) products.
        v: (n, H V) product.
        bias_w, bias_a, k_k, k_a: (D,).
        blend: product (n, H V) and bias (H V,) of lora_v, and v_first (n, H V); None in the first layer.
        n_heads: H.
        out: where to write the results, without gradients only.

    Returns:
        (n, D) or (n, H V) each: `out`, or fresh ones.
    """
    if run := kernels.kernel("scan_inputs", w, a, k, v, *(blend or ())[:1]):
        return run(w, a, k, v, bias_w, bias_a, k_k, k_a, blend, n_heads, out)
    dtype = wide(w)
    log_w = sigmoid(w.to(dtype) + bias_w) * -MAX_DECAY
    a = sigmoid(a.to(dtype) + bias_a)
    v = v.to(dtype)
    if blend is not None:
        lora, bias, first = blend
        v = torch.addcmul(v, first - v, sigmoid(lora.to(dtype) + bias))
    k = k.to(dtype)
    kk = F.normalize((k * k_k.to(dtype)).unflatten(1, (n_heads, -1)), dim=2).flatten(1)
    found = (log_w, torch.addcmul(k, k * (a - 1), k_a.to(dtype)), v, kk, a)
    if out is None:
        return found
    for kept, tensor in zip(out, found, strict=True):
        kept.copy_(tensor)
    return out


def scan_output(
    y: Tensor, r: Tensor, k: Tensor, v: Tensor, r_k: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """What `output` takes of n tokens: y by the mean and deviation of each head, plus the token's own value, gated.

    y, v (n, H V), r, k (n, D), r_k (H, K), gate (n, H V) product, weight and bias (H V,) of the norm. Gives a product.
    """
    if run := kernels.kernel("scan_output", gate, y, r, k, v):
        return run(y, r, k, v, r_k, gate, weight, bias, eps)
    heads, dtype = len(r_k), wide(y)
    y = F.group_norm(y, heads, weight.to(dtype), bias.to(dtype), eps)
    bonus = torch.linalg.vecdot((r * k).unflatten(1, (heads, -1)), r_k.to(dtype))
    y = torch.addcmul(y.unflatten(1, (heads, -1)), bonus[..., None], v.unflatten(1, (heads, -1))).flatten(1)
    return (y * gate.to(dtype)).to(gate.dtype)


def relu_square(x: Tensor) -> Tensor:
    """relu(x)^2, (n, F) products; without gradients x is overwritten."""
    if run := kernels.kernel("relu_square", x):
        return run(x)
    x = x.relu_()
    return x.square() if torch.is_grad_enabled() else x.square_()
