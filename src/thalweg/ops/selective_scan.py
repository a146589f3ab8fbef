"""Selective scan: the scan of Mamba1 (arXiv 2312.00752, algorithm 2) over a packed run.

Legend: N tokens, E channels, K state width, Q inner chunk, S_in / S_out segments with a carried / wanted state,
b blocks of q <= Q tokens.

    delta_t = softplus(dt_t + dt_bias)                                          one number a channel
    S_t     = exp(A * delta_t) * S_{t-1} + B_t (x) (delta_t * x_t)              (K, E), float32
    y_t     = C_t S_t + D * x_t

The decay differs from channel to channel and from row to row of the state, so no matrix product stands for the tokens
of a block. The work is a few passes over (q, K, E), and it is fast where those stay in cache: hence short blocks.
States are laid out (K, E), so that every pass runs along the channels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from thalweg import kernels
from thalweg.errors import InvalidInputError
from thalweg.isolation import isolated
from thalweg.ops.activations import softplus
from thalweg.packing import BlockGroup, Links, Packing


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    packing: Packing,
    *,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    initial_state: Tensor | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan every segment of a packed run.

    Args:
        x: (N, E), floating.
        dt: (N, E) step sizes before bias and softplus.
        A: (E, K), negative (linear space: -exp(A_log)).
        B, C: (N, K), shared by all channels.
        packing: the run's layout, N tokens.
        D: (E,) skip weight, or None.
        dt_bias: (E,) or None.
        dt_softplus: whether delta is softplus(dt + dt_bias) or dt + dt_bias itself, which then must not be negative.
        initial_state: (S_in, K, E) float32; None stands for zeros.
        rows: M ascending positions whose y is wanted; None stands for all N.
        chunk_size: Q, any size >= 1: it changes the speed, not the result; None is `default_chunk_size`.

    Returns:
        y (N or M, E) in x's dtype, and final_state (S_out, K, E) float32 (float64 for float64 input).

    Raises:
        InvalidInputError: shapes that do not fit together, or chunk_size < 1.
    """
    _check(x, dt, A, B, C, packing, initial_state, chunk_size)
    run = kernels.kernel("selective_scan", x, dt) or chunkwise_selective_scan
    return run(
        x,
        dt,
        A,
        B,
        C,
        packing,
        D=D,
        dt_bias=dt_bias,
        dt_softplus=dt_softplus,
        initial_state=initial_state,
        rows=rows,
        chunk_size=chunk_size,
    )


def sequential_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    packing: Packing,
    *,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    initial_state: Tensor | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The reference: one token after the other, same signature as `selective_scan` (`chunk_size` means nothing)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    delta = step_sizes(dt, dt_bias, dt_softplus, wide)
    rates, inputs, B, C = A.to(wide).t(), x.to(wide), B.to(wide), C.to(wide)
    y, final = [], []
    for segment, (start, stop) in enumerate(zip(packing.cu_seqlens, packing.cu_seqlens[1:], strict=False)):
        state = torch.zeros_like(rates)
        if initial_state is not None and segment < packing.n_carried:
            state = initial_state[packing.carried_rows[segment]].to(wide)
        for t in range(start, stop):
            state = torch.exp(delta[t] * rates) * state + torch.outer(B[t], delta[t] * inputs[t])
            out = C[t] @ state
            y.append(out if D is None else out + D.to(wide) * inputs[t])
        if segment in packing.wanted:
            final.append(state)
    out = torch.stack(y)
    empty = rates.new_zeros(0, *rates.shape)
    return (out if rows is None else out[list(rows)]).to(x.dtype), torch.stack(final) if final else empty


