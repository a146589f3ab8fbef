"""The previous token of the same segment, over a packed run: RWKV's token shift (arXiv 2503.14456).

Legend: N tokens, D width, S_in / S_out segments with a carried / wanted state.

    y[t] = x[t - 1]        and at a segment's first token the carried row, or zero

The state is the segment's last row of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.errors import InvalidInputError
from thalweg.packing import Packing


def token_shift(x: Tensor, packing: Packing, *, initial_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Shift every segment of a packed run by one token.

    Args:
        x: (N, D), any floating dtype.
        packing: the run's layout, N tokens.
        initial_state: (S_in, D) float32, the row before each segment; None stands for zeros.

    Returns:
        y (N, D) in x's dtype, and final_state (S_out, D) float32 (float64 for float64 input).

    Raises:
        InvalidInputError: shapes that do not fit together.
    """
    _check(x, packing, initial_state)
    return packed_token_shift(x, packing, initial_state=initial_state)


def sequential_token_shift(
    x: Tensor, packing: Packing, *, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The reference: one token after the other, same signature as `token_shift`."""
    y, final = [], []
    for segment, (start, stop) in enumerate(zip(packing.cu_seqlens, packing.cu_seqlens[1:], strict=False)):
        previous = torch.zeros_like(x[0])
        if initial_state is not None and segment < packing.n_carried:
            previous = initial_state[packing.carried_rows[segment]].to(x.dtype)
        for t in range(start, stop):
            y.append(previous)
            previous = x[t]
        if segment in packing.wanted:
            final.append(previous)
    state_dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.stack(y), (torch.stack(final) if final else x[:0]).to(state_dtype)


def packed_token_shift(x: Tensor, packing: Packing, *, initial_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The run shifted as if it were one segment; then the first token of each segment anew."""
    before = x.new_zeros(packing.n_segments, x.shape[1])
    if initial_state is not None:
        before[: packing.n_carried] = packing.by_segment(initial_state).to(x.dtype)
    y = torch.empty_like(x)
    y[1:] = x[:-1]
    y[packing.starts] = before
    last = packing.last_rows
    return y, x[[last[segment] for segment in packing.wanted]].to(torch.promote_types(x.dtype, torch.float32))


def _check(x: Tensor, packing: Packing, initial_state: Tensor | None) -> None:
    if x.ndim != 2 or len(x) != packing.n_tokens:
        raise InvalidInputError(f"x must be (N={packing.n_tokens}, D), got {tuple(x.shape)}")
    expected = (packing.n_states, x.shape[1])
    if initial_state is not None and tuple(initial_state.shape) != expected:
        raise InvalidInputError(f"initial_state must be (S_in, D) = {expected}, got {tuple(initial_state.shape)}")
