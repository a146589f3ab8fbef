"""The kernels of mlstm.cpp: what lies between the matrix products of xLSTM's memory. Letters: ops/mlstm.py.

In a group of b blocks of q tokens each, blocks and heads are one dimension, b * H. A block table is (b, 6) int64:
start, stop, enters, leaves, initial and final of `packing.Block`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.kernels.native.library import call, empty
from thalweg.packing import Packing


class Gates(NamedTuple):
    """What the gates of a run come to.

    a, g: (H, N) float64; floors (N, H): exp(-m); into, out_of (N, H): weight of the state before the block at the
    token, of the token in the state after the block; through (b, H): of the one state in the other; m: (S_out, H).
    All but a and g are float32.
    """

    a: Tensor
    g: Tensor
    floors: Tensor
    into: Tensor
    out_of: Tensor
    through: Tensor
    m: Tensor


def gates(i: Tensor, f: Tensor, packing: Packing, m0: Tensor | None, log_scale: float, blocks: Tensor) -> Gates:
    """i, f (N, H) and m0 (S_in, H) float32; log_scale: added to all exponents of what is read."""
    n, heads = i.shape
    a, g = empty(2, heads, n, dtype=torch.float64)
    floors, into, out_of = empty(3, n, heads)
    out = Gates(a, g, floors, into, out_of, empty(len(blocks), heads), empty(len(packing.wanted), heads))
    call(
        "mlstm_gates", None, i, f, packing.bounds, packing.n_segments, packing.wanted_rows, m0, packing.initial_rows,
        float(log_scale), blocks, len(blocks), *out, n, heads,
    )  # fmt: skip
    return out


class ByHead(NamedTuple):
    """queries, keys (bH, q, K), values (bH, q, P), written: keys times `out_of`, sums (bH, K) float32: of these."""

    queries: Tensor
    keys: Tensor
    written: Tensor
    values: Tensor
    sums: Tensor


def by_head(q: Tensor, k: Tensor, v: Tensor, out_of: Tensor, n_blocks: int) -> ByHead:
    """q, k (b * q, H, K), v (b * q, H, P), out_of (b * q, H) float32."""
    tokens, heads, key_width = k.shape
    size, value_width = tokens // n_blocks, v.shape[2]
    queries, keys, written = empty(3, n_blocks * heads, size, key_width, dtype=k.dtype)
    values = empty(n_blocks * heads, size, value_width, dtype=k.dtype)
    out = ByHead(queries, keys, written, values, empty(n_blocks * heads, key_width))
    call(
        "mlstm_by_head", k.dtype, q, q.stride(0), k, k.stride(0), v, v.stride(0), out_of,
        *out, n_blocks, size, heads, key_width, value_width,
    )  # fmt: skip
    return out


def weigh(scores: Tensor, gates: Gates, first: Tensor, start: int, log_scale: float) -> Tensor:
    """scores (bH, q, q) of the tokens from `start` become weights, 0 where token i may not see token j.

    first: (N,) int64, where the segment of each token of the run begins. Returns the sums of the rows, (bH, q) float32.
    """
    heads, n = gates.a.shape
    size = scores.shape[1]
    sums = empty(len(scores), size)
    call(
        "mlstm_weights", scores.dtype, scores, gates.a[:, start:], gates.g[:, start:], n, first[start:],
        start, float(log_scale), sums, len(scores) // heads, size, heads,
    )  # fmt: skip
    return sums


class Memory(NamedTuple):
    """C (…, H, K, P) and n (…, H, K), float32."""

    C: Tensor
    n: Tensor


def carry(
    added: Tensor,
    added_n: Tensor,
    through: Tensor,
    blocks: Tensor,
    carried: Memory | None,
    state: Memory,
    final: Memory,
    finite: Tensor,
) -> tuple[Tensor, Tensor]:
    """The states through the blocks of a group: `state` goes on, rows of `final` are filled in, and `finite` (1,) int64
    becomes 0 where they are not.

    added (bH, K, P) and added_n (bH, K) float32 is what the blocks add. Returns what enters each block, C (bH, K, P) in
    added's dtype and n (bH, K) float32.
    """
    heads, key_width, value_width = state.C.shape
    entering, entering_n = torch.empty_like(added), torch.empty_like(added_n)
    call(
        "mlstm_carry", added.dtype, added, added_n, through, blocks, len(blocks), carried and carried.C,
        carried and carried.n, *state, entering, entering_n, *final, finite, heads, key_width, value_width,
    )  # fmt: skip
    return entering, entering_n


def readout(
    inside: Tensor,
    past: Tensor,
    queries: Tensor,
    entering_n: Tensor,
    sums: Tensor,
    into: Tensor,
    floors: Tensor,
    eps: float,
    out: Tensor,
    finite: Tensor,
) -> None:
    """out (b * q, H, P): inside + into * past, (bH, q, P) each, over the normaliser. `finite` as in `carry`.

    sums (bH, q), into and floors (b * q, H), entering_n (bH, K), all float32; queries (bH, q, K).
    """
    batch, size, value_width = inside.shape
    heads = into.shape[1]
    call(
        "mlstm_readout", inside.dtype, inside, past, queries, entering_n, sums, into, floors, float(eps), out, finite,
        batch // heads, size, heads, queries.shape[2], value_width,
    )  # fmt: skip


def head_norm_gate(y: Tensor, o: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """y (M, H, P), o (M, H * P) -> (M, H * P): LayerNorm of each head, times weight plus bias, times sigmoid(o)."""
    rows, heads, width = y.shape
    out = empty(rows, heads * width, dtype=y.dtype)
    bias = empty(heads * width).zero_() if bias is None else bias.float()
    call(
        "head_norm_gate",
        y.dtype,
        y.contiguous(),
        o,
        o.stride(0),
        weight.float(),
        bias,
        out,
        rows,
        heads,
        width,
        float(eps),
    )
    return out