@isolated("x", "dt", "B", "C")
def chunkwise_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    packing: Packing,
    *,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    initial_state: Tensor | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
    blocks_per_group: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Whole blocks at a time but for one multiply-add a token: work linear in N. Signature of `selective_scan`.

    `blocks_per_group` blocks are treated side by side (None: chosen for the device); it bounds the workspace. With
    gradients a group keeps its inputs and the state that enters it, and is computed once more in the backward pass:
    what all its tokens would have to keep, several (N, K, E), is the size of a model.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    rates = A.to(wide).t().contiguous()
    initial_state = None if initial_state is None else initial_state.to(wide)
    in_place = x.device.type == "cpu" and not _needs_gradients(x, dt, A, B, C, D, dt_bias, initial_state)
    chunk_size = chunk_size or default_chunk_size(rates.numel(), in_place)
    if in_place and blocks_per_group in (None, 1):
        return _one_after_another(x, dt, rates, B, C, packing, D, dt_bias, dt_softplus, initial_state, rows, chunk_size)
    delta = step_sizes(dt, dt_bias, dt_softplus, wide)
    blocks_per_group = blocks_per_group or max(1, WORKSPACE // (4 * rates.numel() * chunk_size))
    y, final = _side_by_side(
        x.to(wide), delta, rates, B.to(wide), C.to(wide), packing, initial_state, chunk_size, blocks_per_group
    )
    y = y if D is None else torch.addcmul(y, x.to(wide), D.to(wide))
    return (y if rows is None else y[list(rows)]).to(x.dtype), final


MIN_LOG_DECAY = -60.0
"""A token that keeps exp(-60) of a state keeps nothing that float64 could see; weaker ones would make denormals."""

WEAK_LOG_DECAY = -(2.0**-12)
"""Mean of a token; with weaker ones a state lasts so long that its rounding errors add up to more than 1e-6."""

CACHE = 1 << 17
"""Numbers of one (q, K, E): two of them stay in a core's L2 cache."""

TILE_TOKENS, TILE_NUMBERS = 64, 3 << 14
"""Most tokens, and most numbers of one (q, E), that are made at a time for several blocks."""

WORKSPACE = 1 << 26
"""Bytes of one (b, q, K, E) where blocks run side by side; the backward pass of a group holds about ten of them."""


def default_chunk_size(state_size: int, in_place: bool = True) -> int:
    """The inner chunk Q that is fastest here: what the cache holds, or, side by side, many blocks and few steps.

    Args:
        state_size: K * E.
        in_place: on the CPU without gradients.
    """
    return min(max(CACHE // state_size, 1), 64) if in_place else 32


def selective_scan_blocks(channels: int, state_width: int) -> list[int]:
    """Bytes of each tensor that lives inside the scan on the CPU without gradients."""
    state = 4 * state_width * channels
    return 2 * [state * default_chunk_size(state_width * channels)] + 6 * [state]


def _needs_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def step_sizes(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dtype: torch.dtype) -> Tensor:
    """(N, E) delta in `dtype` from the raw projection."""
    delta = dt.to(dtype)
    delta = delta if dt_bias is None else delta + dt_bias.to(dtype)
    return softplus(delta) if dt_softplus else delta


def _one_after_another(
    x: Tensor,
    dt: Tensor,
    rates: Tensor,
    B: Tensor,
    C: Tensor,
    packing: Packing,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    initial_state: Tensor | None,
    rows: Sequence[int] | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """On the CPU without gradients: token after token inside blocks whose buffers stay in cache. rates: A as (K, E).

    What is only (q, E) is made for a tile of several blocks at a time: fewer calls, and long enough for threads.
    """
    n, wide = len(x), rates.dtype
    strongest, weakest = float(rates.min()), rates.amax(0)
    begins = {start: segment for segment, start in enumerate(packing.cu_seqlens[:-1])}
    bounds = set(packing.cu_seqlens)
    ends = {packing.cu_seqlens[segment + 1] - 1: row for row, segment in enumerate(packing.wanted)}
    chunk_size = min(chunk_size, n)
    blocks = min(TILE_TOKENS // chunk_size, TILE_NUMBERS // (rates.shape[1] * chunk_size))
    tile_size = min(chunk_size * max(blocks, 1), n)
    decay_buffer, state_buffer = rates.new_empty(2, chunk_size, *rates.shape)
    last_buffer = torch.empty_like(rates)
    out_buffer = rates.new_empty(tile_size, 1, rates.shape[1])
    final = rates.new_empty(len(packing.wanted), *rates.shape)
    y = x.new_empty(n if rows is None else len(rows), x.shape[1])

    last: Tensor | None = None  # the state before the next token; None is zero
    for start in range(0, n, tile_size):
        tile = slice(start, min(start + tile_size, n))
        delta, inputs = step_sizes(dt[tile], dt_bias, dt_softplus, wide), x[tile].to(wide)
        added, write, read = (delta * inputs)[:, None], B[tile, :, None].to(wide), C[tile, None].to(wide)
        is_strong = not float(delta.max()) * strongest >= MIN_LOG_DECAY  # also where that is NaN
        found = tile if rows is None else slice(bisect_left(rows, start), bisect_left(rows, tile.stop))
        cuts = [0, *(at - start for at in packing.cu_seqlens if start < at < tile.stop), len(delta)]
        pieces = dict(pairwise(cuts))  # of segments: where each begins and ends in the tile
        exact: _ExactState | None = None

        for first in range(0, len(delta), chunk_size):
            block = slice(first, min(first + chunk_size, len(delta)))
            size = block.stop - first
            decays = torch.mul(delta[block, None], rates, out=decay_buffer[:size])
            if is_strong:
                decays.clamp_(min=MIN_LOG_DECAY)
            decays.exp_()
            states = torch.mul(write[block], added[block], out=state_buffer[:size])
            for t, decay, state in zip(range(first, block.stop), decays.unbind(), states.unbind(), strict=True):
                if start + t in begins:
                    segment = begins[start + t]
                    last = None
                    if initial_state is not None and segment < packing.n_carried:
                        last = initial_state[packing.carried_rows[segment]]
                if t in pieces:
                    stop = pieces[t]
                    goes_on = start + stop - 1 in ends or start + stop not in bounds
                    lasting = (goes_on or last is not None) and _is_weak(delta[t:stop], weakest)
                    exact = _ExactState(rates, delta) if lasting else None
                    if exact:
                        exact.restart(last, t)
                if exact:
                    exact.step(decay, state)
                last = state if last is None else state.addcmul_(decay, last)
                if start + t in ends:
                    final[ends[start + t]] = exact.after(t) if exact else last
            last = last_buffer.copy_(states[-1])
            if found.stop > found.start:
                torch.bmm(read[block], states, out=out_buffer[block])
        last = exact.after(len(delta) - 1) if exact else last

        if found.stop > found.start:
            out = out_buffer[: len(delta), 0]
            if rows is not None:
                wanted = [row - start for row in rows[found]]
                out, inputs = out[wanted], inputs[wanted]
            y[found] = out if D is None else torch.addcmul(out, inputs, D.to(wide))
    return y, final


def _is_weak(delta: Tensor, weakest: Tensor) -> bool:
    """Whether a segment decays so little that its rounding errors add up; its own tokens alone decide."""
    return float((delta.mean(0) * weakest).max()) > WEAK_LOG_DECAY


class _ExactState:
    """The state once more, where decays are so weak that rounding it at every token would add up.

    It is kept as the state some tokens ago, whose decay since is one exponential, and what those tokens added.
    """

    def __init__(self, rates: Tensor, delta: Tensor) -> None:
        """rates (K, E), delta (q, E)."""
        self.rates, self.delta = rates, delta
        self.base, self.added = torch.empty_like(rates), torch.empty_like(rates)

    def restart(self, state: Tensor | None, t: int) -> None:
        """Token t is the first after this state."""
        self.since = t
        self.added.zero_()
        self.base.zero_() if state is None else self.base.copy_(state)

    def step(self, decay: Tensor, new: Tensor) -> None:
        torch.addcmul(new, decay, self.added, out=self.added)

    def after(self, t: int) -> Tensor:
        """(K, E): the state after token t."""
        steps = self.delta[self.since : t + 1].sum(0)
        return torch.addcmul(self.added, self.base, (steps * self.rates).clamp_(min=MIN_LOG_DECAY).exp_())


def _side_by_side(
    x: Tensor,
    delta: Tensor,
    rates: Tensor,
    B: Tensor,
    C: Tensor,
    packing: Packing,
    initial_state: Tensor | None,
    chunk_size: int,
    blocks_per_group: int,
) -> tuple[Tensor, Tensor]:
    """With gradients or on other devices: many blocks at a time. All tensors of one dtype; rates: A as (K, E)."""
    y: list[Tensor] = []
    final = [rates.new_zeros(0, *rates.shape)]
    carry: Tensor | None = None
    for group in packing.block_groups(chunk_size, blocks_per_group):
        arguments = (group, x, delta, rates, B, C, carry, initial_state)
        if torch.is_grad_enabled():
            out, leaving = checkpoint(_group, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            out, leaving = _group(*arguments)
        y.append(out)
        carry = leaving[-1]
        final += [leaving[i, None] for i, block in enumerate(group.blocks) if block.final >= 0]
    return torch.cat(y), torch.cat(final)


def _group(
    group: BlockGroup,
    x: Tensor,
    delta: Tensor,
    rates: Tensor,
    B: Tensor,
    C: Tensor,
    carry: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (n, E) of a group's tokens without the skip, and the states (b, K, E) that leave its blocks."""
    delta = group.take(delta)
    if not group.is_slice:
        delta = delta * group.inside[..., None]  # padding keeps the state as it is
    inputs = group.take(B)[..., None] * (delta * group.take(x))[:, :, None]
    decays = _decay(delta, rates) * _continues(group)[..., None, None]
    state, states = inputs[:, 0], [inputs[:, 0]]
    for new, decay in zip(inputs.unbind(1)[1:], decays.unbind(1)[1:], strict=True):
        state = torch.addcmul(new, decay, state)
        states.append(state)
    inside = torch.stack(states, 1)

    # All decays are at most 1, so a sum of steps, however long, gives exp(A * sum) to the digits of float32.
    into = _decay(delta.cumsum(1), rates)
    entering, leaving = _hand_on(state, into[:, -1], group.links, carry, initial_state)
    inside = torch.addcmul(inside, into * group.enters[..., None, None], entering[:, None])
    return group.flatten(torch.einsum("bqk,bqke->bqe", group.take(C), inside)), leaving


def _decay(steps: Tensor, rates: Tensor) -> Tensor:
    """(b, q, K, E): what (b, q, E) steps leave of a state."""
    return (steps[:, :, None] * rates).clamp(min=MIN_LOG_DECAY).exp()


def _continues(group: BlockGroup) -> Tensor:
    """(b, q) bool: the token before is of the same block and segment."""
    segments = group.take(group.segment_ids)
    return F.pad(segments[:, 1:] == segments[:, :-1], (1, 0))


def _hand_on(
    local: Tensor, through: Tensor, links: Links, carry: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The states (b, K, E) that enter and leave each block, from what the blocks add and what they let through."""

    def leave(blocks: Tensor, past: Tensor) -> Tensor:
        return torch.addcmul(local[blocks], through[blocks], past)

    return links.hand_on(torch.zeros_like(local[:1]), carry, initial_state, leave)


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    packing: Packing,
    initial_state: Tensor | None,
    chunk_size: int | None,
) -> None:
    if x.ndim != 2 or len(x) != packing.n_tokens:
        raise InvalidInputError(f"x must be (N={packing.n_tokens}, E), got {tuple(x.shape)}")
    n, channels = x.shape
    if dt.shape != x.shape:
        raise InvalidInputError(f"dt must be (N, E) = {(n, channels)}, got {tuple(dt.shape)}")
    if A.ndim != 2 or len(A) != channels:
        raise InvalidInputError(f"A must be (E={channels}, K), got {tuple(A.shape)}")
    width = A.shape[1]
    if B.shape != (n, width) or C.shape != (n, width):
        raise InvalidInputError(f"B and C must be (N, K) = {(n, width)}, got {tuple(B.shape)} and {tuple(C.shape)}")
    expected = (packing.n_states, width, channels)
    if initial_state is not None and tuple(initial_state.shape) != expected:
        raise InvalidInputError(f"initial_state must be (S_in, K, E) = {expected}, got {tuple(initial_state.shape)}")
    if chunk_size is not None and chunk_size < 1:
        raise InvalidInputError(f"chunk_size must be at least 1, got {chunk_size}")
