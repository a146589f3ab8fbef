"""The scan of xLSTM: matrix products of blocks, and kernels between them.

The letters are those of mlstm.py. Some blocks are taken side by side, so that the products are worth a call each; the
state goes through them in one kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from thalweg.isolation import Checked, isolated
from thalweg.kernels.native import mlstm as between
from thalweg.kernels.native.library import empty, finite_flag
from thalweg.packing import Block, Packing

CHUNK_SIZE = 128
"""The inner chunk Q that is fastest here, at the head widths of 100 to 500 of public models."""
PRODUCTS = 16
"""Small matrices multiplied in one call: with fewer the call costs more than the product, more leave the cache."""


@isolated("q", "k", "v", "i", "f")
def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    packing: Packing,
    *,
    eps: float,
    initial_state: tuple[Tensor, Tensor, Tensor] | None,
    rows: Sequence[int] | None,
    chunk_size: int | None,
) -> Checked:
    """`ops.mlstm`."""
    chunk_size = chunk_size or CHUNK_SIZE
    q, k, v = (t if t.stride(1) == t.shape[2] else t.contiguous() for t in (q, k, v))
    _, heads, key_width = q.shape
    log_scale = -0.5 * math.log(key_width)
    blocks = [group.blocks[0] for group in packing.block_groups(chunk_size, 1)]
    table = packing.block_table(chunk_size)
    carried, m0 = None, None
    if initial_state is not None:
        C, n, m0 = (t.float().contiguous() for t in initial_state)
        carried = between.Memory(C, n)
    gates = between.gates(i.float().contiguous(), f.float().contiguous(), packing, m0, log_scale, table)
    first = packing.first_seen
    shape = (heads, key_width, v.shape[2])
    state = between.Memory(empty(*shape).zero_(), empty(*shape[:2]).zero_())
    n_final = len(packing.wanted)
    final = between.Memory(empty(n_final, *shape).zero_(), empty(n_final, *shape[:2]).zero_())
    y, finite = empty(*v.shape, dtype=v.dtype), finite_flag()
    for group in _groups(blocks, side_by_side(heads)):
        start, stop = blocks[group.start].start, blocks[group.stop - 1].stop
        here, table_here = slice(start, stop), table[group.start : group.stop]
        parts = between.by_head(q[here], k[here], v[here], gates.out_of[here], len(table_here))
        added = torch.bmm(parts.written.transpose(1, 2), parts.values)
        through = gates.through[group.start : group.stop]
        entering, entering_n = between.carry(added, parts.sums, through, table_here, carried, state, final, finite)
        if rows is not None and not any(blocks[b].rows_inside(rows) for b in group):
            continue
        scores = torch.bmm(parts.queries, parts.keys.transpose(1, 2))
        sums = between.weigh(scores, gates, first, start, log_scale)
        inside = torch.bmm(scores, parts.values)
        past = torch.bmm(parts.queries, entering, out=added.new_empty(inside.shape))
        into, floors = gates.into[here], gates.floors[here]
        between.readout(inside, past, parts.queries, entering_n, sums, into, floors, eps, y[here], finite)
    return Checked(y if rows is None else y[list(rows)], (*final, gates.m), bool(finite))


def side_by_side(heads: int) -> int:
    """Blocks of a group."""
    return max(1, PRODUCTS // heads)


def workspace(heads: int, d_qk: int, d_v: int, itemsize: int) -> list[int]:
    """The blocks of a group: q, k, v by heads, scores, readouts and states. Widths over all heads."""
    blocks, matrix = side_by_side(heads), d_qk * d_v // heads
    by_head = [d_qk] * 3 + [d_v] * 3 + [heads * CHUNK_SIZE]
    return (
        [itemsize * CHUNK_SIZE * blocks * size for size in by_head]
        + [matrix * 4] * 2
        + [2 * itemsize * blocks * matrix]
    )


def _groups(blocks: list[Block], most: int) -> list[range]:
    """Neighbours of one size, at most so many in a group."""
    groups, at = [], 0
    for _, same in groupby(blocks, key=lambda block: block.size):
        end = at + len(list(same))
        groups += [range(start, min(start + most, end)) for start in range(at, end, most)]
        at = end
    return groups
