"""The gated delta rule (Gated DeltaNet, arXiv 2412.06464) over a packed run.

Legend: N tokens, Hk key heads of K channels, Hv value heads of V channels (Hv a multiple of Hk; value head h uses key
head h * Hk // Hv), Q inner chunk, S_in / S_out segments with a carried / wanted state, b blocks of q <= Q tokens,
B = b * Hv.

    q, k = l2norm(q), l2norm(k)                                x / sqrt(|x|^2 + 1e-6), where asked for
    u_t  = beta_t * (v_t - exp(g_t) * k_t S_{t-1})             what the state, once decayed, gets wrong
    S_t  = exp(g_t) * S_{t-1} + k_t (x) u_t                    (K, V) a value head, float32
    y_t  = K^-1/2 * q_t S_t

which is S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t (x) v_t. Inside a block, with G the running sum of g
and S the state before the block, the u of all its tokens solve one triangular system (the UT transform):

    (I + tril_-1(A)) U = beta * (V - exp(G) * K S),     A_ij = beta_i * exp(G_i - G_j) * k_i k_j
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from thalweg.errors import InvalidInputError
from thalweg.isolation import isolated
from thalweg.packing import Block, BlockGroup, Packing, blocks_side_by_side

L2_EPS = 1e-6
"""Added to the squared length of a key or query, as in the reference implementation."""


def default_chunk_size() -> int:
    """The inner chunk Q that is fastest here."""
    return 64


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    packing: Packing,
    *,
    l2norm: bool = True,
    initial_state: Tensor | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan every segment of a packed run.

    Args:
        q, k: (N, Hk, K), floating.
        v: (N, Hv, V), floating, Hv a multiple of Hk.
        g: (N, Hv) log decay, <= 0, unbounded below.
        beta: (N, Hv) writing strength, linear, in [0, 2]; above 1 the state's eigenvalues become negative.
        packing: the run's layout, N tokens.
        l2norm: bring q and k to unit length first. Without, |k|^2 * beta must not exceed 2, or the state explodes.
        initial_state: (S_in, Hv, K, V) float32; None stands for zeros.
        rows: M ascending positions whose y is wanted; None stands for all N.
        chunk_size: Q, any size >= 1: it changes the speed, not the result; None is `default_chunk_size`.

    Returns:
        y (N or M, Hv, V) in v's dtype, and final_state (S_out, Hv, K, V) float32 (float64 for float64 input).

    Raises:
        InvalidInputError: shapes that do not fit together, or chunk_size < 1.
    """
    _check(q, k, v, g, beta, packing, initial_state, chunk_size)
    return chunkwise_gated_delta_rule(
        q, k, v, g, beta, packing, l2norm=l2norm, initial_state=initial_state, rows=rows, chunk_size=chunk_size
    )


