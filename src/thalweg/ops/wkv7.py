"""The time mixing of RWKV-7 "Goose" (arXiv 2503.14456) over a packed run: a delta rule with a decay for each channel.

Legend: N tokens, H heads, K key width, V value width, Q inner chunk, S_in / S_out segments with a carried / wanted
state, b blocks of q <= Q tokens, M rows that are wanted.

    S_t = S_{t-1} diag(w_t) - (S_{t-1} kk_t) (a_t * kk_t)^T + v_t k_t^T              (V, K) a head, float32
    y_t = S_t r_t

w in (0, 1] is the decay, kk the unit vector whose old value is taken out of the state, a in [0, 1] how much of it.

Inside a block of tokens 1 … q let G_i be the sum of log w up to and with token i, minus that at the block's middle:
log w is never below -0.6065 (-e^-0.5), so exp(G) and exp(-G) are harmless numbers. With

    R_i = r_i e^{G_i},  Z_i = kk_i e^{G_{i-1}},  B_i = a_i kk_i e^{-G_i},  L_i = k_i e^{-G_i},  T = S e^{-G_0}

the values c_i that token i takes out of the state solve a triangular system, and all else is a matrix product:

    (1 + tril_{-1}(Z B^T)) c = Z T^T + tril_{-1}(Z L^T) v
    y                        = R T^T + tril(R L^T) v - tril(R B^T) c
    S'                       = (T + v^T L - c^T B) e^{G_q}
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg import kernels
from thalweg.errors import InvalidInputError
from thalweg.isolation import isolated
from thalweg.packing import WORKSPACE, BlockGroup, Links, Packing

MAX_CHUNK = 64
"""Tokens in a block at most: 32 steps of log w >= -0.6065 on either side of its middle keep all factors below 1e9."""


def default_chunk_size() -> int:
    """The inner chunk Q that is fastest here."""
    return 32


def wkv7(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    kk: Tensor,
    a: Tensor,
    packing: Packing,
    *,
    initial_state: Tensor | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan every segment of a packed run.

    Args:
        r: (N, H, K) receptance, floating; y has its dtype. With `rows` also (M, H, K): of the wanted rows only.
        log_w: (N, H, K) logarithm of the decay, in [-0.6065, 0].
        k: (N, H, K) what is written.
        v: (N, H, V) the values written.
        kk: (N, H, K) direction that is taken out, of length 1 in each head.
        a: (N, H, K) how much of it is taken out, in [0, 1].
        packing: the run's layout, N tokens.
        initial_state: (S_in, H, V, K) float32; None stands for zeros.
        rows: M ascending positions whose y is wanted; None stands for all N.
        chunk_size: Q, any size >= 1 (no block is longer than `MAX_CHUNK`): it changes the speed, not the result; None
            is `default_chunk_size`.

    Returns:
        y (N or M, H, V) in r's dtype, and final_state (S_out, H, V, K) float32 (float64 for float64 input).

    Raises:
        InvalidInputError: shapes that do not fit together, or chunk_size < 1.
    """
    _check(r, log_w, k, v, kk, a, packing, initial_state, rows, chunk_size)
    run = kernels.kernel("wkv7", r, log_w, k, v, kk, a) or chunkwise_wkv7
    return run(r, log_w, k, v, kk, a, packing, initial_state=initial_state, rows=rows, chunk_size=chunk_size)


