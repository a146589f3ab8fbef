"""Depthwise causal convolution over a packed run, with carried columns.

Legend: N tokens, C channels, W taps, S_in / S_out segments with a carried / wanted state.

    y[t, c] = act( bias[c] + sum_k weight[c, k] * x[t - (W - 1) + k, c] )

where columns before a segment's first token are its carried columns, or zero. The state is the last W - 1 columns
of the *input*, in the input's dtype (Mamba2, arXiv 2405.21060, section 8).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg import kernels
from thalweg.errors import InvalidInputError
from thalweg.ops import activations
from thalweg.ops.tiles import in_tiles, tiles
from thalweg.packing import Packing


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    packing: Packing,
    *,
    initial_state: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    """Convolve every segment of a packed run.

    Args:
        x: (N, C), any floating dtype.
        weight: (C, W), any W >= 1.
        bias: (C,) or None.
        packing: the run's layout, N tokens.
        initial_state: (S_in, W - 1, C) carried columns, oldest first; None stands for zeros.
        silu: apply x * sigmoid(x) to the result.

    Returns:
        y (N, C) and final_state (S_out, W - 1, C), both in x's dtype.

    Raises:
        InvalidInputError: shapes that do not fit together.
    """
    _check(x, weight, bias, packing, initial_state)
    if run := kernels.kernel("causal_conv", x):
        y = run(x, weight, bias, packing, initial_state=initial_state, silu=silu)
        return y, last_columns(x, packing, weight.shape[1] - 1, initial_state)
    return packed_causal_conv(x, weight, bias, packing, initial_state=initial_state, silu=silu)


def sequential_causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    packing: Packing,
    *,
    initial_state: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    """The reference: one token after the other, same signature as `causal_conv`."""
    width = weight.shape[1]
    y, final = [], []
    for segment, (start, stop) in enumerate(zip(packing.cu_seqlens, packing.cu_seqlens[1:], strict=False)):
        columns = x.new_zeros(width - 1, x.shape[1])
        if initial_state is not None and segment < packing.n_carried:
            columns = initial_state[packing.carried_rows[segment]]
        for t in range(start, stop):
            window = torch.cat([columns, x[t : t + 1]])
            out = (window * weight.t()).sum(0)
            out = out if bias is None else out + bias
            y.append(F.silu(out) if silu else out)
            columns = window[1:]
        if segment in packing.wanted:
            final.append(columns)
    empty = x.new_zeros(0, width - 1, x.shape[1])
    return torch.stack(y).to(x.dtype), torch.stack(final).to(x.dtype) if final else empty


def packed_causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    packing: Packing,
    *,
    initial_state: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    """The run as if it were one segment; then the few tokens at each segment's start anew, from their own past."""
    channels, width = weight.shape
    carried = x.new_zeros(packing.n_carried * (width - 1), channels)
    if initial_state is not None:
        carried = packing.by_segment(initial_state).reshape(-1, channels).to(x.dtype)
    edge = torch.cat([x.new_zeros(1, channels), carried])
    taps = weight.t().to(torch.promote_types(x.dtype, torch.float32))
    y = _run_taps(x, taps, bias, silu)
    final = last_columns(x, packing, width - 1, initial_state)
    if width == 1:
        return y, final

    halo = packing.conv_halo(width)
    in_run = halo.windows >= len(edge)
    columns = x[torch.where(in_run, halo.windows - len(edge), 0)]
    columns = torch.where(in_run[..., None], columns, edge[torch.where(in_run, 0, halo.windows)])
    heads = (columns.to(taps.dtype) * taps).sum(1)
    heads = heads if bias is None else heads + bias
    return y.index_copy_(0, halo.rows, (activations.silu(heads) if silu else heads).to(y.dtype)), final


def last_columns(x: Tensor, packing: Packing, pad: int, initial_state: Tensor | None) -> Tensor:
    """(S_out, pad, C): the last columns of every segment whose state is wanted, those before it among them."""
    tails = []
    for segment in packing.wanted:
        start, stop = packing.cu_seqlens[segment : segment + 2]
        own = x[max(start, stop - pad) : stop]
        if len(own) < pad:
            before = x.new_zeros(pad, x.shape[1])
            if initial_state is not None and segment < packing.n_carried:
                before = initial_state[packing.carried_rows[segment]].to(x.dtype)
            own = torch.cat([before, own])[-pad:]
        tails.append(own)
    return torch.stack(tails) if tails else x.new_zeros(0, pad, x.shape[1])


def _run_taps(x: Tensor, taps: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """(N, C) convolved with zeros before the first row; sums in float32 (float64 for float64), rounded once."""
    n, pad = len(x), len(taps) - 1

    def rows(start: int, stop: int) -> Tensor:
        seen = x[max(start - pad, 0) : stop].to(taps.dtype)
        if start < pad:
            seen = F.pad(seen, (0, 0, pad - start, 0))
        first = seen[: stop - start]
        y = first * taps[0] if bias is None else torch.addcmul(bias.to(taps.dtype), first, taps[0])
        for k in range(1, len(taps)):
            y = y.addcmul_(seen[k : k + stop - start], taps[k])
        return activations.silu(y, inplace=not y.requires_grad) if silu else y

    if not in_tiles(x):
        return rows(0, n).to(x.dtype)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for tile in tiles(n):
        y[tile] = rows(tile.start, tile.stop)
    return y


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, packing: Packing, initial_state: Tensor | None) -> None:
    if x.ndim != 2 or len(x) != packing.n_tokens:
        raise InvalidInputError(f"x must be (N={packing.n_tokens}, C), got {tuple(x.shape)}")
    channels = x.shape[1]
    if weight.ndim != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        raise InvalidInputError(f"weight must be (C={channels}, W>=1), got {tuple(weight.shape)}")
    if bias is not None and bias.shape != (channels,):
        raise InvalidInputError(f"bias must be (C={channels},), got {tuple(bias.shape)}")
    expected = (packing.n_states, weight.shape[1] - 1, channels)
    if initial_state is not None and tuple(initial_state.shape) != expected:
        raise InvalidInputError(f"initial_state must be (S_in, W-1, C) = {expected}, got {tuple(initial_state.shape)}")