def sequential_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    packing: Packing,
    *,
    l2norm: bool = True,
    initial_state: Tensor | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The reference: one token after the other, same signature as `gated_delta_rule` (`chunk_size` has no meaning)."""
    heads, width = v.shape[1:]
    out_dtype, dtype = v.dtype, _wide(v)
    q, k = (t.to(dtype).repeat_interleave(heads // t.shape[1], dim=1) for t in (q, k))
    if l2norm:
        q, k = (t * torch.rsqrt(t.square().sum(-1, keepdim=True) + L2_EPS) for t in (q, k))
    q = q * q.shape[-1] ** -0.5
    v, beta, decay = v.to(dtype), beta.to(dtype), g.to(dtype).exp()
    y, final = [], []
    for segment, (start, stop) in enumerate(pairwise(packing.cu_seqlens)):
        state = v.new_zeros(heads, k.shape[-1], width)
        if initial_state is not None and segment < packing.n_carried:
            state = initial_state[packing.carried_rows[segment]].to(dtype)
        for t in range(start, stop):
            state = decay[t, :, None, None] * state
            update = beta[t, :, None] * (v[t] - torch.einsum("hk,hkv->hv", k[t], state))
            state = state + torch.einsum("hk,hv->hkv", k[t], update)
            y.append(torch.einsum("hk,hkv->hv", q[t], state))
        if segment in packing.wanted:
            final.append(state)
    out = torch.stack(y)
    empty = v.new_zeros(0, heads, k.shape[-1], width)
    return (out if rows is None else out[list(rows)]).to(out_dtype), torch.stack(final) if final else empty


@isolated("q", "k", "v", "g", "beta")
def chunkwise_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    packing: Packing,
    *,
    l2norm: bool = True,
    initial_state: Tensor | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
    blocks_per_group: int | None = None,
) -> tuple[Tensor, Tensor]:
    """A triangular system and matrix products a block, work linear in N. Signature of `gated_delta_rule`.

    `blocks_per_group` blocks are treated side by side (None: chosen for the device); it bounds the workspace.
    """
    chunk_size = chunk_size or default_chunk_size()
    blocks_per_group = blocks_per_group or blocks_side_by_side(v.device, 16 * v.shape[1] * chunk_size**2)
    if initial_state is not None:
        initial_state = initial_state.to(_wide(v))
    scan = _one_by_one if blocks_per_group == 1 else _many_at_once
    groups = packing.block_groups(chunk_size, blocks_per_group)
    y, final = scan(_Run(q, k, v, g, beta, l2norm), groups, initial_state, rows)
    return y, torch.stack(final) if final else v.new_zeros(0, v.shape[1], k.shape[2], v.shape[2], dtype=_wide(v))


def _wide(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


@dataclass(frozen=True)
class _Run:
    """The inputs of a scan as they came."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    l2norm: bool


class _Blocks:
    """What follows of the tokens of a group without the state, value heads of all blocks as one batch B.

    Attributes:
        keys: (B, q, K) normalised. reading: (B, q + m, K) the keys and, after them, the queries that are wanted.
        values: (B, q, V). beta: (B, q, 1).
        system: (B, q, q) A of the module's docstring; only what lies below the diagonal means anything.
        attention: (B, m, q) the weight of u_j in y_i, 0 where token i may not see j.
        into: (B, q, 1) decay from the block's start, 0 where a token has no past before the block.
        reading_into: (B, q + m, 1) the same in the rows of `reading`.
        out_of: (B, q, 1) decay to the block's end, 0 where nothing goes on.
        through: (B, 1, 1) decay over the whole block.
    """

    def __init__(self, run: _Run, group: BlockGroup, queries: list[int] | None) -> None:
        dtype = _wide(run.v)
        n_blocks, heads = len(group.blocks), run.v.shape[1]
        shared = heads // run.k.shape[1]

        def by_head(t: Tensor) -> Tensor:
            """(N, H, C) -> (b, H, q, C)."""
            return group.take(t).to(dtype).transpose(1, 2)

        def to_values(t: Tensor) -> Tensor:
            """(b, Hk, …) -> (B, …): every key head once for each of its value heads."""
            return t.repeat_interleave(shared, dim=1).flatten(0, 1) if shared > 1 else t.flatten(0, 1)

        k, q = by_head(run.k), by_head(run.q)
        q = q if queries is None else q[:, :, queries]
        reading = torch.cat([k, q], dim=2)
        scale = reading.new_ones(reading.shape[2], 1)
        scale[group.size :] = run.k.shape[2] ** -0.5
        if run.l2norm:
            length = torch.linalg.vector_norm(reading, dim=-1, keepdim=True)
            scale = torch.rsqrt(length.square() + L2_EPS) * scale
        reading = reading * scale
        scores = to_values(reading @ reading[:, :, : group.size].transpose(2, 3))
        self.reading = to_values(reading)
        self.keys = self.reading[:, : group.size]
        self.values = by_head(run.v).flatten(0, 1)
        self.beta = group.take(run.beta).to(dtype).transpose(1, 2).flatten(0, 1)[..., None]

        decays = _Decays(group.take(run.g), group, dtype)
        between = decays.between()
        self.system = scores[:, : group.size] * between * self.beta
        self.attention = scores[:, group.size :] * (between if queries is None else between[:, queries])
        self.into = decays.into()
        into = self.into if queries is None else self.into[:, queries]
        self.reading_into = torch.cat([self.into, into], dim=1)
        self.out_of, self.through = decays.out_of(), decays.through()
        self.shape = (n_blocks, heads)

    def read(self, state: Tensor) -> Tensor:
        """(B, q + m, V): what keys and queries find in the state (B, K, V) before the block, decayed to their time."""
        return torch.bmm(self.reading, state) * self.reading_into


