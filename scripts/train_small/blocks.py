"""The layers of `thalweg.models.mamba2` for texts that fit into one block, written so that torch.compile fuses them.

The packed scan of the package serves any length; most training texts are short, and then a run of b blocks of Q
tokens, each holding a few whole texts, needs no states: a layer is a few matrix products and one masked (Q, Q) decay.
Same weights, same result up to rounding, three times as fast in training on a CPU. Products are made in the
`compute` type: bfloat16 (0.3 % off) only pays where the CPU has instructions for it; without, it is five times slower.

Shapes: N = b * Q tokens, D d_model, I d_inner, K d_state, H heads of P channels, W taps. One group of B and C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.models.mamba2 import Mamba2, Mamba2Layer


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def block_layer(
    u: Tensor,
    visible: Tensor,
    reach: Tensor,
    eps: float,
    norm: Tensor,
    in_proj: Tensor,
    conv: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    gated_norm: Tensor,
    out_proj: Tensor,
    compute: torch.dtype,
) -> Tensor:
    """(N, D) float32 -> (N, D): one layer; matrix products in `compute`, the rest in float32.

    visible: (b, Q, Q) bool, j is in the text of i and not after it. reach: (N, W - 1) 1 where t - k is in t's text.
    """
    b, q = visible.shape[:2]
    heads, inner, taps = A_log.shape[0], out_proj.shape[1], conv.shape[1]
    state = (conv.shape[0] - inner) // 2
    projected = rms_norm(u, norm, eps).to(compute) @ in_proj.to(compute).t()
    z, x, dt = projected.float().split([inner, inner + 2 * state, heads], dim=1)
    total = x * conv[:, -1] + conv_bias
    for k in range(1, taps):
        earlier = F.pad(x, (0, 0, k, 0))[: len(x)]
        total = total + earlier * conv[:, taps - 1 - k] * reach[:, k - 1 : k]
    mixed = F.silu(total).to(compute)
    value = mixed[:, :inner].reshape(b, q, heads, -1).transpose(1, 2)
    B = mixed[:, inner : inner + state].reshape(b, q, state)
    C = mixed[:, inner + state :].reshape(b, q, state)
    delta = F.softplus(dt + dt_bias).reshape(b, q, heads).transpose(1, 2)
    sums = (delta * -torch.exp(A_log)[:, None]).cumsum(2)
    decay = torch.exp(torch.where(visible[:, None], sums[..., :, None] - sums[..., None, :], -1e30))
    weight = decay * (C @ B.transpose(1, 2)).float()[:, None] * delta[..., None, :]
    y = (weight.to(compute) @ value).float() + D[:, None, None] * value.float()
    gated = rms_norm(y.transpose(1, 2).reshape(len(u), inner) * F.silu(z), gated_norm, eps)
    return u + (gated.to(compute) @ out_proj.to(compute).t()).float()


def weights_of(layer: Mamba2Layer) -> tuple[Tensor, ...]:
    m = layer.mixer
    conv, dynamics = (m.conv.weight, m.conv.bias), (m.dt_bias, m.A_log, m.D)
    return (layer.norm.weight, m.in_proj.weight, *conv, *dynamics, m.norm.weight, m.out_proj.weight)


@dataclass
class Blocks:
    """b blocks of Q tokens; `text` (N,) is the number of each token's text, n texts in all, or n for padding."""

    shape: tuple[int, int]
    tokens: Tensor
    text: Tensor
    n: int
    visible: Tensor
    reach: Tensor

    @classmethod
    def of(cls, rows: list[np.ndarray], shape: tuple[int, int], taps: int, device: torch.device) -> Blocks:
        """Lay out texts (token ids with EOS), in order, that `fill` has found to fit."""
        b, q = shape
        tokens, text = np.zeros((b, q), np.int64), np.full((b, q), len(rows))
        block = used = 0
        for i, row in enumerate(rows):
            if used + len(row) > q:
                block, used = block + 1, 0
            tokens[block, used : used + len(row)] = row
            text[block, used : used + len(row)] = i
            used += len(row)
        at = torch.arange(q)
        where = torch.from_numpy(text)
        visible = (where[:, :, None] == where[:, None, :]) & (at[None, :] <= at[:, None])
        flat = where.flatten()
        reach = torch.stack([F.pad((flat[:-k] == flat[k:]).float(), (k, 0)) for k in range(1, taps)], 1)
        ids = torch.from_numpy(tokens).flatten()
        return cls(shape, ids.to(device), flat.to(device), len(rows), visible.to(device), reach.to(device))


def fill(lengths: np.ndarray, shape: tuple[int, int]) -> int:
    """How many of the texts, in order, fit into b blocks of Q tokens."""
    b, q = shape
    used = 0
    for i, length in enumerate(lengths):
        if used + length > q:
            b, used = b - 1, 0
            if b == 0:
                return i
        used += length
    return len(lengths)


class BlockModel:
    """Runs a `Mamba2` on blocks; compiled once per shape."""

    def __init__(self, model: Mamba2, compute: torch.dtype, compiled: bool = True) -> None:
        if model.config.n_groups != 1 or model.config.proj_bias or not model.config.conv_bias:
            raise ValueError("blocks are written for one group, no projection bias and a convolution bias")
        self.model, self.compute = model, compute
        self.layer = torch.compile(block_layer, dynamic=False) if compiled else block_layer

    def embed(self, blocks: Blocks) -> Tensor:
        """(n, d) normalised means of the hidden vectors."""
        eps = self.model.config.norm_eps
        u = self.model.embeddings(blocks.tokens).float()
        for layer in self.model.layers:
            u = self.layer(u, blocks.visible, blocks.reach, eps, *weights_of(layer), self.compute)
        hidden = rms_norm(u, self.model.norm.weight, eps)
        total = torch.zeros(blocks.n + 1, hidden.shape[1], device=u.device).index_add(0, blocks.text, hidden)
        return F.normalize(total[: blocks.n], dim=1)
