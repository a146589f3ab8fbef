"""`ssd` without gradients on the CPU: the blocks of `chunkwise_ssd`, with native kernels between the matrix products.

The letters are those of ssd.py. One block at a time, so that its decays stay in a core's cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg import native
from thalweg.packing import Packing


def native_ssd(
    x: Tensor,
    delta: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    packing: Packing,
    *,
    D: Tensor | None,
    initial_state: Tensor | None,
    rows: Sequence[int] | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """As `chunkwise_ssd`, from delta (N, H) and log_decay (N, H) float32; x, B, C as `native.usable` asks."""
    skip = None if D is None else D.float()
    sums, into, out_of, through = native.ssd_steps(delta, log_decay, packing.block_table(chunk_size))
    y = torch.empty(x.shape, dtype=x.dtype)
    final: list[Tensor] = []
    state: tuple[Tensor, Tensor] | None = None  # (K, H, P) float32, and in x's dtype
    for i, group in enumerate(packing.block_groups(chunk_size, 1)):
        block = group.blocks[0]
        here = slice(block.start, block.stop)
        if block.initial >= 0:
            carried = None if initial_state is None else initial_state[block.initial].contiguous()
            state = None if carried is None else (carried, carried.to(x.dtype))
        elif not block.enters:
            state = None
        if rows is None or block.rows_inside(rows):
            scores = C[here].transpose(0, 1).float() @ B[here].permute(1, 2, 0).float()
            weights = native.ssd_weights(scores, sums[here], delta[here], group.first_seen, skip, x.dtype)
            inside = weights @ x[here].transpose(0, 1)
            if state is None:
                y[here] = inside.transpose(0, 1)
            else:
                native.ssd_combine(inside, _from_past(C[here], state[1]), into[here], y[here])
        if block.leaves:
            before = state[0] if state is not None and block.passes_through else None
            state = native.carry(_added(native.scale(x[here], out_of[here]), B[here]), through[i], before)
            if block.final >= 0:
                final.append(state[0])
    empty = torch.zeros(0, B.shape[2], *x.shape[1:])
    return y if rows is None else y[list(rows)], torch.stack(final) if final else empty


def _from_past(C: Tensor, state: Tensor) -> Tensor:
    """(q, G, K), (K, H, P) -> (q, H * P): C times the state before the block, still without its decay."""
    groups = C.shape[1]
    if groups == 1:
        return C[:, 0] @ state.flatten(1)
    by_group = state.unflatten(1, (groups, -1)).flatten(2).transpose(0, 1)  # (G, K, H/G * P)
    return (C.transpose(0, 1) @ by_group).transpose(0, 1).flatten(1)


def _added(weighted: Tensor, B: Tensor) -> Tensor:
    """(q, H * P), (q, G, K) -> (K, H * P): what the block adds to the state that leaves it."""
    groups = B.shape[1]
    if groups == 1:
        return B[:, 0].t() @ weighted
    by_group = weighted.unflatten(1, (groups, -1)).transpose(0, 1)  # (G, q, H/G * P)
    return (B.permute(1, 2, 0) @ by_group).transpose(0, 1).flatten(1)