class _Decays:
    """Decays inside the blocks of a group, formed from float64 prefix sums of the log decays.

    Only differences are exponentiated, which are never positive: g may be as strong as it likes. A difference of two
    long float32 sums would lose digits.
    """

    WEAKEST = -60.0  # exp(-60) is as good as 0, and its products with what is seen here are no denormal numbers

    def __init__(self, g: Tensor, group: BlockGroup, dtype: torch.dtype) -> None:
        """g: (b, q, Hv) <= 0."""
        g = g.double().clamp(min=-1e3)  # -inf has no differences
        if not group.is_slice:
            g = g * group.inside[..., None]
        self.sums = group.sums(g).transpose(1, 2)  # (b, Hv, q)
        self.group = group
        self.dtype = dtype

    def _exp(self, exponent: Tensor) -> Tensor:
        return exponent.to(self.dtype).clamp(min=self.WEAKEST).exp()

    def between(self) -> Tensor:
        """(B, i, j): from token j to token i, 0 where i may not see j."""
        exponent = (self.sums[..., None] - self.sums[:, :, None, :]).to(self.dtype)
        exponent = exponent.clamp(min=self.WEAKEST).masked_fill(~self.group.visible[:, None], float("-inf"))
        return exponent.exp().flatten(0, 1)

    def into(self) -> Tensor:
        """(B, q, 1): from the block's start to token i, 0 where i has no past before the block."""
        decay = self._exp(self.sums)
        if not self.group.all_enter:
            decay = decay * self.group.enters[:, None]
        return decay.flatten(0, 1)[..., None]

    def out_of(self) -> Tensor:
        """(B, q, 1): from token j to the block's end, 0 where nothing goes on."""
        exponent = self.sums[..., -1:] - self.sums
        if self.group.all_leave:
            return self._exp(exponent).flatten(0, 1)[..., None]
        decay = self._exp(exponent.clamp(max=0)) * self.group.leaves[:, None]  # above 0 is what does not go on
        return decay.flatten(0, 1)[..., None]

    def through(self) -> Tensor:
        """(B, 1, 1): over the whole block."""
        return self._exp(self.sums[..., -1]).flatten()[:, None, None]


def _solve(system: Tensor, right: Tensor) -> Tensor:
    """(I + tril_-1(system))^-1 right, (B, q, …): forward substitution, as stable as the recurrence itself.

    Written transposed, it is in the memory order that the library wants and nothing is copied.
    """
    return torch.linalg.solve_triangular(system.mT, right.mT, upper=True, left=False, unitriangular=True).mT


def _one_by_one(
    run: _Run, groups: list[BlockGroup], initial_state: Tensor | None, rows: Sequence[int] | None
) -> tuple[Tensor, list[Tensor]]:
    """Groups of one block each: the state goes straight into the triangular system."""
    n_rows = len(run.v) if rows is None else len(rows)
    y = run.v.new_empty(n_rows, *run.v.shape[1:])
    done = 0
    final = []
    carry: Tensor | None = None
    for group in groups:
        block = group.blocks[0]
        queries = None if rows is None else block.rows_inside(rows)
        if not block.leaves and queries == []:
            continue
        blocks = _Blocks(run, group, queries)
        state = _entering(block, carry, initial_state)
        right, out = blocks.values, None
        if state is not None:
            found, out = blocks.read(state).split([group.size, blocks.reading.shape[1] - group.size], dim=1)
            right = right - found
        updates = _solve(blocks.system, right * blocks.beta)
        n_queries = blocks.attention.shape[1]
        if n_queries:
            read = torch.bmm(blocks.attention, updates)
            y[done : done + n_queries] = (read if out is None else read.add_(out)).transpose(0, 1)
            done += n_queries
        carry = None
        if block.leaves:
            written = (blocks.keys * blocks.out_of).mT
            if state is not None and block.passes_through:
                carry = torch.baddbmm(state * blocks.through, written, updates)
            else:
                carry = torch.bmm(written, updates)
            if block.final >= 0:
                final.append(carry)
    return y, final


