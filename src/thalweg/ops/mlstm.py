"""The matrix memory of xLSTM (mLSTM, arXiv 2405.04517, section 2.3; its chunk form arXiv 2503.13427) over a packed run.

Legend: N tokens, H heads, K width of queries and keys, P width of values, Q inner chunk, S_in / S_out segments with a
carried / wanted state, b blocks of q <= Q tokens.

    m_t = max( logsigmoid(f_t) + m_{t-1}, i_t )                                  one number a head, m_0 = 0
    C_t = exp(logsigmoid(f_t) + m_{t-1} - m_t) C_{t-1} + exp(i_t - m_t) k_t (x) v_t          (K, P) a head
    n_t = exp(logsigmoid(f_t) + m_{t-1} - m_t) n_{t-1} + exp(i_t - m_t) k_t                  (K,)
    y_t = C_t^T q_t / ( max(|n_t . q_t|, exp(-m_t)) + eps )                      with q_t / sqrt(K) for q_t

m keeps every exponential at most 1. It is carried, and it is the same number however a text is cut: since eps is added
after the division by exp(m), another m would give other outputs. With F_t the sum of logsigmoid(f) from the segment's
start and a_j = i_j - F_j,

    g_t = max( m_0, max_{j <= t} a_j )        m_t = F_t + g_t        weight of token j at token t: exp(a_j - g_t)

so all of m comes from one running maximum over vectors, before any block is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg import kernels
from thalweg.errors import InvalidInputError
from thalweg.isolation import isolated
from thalweg.packing import Block, BlockGroup, Links, Packing, blocks_side_by_side

_Memory: TypeAlias = tuple[Tensor, Tensor]
"""C and n of some segments or blocks."""


class MLSTMState(NamedTuple):
    """C: (S, H, K, P), n: (S, H, K), m: (S, H); all float32 (float64 for float64 input). C and n are times exp(-m)."""

    C: Tensor
    n: Tensor
    m: Tensor


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    packing: Packing,
    *,
    eps: float = 1e-6,
    initial_state: tuple[Tensor, Tensor, Tensor] | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, MLSTMState]:
    """Run the memory over every segment of a packed run.

    Args:
        q, k: (N, H, K), floating; their dtype is that of the matrix products. q is scaled by 1 / sqrt(K) here.
        v: (N, H, P), same dtype.
        i: (N, H) input gate, log space: a token is written with weight exp(i). Finite.
        f: (N, H) forget gate before its sigmoid. Finite.
        packing: the run's layout, N tokens.
        eps: added to the normaliser after it was divided by exp(m).
        initial_state: C (S_in, H, K, P), n (S_in, H, K), m (S_in, H), float32; None stands for zeros.
        rows: M ascending positions whose y is wanted; None stands for all N.
        chunk_size: Q, any size >= 1: it changes the speed, not the result; None is `DEFAULT_CHUNK_SIZE`.

    Returns:
        y (N or M, H, P) in q's dtype, and the final `MLSTMState` of S_out segments.

    Raises:
        InvalidInputError: shapes that do not fit together, or chunk_size < 1.
    """
    _check(q, k, v, i, f, packing, initial_state, chunk_size)
    run = kernels.kernel("mlstm", q, k, v) or chunkwise_mlstm
    y, state = run(q, k, v, i, f, packing, eps=eps, initial_state=initial_state, rows=rows, chunk_size=chunk_size)
    return y, MLSTMState(*state)


def sequential_mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    packing: Packing,
    *,
    eps: float = 1e-6,
    initial_state: tuple[Tensor, Tensor, Tensor] | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, MLSTMState]:
    """The reference: one token after the other, same signature as `mlstm` (`chunk_size` has no meaning here)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scaled, keys, values = q.to(dtype) * q.shape[2] ** -0.5, k.to(dtype), v.to(dtype)
    log_forget, log_input = F.logsigmoid(f.to(dtype)), i.to(dtype)
    zeros = _zero_states(q, v, packing.n_segments, dtype)
    carried = zeros if initial_state is None else initial_state
    y, final = [], []
    for segment, (start, stop) in enumerate(zip(packing.cu_seqlens, packing.cu_seqlens[1:], strict=False)):
        is_carried = initial_state is not None and segment < packing.n_carried
        row = packing.carried_rows[segment] if is_carried else segment
        C, n, m = (t[row].to(dtype) for t in (carried if is_carried else zeros))
        for t in range(start, stop):
            new_m = torch.maximum(log_forget[t] + m, log_input[t])
            keep, write = torch.exp(log_forget[t] + m - new_m), torch.exp(log_input[t] - new_m)
            C = keep[:, None, None] * C + write[:, None, None] * torch.einsum("hk,hp->hkp", keys[t], values[t])
            n = keep[:, None] * n + write[:, None] * keys[t]
            m = new_m
            normaliser = torch.maximum((n * scaled[t]).sum(1).abs(), torch.exp(-m)) + eps
            y.append(torch.einsum("hk,hkp->hp", scaled[t], C) / normaliser[:, None])
        if segment in packing.wanted:
            final.append((C, n, m))
    out = torch.stack(y).to(q.dtype)
    state = tuple(torch.stack(parts) for parts in zip(*final, strict=True)) or tuple(t[:0] for t in zeros)
    return out if rows is None else out[list(rows)], MLSTMState(*state)