def sequential_wkv7(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    kk: Tensor,
    a: Tensor,
    packing: Packing,
    *,
    initial_state: Tensor | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The reference: one token after the other, same signature as `wkv7` (`chunk_size` has no meaning here)."""
    out_dtype, dtype = r.dtype, torch.promote_types(r.dtype, torch.float32)
    r, log_w, k, v, kk, a = (t.to(dtype) for t in (r, log_w, k, v, kk, a))
    if rows is not None and len(r) != packing.n_tokens:
        r = r.new_zeros(packing.n_tokens, *r.shape[1:]).index_copy(
            0, torch.tensor(rows, dtype=torch.int64, device=r.device), r
        )
    y, final = [], []
    for segment, (start, stop) in enumerate(zip(packing.cu_seqlens, packing.cu_seqlens[1:], strict=False)):
        state = v.new_zeros(*v.shape[1:], k.shape[2])
        if initial_state is not None and segment < packing.n_carried:
            state = initial_state[packing.carried_rows[segment]].to(dtype)
        for t in range(start, stop):
            removed = torch.einsum("hvk,hk->hv", state, kk[t])
            state = state * log_w[t, :, None].exp() - torch.einsum("hv,hk->hvk", removed, a[t] * kk[t])
            state = state + torch.einsum("hv,hk->hvk", v[t], k[t])
            y.append(torch.einsum("hvk,hk->hv", state, r[t]))
        if segment in packing.wanted:
            final.append(state)
    out = torch.stack(y)
    empty = v.new_zeros(0, *v.shape[1:], k.shape[2])
    return (out if rows is None else out[list(rows)]).to(out_dtype), torch.stack(final) if final else empty


@isolated("r", "log_w", "k", "v", "kk", "a")
def chunkwise_wkv7(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    kk: Tensor,
    a: Tensor,
    packing: Packing,
    *,
    initial_state: Tensor | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
    blocks_per_group: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Blocks as matrix products, one state handed from block to block: work linear in N. Signature of `wkv7`.

    `blocks_per_group` blocks are treated side by side (None: chosen for the device); it bounds the workspace.
    """
    chunk_size = min(chunk_size or default_chunk_size(), MAX_CHUNK)
    inputs = (r, log_w, k, v, kk, a) if initial_state is None else (r, log_w, k, v, kk, a, initial_state)
    needs_gradients = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    if blocks_per_group is None:
        alone = r.device.type == "cpu" and not needs_gradients
        blocks_per_group = 1 if alone else max(1, WORKSPACE // (4 * r.shape[1] * (2 * chunk_size) ** 2))
    if blocks_per_group == 1 and not needs_gradients:
        return _one_by_one(r, log_w, k, v, kk, a, packing, initial_state, rows, chunk_size)
    return _side_by_side(r, log_w, k, v, kk, a, packing, initial_state, rows, chunk_size, blocks_per_group)


def _one_by_one(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    kk: Tensor,
    a: Tensor,
    packing: Packing,
    initial_state: Tensor | None,
    rows: Sequence[int] | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """One block after the other in buffers that stay in cache, without gradients."""
    (_, heads, v_width), width = v.shape, k.shape[2]
    work = _Buffers(heads, v_width, width, chunk_size, torch.promote_types(r.dtype, torch.float32), v.device)
    n_out = packing.n_tokens if rows is None else len(rows)
    y = r.new_empty(n_out, *v.shape[1:])
    final = work.state.new_empty(len(packing.wanted), *work.state.shape)
    only_rows = rows is not None and len(r) != packing.n_tokens
    done = 0
    for group in packing.block_groups(chunk_size, 1):
        block = group.blocks[0]
        tokens = slice(block.start, block.stop)
        queries = None if rows is None else block.rows_inside(rows)
        n_queries = block.size if queries is None else len(queries)
        asked = slice(done, done + n_queries)
        if queries is None:
            rq = r[tokens]
        elif only_rows:
            rq = r[asked]
        else:
            rq = r[[block.start + query for query in queries]]
        if block.initial >= 0:
            if initial_state is None:
                work.state.zero_()
            else:
                work.state.copy_(initial_state[block.initial])
        work.step(group, rq, log_w[tokens], k[tokens], v[tokens], kk[tokens], a[tokens], queries, y[asked])
        if block.final >= 0:
            final[block.final] = work.state
        done += n_queries
    return y, final


class _Buffers:
    """Scratch of one block, allocated once a call; `state` (H, V, K) is carried from block to block.

    `left` (H, q + M, K) holds Z over R, `right` (H, V + 2q, K) holds T over B over L: one product makes all scores.
    """

    def __init__(
        self, heads: int, v_width: int, width: int, chunk: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.left = empty(heads, 2 * chunk, width)
        self.right = empty(heads, v_width + 2 * chunk, width)
        self.scores = empty(heads, 2 * chunk, v_width + 2 * chunk)
        self.values = empty(heads, 2 * chunk, v_width)
        self.state = empty(heads, v_width, width).zero_()
        self.centring = _one_middle(chunk, self.state)
        self.causal = _score_mask(torch.ones(chunk, chunk, dtype=torch.bool, device=device).tril(), dtype)

    def step(
        self,
        group: BlockGroup,
        r: Tensor,
        log_w: Tensor,
        k: Tensor,
        v: Tensor,
        kk: Tensor,
        a: Tensor,
        queries: list[int] | None,
        y: Tensor,
    ) -> None:
        """One block: writes y (M, H, V), and leaves the state after the block in `state`."""
        block, q, m, v_width = group.blocks[0], len(k), len(r), v.shape[2]
        left, right = self.left[:, : q + m], self.right[:, : v_width + 2 * q]
        values, scores = self.values[:, : 2 * q], self.scores[:, : q + m, : v_width + 2 * q]
        centring = self.centring if q == len(self.causal) // 2 and group.first is None else _centring(group, self.state)
        sums = centring @ log_w.to(self.state.dtype).flatten(1)
        decay = sums.exp_().unflatten(-1, k.shape[1:]).transpose(0, 1)  # (H, …, K)
        before, after = decay[:, :q], decay[:, -q:]
        kk = kk.transpose(0, 1)
        torch.mul(kk, before, out=left[:, :q])
        torch.mul(r.transpose(0, 1), after if queries is None else after[:, queries], out=left[:, q:])
        torch.div(self.state, decay[:, :1], out=right[:, :v_width])
        torch.div(kk, after, out=right[:, v_width : v_width + q]).mul_(a.transpose(0, 1))
        torch.div(k.transpose(0, 1), after, out=right[:, v_width + q :])
        values[:, q:] = v.transpose(0, 1)

        torch.bmm(left, right.transpose(1, 2), out=scores)
        past, inside = scores.split([v_width, 2 * q], dim=2)
        if block.enters < q:
            past[:, block.enters : q] = 0
            past[:, q + (block.enters if queries is None else bisect_left(queries, block.enters)) :] = 0
        inside *= self._mask(group, queries)
        removed = torch.baddbmm(past[:, :q], inside[:, :q, q:], values[:, q:])
        removed = torch.linalg.solve_triangular(inside[:, :q, :q], removed, upper=False, unitriangular=True)
        torch.neg(removed, out=values[:, :q])
        if m:
            y.copy_(torch.baddbmm(past[:, q:], inside[:, q:], values).transpose(0, 1))
        if not block.leaves:
            return
        if block.passes_through:
            torch.baddbmm(right[:, :v_width], values.transpose(1, 2), right[:, v_width:], out=self.state)
        else:
            values.unflatten(1, (2, q))[:, :, : q - block.leaves] = 0
            torch.bmm(values.transpose(1, 2), right[:, v_width:], out=self.state)
        self.state *= decay[:, -1:]

    def _mask(self, group: BlockGroup, queries: list[int] | None) -> Tensor:
        """(q + M, 2q) ones and zeros: which scores count."""
        block, chunk = group.blocks[0], len(self.causal) // 2
        if block.size == chunk and max(block.enters, block.leaves) == chunk:  # one segment, the usual case
            mask = self.causal
        else:
            mask = _score_mask(group.visible[0], self.causal.dtype)
        if queries is None:
            return mask
        return mask[[*range(block.size), *(block.size + query for query in queries)]]


def _score_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """(…, q, q) bool -> (…, 2q, 2q): Z looks at B and L before its own token, R also at its own."""
    return torch.cat([visible.tril(-1).tile(2), visible.tile(2)], dim=-2).to(dtype)


def _centring(group: BlockGroup, like: Tensor) -> Tensor:
    """(…, r, q): the matrix that turns log w into G; its first q rows are before each token, its last q after it.

    G counts from the middle of what the block has of the token's segment: that leaves half the terms, none that cancel,
    and none of another segment.
    """
    if group.first is None:
        return _one_middle(group.size, like)
    return group.once(("centring", like.dtype), lambda: _middles(group, like))


def _middles(group: BlockGroup, like: Tensor) -> Tensor:
    q, first = group.size, group.first
    assert first is not None
    own = (first[:, :, None] == first[:, None, :]) & group.inside[:, None, :]
    middle = (first + (own.sum(2) - 1) // 2)[..., None]
    token = torch.arange(q, device=like.device)
    rows = []
    for row in (token[:, None] - 1, token[:, None]):
        after, before = (token > middle) & (token <= row), (token <= middle) & (token > row)
        rows.append((after.to(like.dtype) - before.to(like.dtype)) * own)
    centring = torch.cat(rows, dim=1)
    return centring[0] if len(centring) == 1 else centring[:, None]


def _one_middle(q: int, like: Tensor) -> Tensor:
    """(q + 1, q): the same for blocks of one segment each, where after a token is before the next."""
    token = torch.arange(q, device=like.device)
    row = torch.arange(-1, q, device=like.device)[:, None]
    middle = (q - 1) // 2
    after = (token > middle) & (token <= row)
    before = (token <= middle) & (token > row)
    return after.to(like.dtype) - before.to(like.dtype)


def _side_by_side(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    kk: Tensor,
    a: Tensor,
    packing: Packing,
    initial_state: Tensor | None,
    rows: Sequence[int] | None,
    chunk_size: int,
    blocks_per_group: int,
) -> tuple[Tensor, Tensor]:
    """Many blocks at a time, with gradients: what each does to any state first, then the states one after the other."""
    dtype = torch.promote_types(r.dtype, torch.float32)
    if rows is not None and len(r) != packing.n_tokens:
        r = r.new_zeros(packing.n_tokens, *r.shape[1:]).index_copy(
            0, torch.tensor(rows, dtype=torch.int64, device=r.device), r
        )
    y, final = [], []
    carry: Tensor | None = None
    for group in packing.block_groups(chunk_size, blocks_per_group):
        rg, wg, kg, vg, kkg, ag = (group.take(t).to(dtype).transpose(1, 2) for t in (r, log_w, k, v, kk, a))
        effect = _Effect(group, rg, wg, kg, vg, kkg, ag)
        entering, leaving = _hand_on(effect, group.links, carry, initial_state)
        out = effect.y + effect.reads @ entering.transpose(2, 3)
        y.append(group.flatten(out.transpose(1, 2)))
        carry = leaving[-1]
        final += [leaving[i] for i, block in enumerate(group.blocks) if block.final >= 0]
    out = torch.cat(y).to(r.dtype)
    empty = v.new_zeros(0, *v.shape[1:], k.shape[2], dtype=dtype)
    return out if rows is None else out[list(rows)], torch.stack(final) if final else empty


class _Effect:
    """What the blocks of a group do to any state S that enters them.

    The output is y + reads S^T, and the state that leaves is added + S through.

    y (b, H, q, V), reads (b, H, q, K), added (b, H, V, K), through (b, H, K, K).
    """

    def __init__(self, group: BlockGroup, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor):
        """All (b, H, q, K) or (b, H, q, V)."""
        q = k.shape[2]
        if not group.is_slice:
            log_w = log_w * group.inside[:, None, :, None]
        decay = (_centring(group, log_w) @ log_w).exp()  # (b, H, …, K)
        before, after = decay[:, :, :q], decay[:, :, -q:]
        Z, R, B, L = kk * before, r * after, a * kk / after, k / after
        mask = _score_mask(group.visible, k.dtype)[:, None]
        scores = (torch.cat([Z, R], dim=2) @ torch.cat([B, L], dim=2).transpose(2, 3)) * mask
        has_past = group.enters[:, None, :, None] / decay[:, :, :1]
        # The values that the tokens take out: of what the block itself wrote, and, as a product with S^T, of the past.
        system, written = scores[:, :, :q].split(q, dim=3)
        taken = torch.cat([written @ v, Z * has_past], dim=3)
        taken = torch.linalg.solve_triangular(system, taken, upper=False, unitriangular=True)
        own, past = taken.split([v.shape[3], k.shape[3]], dim=3)
        takes, reads = scores[:, :, q:].split(q, dim=3)
        self.y = reads @ v - takes @ own
        self.reads = R * has_past - takes @ past
        goes_on = group.leaves[:, None, :, None] * decay[:, :, -1:]
        B, L = B * goes_on, L * goes_on
        self.added = v.transpose(2, 3) @ L - own.transpose(2, 3) @ B
        whole = decay[:, :, -1] / decay[:, :, 0]
        self.through = torch.diag_embed(whole) - past.transpose(2, 3) @ B


def _hand_on(
    effect: _Effect, links: Links, carry: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The states (b, H, V, K) that enter and leave each block."""
    zero = torch.zeros_like(effect.added[:1])

    def leave(blocks: Tensor, past: Tensor) -> Tensor:
        return effect.added[blocks] + past @ effect.through[blocks]

    return links.hand_on(zero, carry, None if initial_state is None else initial_state.to(zero.dtype), leave)


def _check(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    kk: Tensor,
    a: Tensor,
    packing: Packing,
    initial_state: Tensor | None,
    rows: Sequence[int] | None,
    chunk_size: int | None,
) -> None:
    n = packing.n_tokens
    if k.ndim != 3 or len(k) != n:
        raise InvalidInputError(f"k must be (N={n}, H, K), got {tuple(k.shape)}")
    for name, tensor in (("log_w", log_w), ("kk", kk), ("a", a)):
        if tensor.shape != k.shape:
            raise InvalidInputError(f"{name} must be (N, H, K) = {tuple(k.shape)}, got {tuple(tensor.shape)}")
    n_read = n if rows is None else len(rows)
    if r.shape[1:] != k.shape[1:] or len(r) not in (n, n_read):
        wanted = f"{n} or {n_read}" if n_read != n else f"{n}"
        raise InvalidInputError(f"r must be ({wanted}, H, K) with (H, K) = {tuple(k.shape[1:])}, got {tuple(r.shape)}")
    if v.ndim != 3 or v.shape[:2] != k.shape[:2]:
        raise InvalidInputError(f"v must be (N={n}, H={k.shape[1]}, V), got {tuple(v.shape)}")
    expected = (packing.n_states, *v.shape[1:], k.shape[2])
    if initial_state is not None and tuple(initial_state.shape) != expected:
        raise InvalidInputError(f"initial_state must be (S_in, H, V, K) = {expected}, got {tuple(initial_state.shape)}")
    if chunk_size is not None and chunk_size < 1:
        raise InvalidInputError(f"chunk_size must be at least 1, got {chunk_size}")