def _entering(block: Block, carry: Tensor | None, initial_state: Tensor | None) -> Tensor | None:
    """(Hv, K, V); None stands for zero."""
    if block.initial >= 0:
        return None if initial_state is None else initial_state[block.initial]
    return carry if block.enters else None


def _many_at_once(
    run: _Run, groups: list[BlockGroup], initial_state: Tensor | None, rows: Sequence[int] | None
) -> tuple[Tensor, list[Tensor]]:
    """Groups of several blocks: U = own - seen S, both solved for all blocks at once, then S from block to block."""
    width = run.v.shape[2]
    y, final = [], []
    carry: Tensor | None = None
    for group in groups:
        blocks = _Blocks(run, group, None)
        right = torch.cat([blocks.values, blocks.keys * blocks.into], dim=2) * blocks.beta
        own, seen = _solve(blocks.system, right).split([width, blocks.keys.shape[2]], dim=2)
        entering, leaving = _hand_on(blocks, own, seen, group, carry, initial_state)
        updates = own - torch.bmm(seen, entering)
        out = torch.bmm(blocks.attention, updates) + blocks.read(entering)[:, group.size :]
        y.append(group.flatten(out.unflatten(0, blocks.shape).transpose(1, 2)).to(run.v.dtype))
        carry = leaving[-1]
        final += [leaving[i] for i, block in enumerate(group.blocks) if block.final >= 0]
    out = torch.cat(y)
    return out if rows is None else out[list(rows)], final


def _hand_on(
    blocks: _Blocks, own: Tensor, seen: Tensor, group: BlockGroup, carry: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The states (B, K, V) that enter and (b, Hv, K, V) that leave each block.

    Blocks that one segment fills depend on the block before. They are taken level by level, all chains at once: the
    work is linear in the blocks, the depth that of the longest chain.
    """
    links = group.links
    own, seen, through = (t.unflatten(0, blocks.shape) for t in (own, seen, blocks.through))
    written = (blocks.keys * blocks.out_of).mT.unflatten(0, blocks.shape)
    zero = own.new_zeros(1, *written.shape[1:3], own.shape[3])

    def leave(n: Tensor, past: Tensor) -> Tensor:
        return through[n] * past + written[n] @ (own[n] - seen[n] @ past)

    entering, leaving = links.hand_on(zero, carry, initial_state, leave)
    return entering.flatten(0, 1), leaving


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    packing: Packing,
    initial_state: Tensor | None,
    chunk_size: int | None,
) -> None:
    if v.ndim != 3 or len(v) != packing.n_tokens:
        raise InvalidInputError(f"v must be (N={packing.n_tokens}, Hv, V), got {tuple(v.shape)}")
    n, heads, width = v.shape
    if k.ndim != 3 or q.shape != k.shape or len(k) != n or not k.shape[1] or heads % k.shape[1]:
        raise InvalidInputError(
            f"q and k must be (N={n}, Hk, K) with Hk a divisor of Hv={heads}, got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if g.shape != (n, heads) or beta.shape != (n, heads):
        raise InvalidInputError(
            f"g and beta must be (N, Hv) = {(n, heads)}, got {tuple(g.shape)} and {tuple(beta.shape)}"
        )
    expected = (packing.n_states, heads, k.shape[2], width)
    if initial_state is not None and tuple(initial_state.shape) != expected:
        raise InvalidInputError(
            f"initial_state must be (S_in, Hv, K, V) = {expected}, got {tuple(initial_state.shape)}"
        )
    if chunk_size is not None and chunk_size < 1:
        raise InvalidInputError(f"chunk_size must be at least 1, got {chunk_size}")