@isolated("q", "k", "v", "i", "f")
def chunkwise_mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    packing: Packing,
    *,
    eps: float = 1e-6,
    initial_state: tuple[Tensor, Tensor, Tensor] | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
    blocks_per_group: int | None = None,
) -> tuple[Tensor, MLSTMState]:
    """Blocks as matrix products, one state handed from block to block: work linear in N. Signature of `mlstm`.

    `blocks_per_group` blocks are treated side by side (None: chosen for the device); it bounds the workspace.
    """
    chunk_size = chunk_size or DEFAULT_CHUNK_SIZE
    blocks_per_group = blocks_per_group or blocks_side_by_side(q.device, 4 * q.shape[1] * chunk_size**2)
    dtype = torch.promote_types(q.dtype, torch.float32)
    # Products this small gain nothing from half precision on the CPU, and what lies between them loses by converting.
    products = dtype if q.device.type == "cpu" else q.dtype
    run = _Gates(i, f, packing, initial_state, dtype)
    carried: _Memory | None = None
    if initial_state is not None:
        carried = initial_state[0].to(dtype), initial_state[1].to(dtype)
    picked = rows if blocks_per_group == 1 else None

    y = v.new_empty(packing.n_tokens if picked is None else len(picked), *v.shape[1:])
    done = 0
    final: list[_Memory] = []
    carry: _Memory | None = None
    for group in packing.block_groups(chunk_size, blocks_per_group):
        block = group.blocks[0] if len(group.blocks) == 1 else None
        queries = None if picked is None else group.blocks[0].rows_inside(picked)
        weights = _Weights(run, group, q.shape[2])
        keys, values = _by_head(group.take(k), products), _by_head(group.take(v), products)
        entering: _Memory | None
        leaving: _Memory | None
        if block is not None:
            local = _written(keys, values, weights) if block.leaves else None
            entering, leaving = _hand_on_one(local, weights, block, carry, carried)
        else:
            local = _written(keys, values, weights)
            entering, leaving = _hand_on_many(local, weights, group.links, carry, carried)
        if queries is None or len(queries):
            out = _read(_by_head(group.take(q), products), keys, values, entering, weights, queries, eps)
            out = group.flatten(out) if queries is None else out[0]
            y[done : done + len(out)] = out
            done += len(out)
        carry = None if leaving is None else (leaving[0][-1], leaving[1][-1])
        if leaving is not None:
            final += [(leaving[0][n], leaving[1][n]) for n, b in enumerate(group.blocks) if b.final >= 0]
    m = run.m[[packing.cu_seqlens[segment + 1] - 1 for segment in packing.wanted]].to(dtype)
    y = y if rows is None or picked is not None else y[list(rows)]
    if not final:
        return y, MLSTMState(*_zero_states(q, v, 0, dtype)[:2], m)
    return y, MLSTMState(torch.stack([C for C, _ in final]), torch.stack([n for _, n in final]), m)


DEFAULT_CHUNK_SIZE = 128
"""The inner chunk Q that is fastest here, at the head widths of 100 to 500 of public models."""


def default_chunk_size(device: torch.device, dtype: torch.dtype) -> int:
    """The inner chunk Q that `mlstm` takes without gradients."""
    run = kernels.planned("mlstm", device, dtype)
    return run.chunk_size or DEFAULT_CHUNK_SIZE if run else DEFAULT_CHUNK_SIZE


def mlstm_blocks(heads: int, d_qk: int, d_v: int, device: torch.device, dtype: torch.dtype) -> list[int]:
    """Bytes of each tensor that lives inside `mlstm` without gradients; widths over all heads."""
    run = kernels.planned("mlstm", device, dtype)
    if run and run.workspace:
        return run.workspace(heads, d_qk, d_v, dtype.itemsize)
    chunk = DEFAULT_CHUNK_SIZE
    return [4 * heads * chunk * chunk, 4 * (d_qk * d_v // heads), 4 * chunk * d_v] * 4


class _Gates:
    """Gates of the whole run in float64: a, g and m of the file's docstring.

    Sums over a long text lose digits in float32, and only differences of them count. These are vectors; the (q, q)
    matrices that are made of them are float32.
    """

    def __init__(
        self,
        i: Tensor,
        f: Tensor,
        packing: Packing,
        initial_state: tuple[Tensor, Tensor, Tensor] | None,
        dtype: torch.dtype,
    ) -> None:
        self.dtype = dtype  # of what is made of them
        log_forget = F.logsigmoid(f.to(dtype)).double()
        start = log_forget.new_zeros(packing.n_segments, f.shape[1])
        if initial_state is not None:
            start = torch.cat([packing.by_segment(initial_state[2]).double(), start[packing.n_carried :]])
        sums = _by_segment(log_forget, packing, lambda piece: piece.cumsum(0))
        a = i.double() - sums
        running = _by_segment(a, packing, lambda piece: piece.cummax(0).values)
        g = torch.maximum(running, start[packing.segment_ids])
        g_before = torch.cat([start[:1], g[:-1]]).index_copy(0, packing.starts, start)
        self.m = sums + g  # (N, H)
        self.table = torch.stack([a, g, g_before, torch.exp(-self.m)], dim=1)  # (N, 4, H)


def _by_segment(t: Tensor, packing: Packing, running: Callable[[Tensor], Tensor]) -> Tensor:
    """(N, H) -> (N, H): a running sum or maximum over each segment, rounded by nothing that lies before it."""
    if packing.n_segments == 1:
        return running(t)
    return torch.cat([running(piece) for piece in t.split(packing.lengths)])


class _Weights:
    """Weights of the tokens of a group on each other and on the states; none is above 1, up to the scale of q.

    Blocks and heads are one dimension, b * H, in all of them.
    """

    def __init__(self, run: _Gates, group: BlockGroup, key_width: int) -> None:
        self.group = group
        self.heads = run.m.shape[1]
        self.dtype = run.dtype
        self.log_scale = -0.5 * math.log(key_width)
        table = group.take(run.table).permute(2, 0, 3, 1).flatten(1, 2).contiguous()
        self.a, self.g, before, floors = table.unbind()
        self.floors = floors.to(run.dtype)
        self.before = before[:, :1]  # g where the block begins
        if group.is_slice:
            self.last = self.g[:, -1:]
        else:
            ends = (group.inside.sum(1) - 1).repeat_interleave(self.heads)
            self.last = self.g.gather(1, ends[:, None])

    def between(self, queries: list[int] | None) -> Tensor:
        """(bH, i, j): weight of token j at token i; arbitrary but finite where i may not see j."""
        g = self.g if queries is None else self.g[:, queries]
        return self._exp(self.a[:, None, :] - (g - self.log_scale)[:, :, None])

    def into(self, queries: list[int] | None) -> Tensor:
        """(bH, i, 1): weight of the entering state at token i, zero where i has no past before the block."""
        g = self.g if queries is None else self.g[:, queries]
        weight = self._exp(self.before + self.log_scale - g)
        if not self.group.all_enter:
            enters = self.group.enters if queries is None else self.group.enters[:, queries]
            weight = weight.masked_fill(~self._every_head(enters), 0)  # selected: what is weighed there may be inf
        return weight[..., None]

    def out_of(self) -> Tensor:
        """(bH, j, 1): weight of token j in the leaving state, zero where nothing goes on."""
        return self._exp(self.a - self.last).masked_fill(~self._every_head(self.group.leaves), 0)[..., None]

    def through(self) -> Tensor:
        """(b, H, 1): weight of the entering state in the leaving one."""
        return self._exp(self.before - self.last).unflatten(0, (-1, self.heads))

    def mask_(self, scores: Tensor, queries: list[int] | None) -> Tensor:
        """(bH, i, j), changed in place: zero where token i may not see j."""
        block = self.group.blocks[0]
        if len(self.group.blocks) == 1 and block.size in (block.enters, block.leaves) and queries is None:
            return scores.tril_()  # of one segment: ten times as fast
        visible = self.group.visible if queries is None else self.group.visible[:, queries]
        return scores.masked_fill_(~self._every_head(visible), 0)

    def floor(self, queries: list[int] | None) -> Tensor:
        """(bH, i): exp(-m), which the normaliser does not fall below."""
        return self.floors if queries is None else self.floors[:, queries]

    def _every_head(self, mask: Tensor) -> Tensor:
        """(b, …) -> (bH, …), or (1, …), which goes with any bH."""
        return mask if len(mask) == 1 else mask.repeat_interleave(self.heads, dim=0)

    def _exp(self, exponent: Tensor) -> Tensor:
        """exp in the range where neither it nor its products are denormal, which would cost a hundred times the time.

        The least, exp(-80), is as good as zero. Above 0 is only what is not visible.
        """
        return exponent.to(self.dtype).clamp_(-80, 0).exp_()


def _by_head(t: Tensor, dtype: torch.dtype) -> Tensor:
    """(b, q, H, …) -> (bH, q, …) in the dtype of the products."""
    return t.to(dtype).transpose(1, 2).flatten(0, 1)


def _written(keys: Tensor, values: Tensor, weights: _Weights) -> _Memory:
    """(b, H, K, P) and (b, H, K): what each block adds to the state that leaves it."""
    weighted = keys * weights.out_of().to(keys.dtype)
    C = torch.bmm(weighted.transpose(1, 2), values).to(weights.dtype)
    n = weighted.sum(1, dtype=weights.dtype)
    return C.unflatten(0, (-1, weights.heads)), n.unflatten(0, (-1, weights.heads))


def _read(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    entering: _Memory | None,
    weights: _Weights,
    queries: list[int] | None,
    eps: float,
) -> Tensor:
    """(b, i, H, P): y of the group's tokens, or of the wanted ones, in the dtype that is summed in."""
    q = q if queries is None else q[:, queries]
    scores = weights.mask_(torch.bmm(q, keys.transpose(1, 2)), queries)
    seen = weights.between(queries) * scores
    out, normaliser = torch.bmm(seen.to(q.dtype), values), seen.sum(2)
    if entering is not None:
        C, n = entering
        past = q * weights.into(queries).to(q.dtype)
        out = torch.baddbmm(out, past, C.flatten(0, 1).to(q.dtype))
        normaliser = normaliser + torch.bmm(past.to(n.dtype), n.flatten(0, 1)[..., None])[..., 0]
    normaliser = torch.maximum(normaliser.abs(), weights.floor(queries)) + eps
    return (out / normaliser[..., None]).unflatten(0, (-1, weights.heads)).transpose(1, 2)


def _hand_on_one(
    local: _Memory | None, weights: _Weights, block: Block, carry: _Memory | None, carried: _Memory | None
) -> tuple[_Memory | None, _Memory | None]:
    """The states of one row that enter and leave a block on its own; None stands for zero or not needed."""
    entering = None
    if block.initial >= 0:
        entering = None if carried is None else (carried[0][block.initial, None], carried[1][block.initial, None])
    elif block.enters and carry is not None:
        entering = carry[0][None], carry[1][None]
    if local is not None and entering is not None and block.passes_through:
        through = weights.through()
        local = local[0].addcmul_(through[..., None], entering[0]), local[1].addcmul_(through, entering[1])
    return entering, local


def _hand_on_many(
    local: _Memory, weights: _Weights, links: Links, carry: _Memory | None, carried: _Memory | None
) -> tuple[_Memory, _Memory]:
    """The states (b, H, K, P) and (b, H, K) that enter and leave each block, from what the blocks add themselves."""
    through = weights.through()

    def hand_on(part: int, kept: Tensor) -> tuple[Tensor, Tensor]:
        def leave(blocks: Tensor, past: Tensor) -> Tensor:
            return local[part][blocks] + kept[blocks] * past

        zero = torch.zeros_like(local[part][:1])
        return links.hand_on(zero, carry and carry[part], carried and carried[part], leave)

    (C_entering, C_leaving), (n_entering, n_leaving) = hand_on(0, through[..., None]), hand_on(1, through)
    return (C_entering, n_entering), (C_leaving, n_leaving)


def _zero_states(q: Tensor, v: Tensor, n_segments: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    _, heads, key_width = q.shape
    shapes = ((heads, key_width, v.shape[2]), (heads, key_width), (heads,))
    C, n, m = (v.new_zeros(n_segments, *shape, dtype=dtype) for shape in shapes)
    return C, n, m


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    packing: Packing,
    initial_state: tuple[Tensor, Tensor, Tensor] | None,
    chunk_size: int | None,
) -> None:
    if q.ndim != 3 or len(q) != packing.n_tokens or q.shape != k.shape:
        raise InvalidInputError(
            f"q and k must be (N={packing.n_tokens}, H, K), got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    n, heads, key_width = q.shape
    if v.ndim != 3 or v.shape[:2] != (n, heads):
        raise InvalidInputError(f"v must be (N, H, P) with N, H = {(n, heads)}, got {tuple(v.shape)}")
    if i.shape != (n, heads) or f.shape != (n, heads):
        raise InvalidInputError(f"i and f must be (N, H) = {(n, heads)}, got {tuple(i.shape)} and {tuple(f.shape)}")
    if initial_state is not None:
        found = tuple(tuple(tensor.shape) for tensor in initial_state)
        batch = (packing.n_states, heads)
        expected = ((*batch, key_width, v.shape[2]), (*batch, key_width), batch)
        if found != expected:
            raise InvalidInputError(
                f"initial_state must be C (S_in, H, K, P), n (S_in, H, K), m (S_in, H) = {expected}, got {found}"
            )
    if chunk_size is not None and chunk_size < 1:
        raise InvalidInputError(f"chunk_size must be at least 1, got {chunk_size}")
