"""State space duality: the scan of Mamba2 (arXiv 2405.21060) over a packed run.

Legend: N tokens, H heads of P channels, G groups of heads that share B and C, K state width, Q inner chunk,
S_in / S_out segments with a carried / wanted state, b blocks of q <= Q tokens.

    delta_t = clamp( softplus(dt_t + dt_bias), dt_limit )                       one number a head
    S_t     = exp(A * delta_t) * S_{t-1} + B_t (x) (delta_t * x_t)              (K, P) a head, float32
    y_t     = C_t S_t + D * x_t

States are laid out (K, H, P): reading or writing one for all heads of a group is then a single matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg import kernels
from thalweg.errors import InvalidInputError
from thalweg.isolation import isolated
from thalweg.ops.activations import softplus
from thalweg.packing import Block, BlockGroup, Links, Packing, blocks_side_by_side


def default_chunk_size(dtype: torch.dtype) -> int:
    """The inner chunk Q that is fastest here: half precision makes products cheaper than what lies between them."""
    return 128 if dtype.itemsize == 2 else 64


def ssd(
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
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_state: Tensor | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan every segment of a packed run.

    Args:
        x: (N, H, P), floating; its dtype is that of the matrix products.
        dt: (N, H) step sizes before bias, softplus and limits.
        A: (H,) float32, negative (linear space: -exp(A_log)).
        B, C: (N, G, K), G a divisor of H; head h uses group h * G // H.
        packing: the run's layout, N tokens.
        D: (H,) skip weight, or None.
        dt_bias: (H,) or None.
        dt_softplus: whether delta is softplus(dt + dt_bias) or dt + dt_bias itself.
        dt_limit: delta is clamped into this interval.
        initial_state: (S_in, K, H, P) float32; None stands for zeros.
        rows: M ascending positions whose y is wanted; None stands for all N.
        chunk_size: Q, any size >= 1: it changes the speed, not the result; None is `default_chunk_size`.

    Returns:
        y (N or M, H, P) in x's dtype, and final_state (S_out, K, H, P) float32 (float64 for float64 input).

    Raises:
        InvalidInputError: shapes that do not fit together, or chunk_size < 1.
    """
    _check(x, dt, A, B, C, packing, initial_state, chunk_size)
    run = kernels.kernel("ssd", x, B, C) or chunkwise_ssd
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
        dt_limit=dt_limit,
        initial_state=initial_state,
        rows=rows,
        chunk_size=chunk_size,
    )


def step_sizes(
    dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float], dtype: torch.dtype
) -> Tensor:
    """(N, H) delta in `dtype` from the raw projection."""
    delta = dt.to(dtype)
    delta = delta if dt_bias is None else delta + dt_bias.to(dtype)
    delta = softplus(delta) if dt_softplus else delta
    return delta if dt_limit == (0.0, float("inf")) and dt_softplus else delta.clamp(*dt_limit)


def sequential_ssd(
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
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_state: Tensor | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The reference: one token after the other, same signature as `ssd` (`chunk_size` has no meaning here)."""
    _, heads, width = x.shape
    groups, state_width = B.shape[1:]
    dtype = torch.promote_types(x.dtype, torch.float32)
    delta = step_sizes(dt, dt_bias, dt_softplus, dt_limit, dtype)
    decay = torch.exp(delta * A.to(dtype))
    out_dtype = x.dtype
    B, C = (t.to(dtype).repeat_interleave(heads // groups, dim=1) for t in (B, C))
    x = x.to(dtype)
    y, final = [], []
    for segment, (start, stop) in enumerate(zip(packing.cu_seqlens, packing.cu_seqlens[1:], strict=False)):
        state = x.new_zeros(state_width, heads, width)
        if initial_state is not None and segment < packing.n_carried:
            state = initial_state[packing.carried_rows[segment]].to(dtype)
        for t in range(start, stop):
            update = torch.einsum("hk,hp->khp", B[t], delta[t, :, None] * x[t])
            state = decay[t][None, :, None] * state + update
            out = torch.einsum("hk,khp->hp", C[t], state)
            y.append(out if D is None else out + D.to(dtype)[:, None] * x[t])
        if segment in packing.wanted:
            final.append(state)
    out = torch.stack(y)
    empty = x.new_zeros(0, state_width, heads, width)
    return (out if rows is None else out[list(rows)]).to(out_dtype), (torch.stack(final) if final else empty)


@isolated("x", "dt", "B", "C")
def chunkwise_ssd(
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
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_state: Tensor | None = None,
    rows: Sequence[int] | None = None,
    chunk_size: int | None = None,
    blocks_per_group: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Blocks as matrix products, one state handed from block to block: work linear in N. Signature of `ssd`.

    `blocks_per_group` blocks are treated side by side (None: chosen for the device); it bounds the workspace.
    """
    chunk_size = chunk_size or default_chunk_size(x.dtype)
    blocks_per_group = blocks_per_group or blocks_side_by_side(x.device, 4 * x.shape[1] * chunk_size**2)
    dtype = torch.promote_types(x.dtype, torch.float32)
    delta = step_sizes(dt, dt_bias, dt_softplus, dt_limit, dtype)
    log_decay = (delta * A.to(dtype)).clamp(min=MIN_LOG_DECAY)
    if initial_state is not None:
        initial_state = initial_state.to(dtype)

    y = [x.new_zeros(0, *x.shape[1:])]
    final: list[Tensor] = []
    carry: Tensor | None = None
    for group in packing.block_groups(chunk_size, blocks_per_group):
        single = len(group.blocks) == 1
        queries = group.blocks[0].rows_inside(rows) if rows is not None and blocks_per_group == 1 else None
        steps = _Steps(group.take(log_decay), group.take(delta), group, x.dtype)
        xg, Bg = group.take(x), group.take(B)
        entering: Tensor | None
        leaving: Tensor | None
        if single:
            local = _local_states(xg, Bg, steps) if group.blocks[0].leaves else None
            entering, leaving = _hand_on_one(local, steps, group.blocks[0], carry, initial_state)
        else:
            local = _local_states(xg, Bg, steps)
            entering, leaving = _hand_on_many(local, steps, group.links, carry, initial_state)
        if queries is None or len(queries):
            Cg = group.take(C) if queries is None else group.take(C)[:, queries]
            out = _within_block(xg, Bg, Cg, steps, D, queries)
            if entering is not None:
                out = torch.addcmul(out, _from_past(Cg, entering), steps.into(queries)[..., None])
            y.append(group.flatten(out) if queries is None else out[0])
        carry = None if leaving is None else leaving[-1]
        final += [leaving[i] for i, block in enumerate(group.blocks) if leaving is not None and block.final >= 0]
    out = torch.cat(y)
    empty = x.new_zeros(0, B.shape[2], *x.shape[1:], dtype=dtype)
    return out if rows is None or blocks_per_group == 1 else out[list(rows)], torch.stack(final) if final else empty


MIN_LOG_DECAY = -120.0
"""exp(-120) is 0 in float32: a stronger decay changes nothing, and the bound keeps a block's sums small."""


class _Steps:
    """Step sizes and decays inside the blocks of a group, formed from float64 prefix sums of the log decays.

    A difference of two long float32 sums loses digits (1e-3 relative at Q = 128), so sums are kept in float64 and
    split into a coarse part, whose float32 differences are exact, and a small rest. Products of half precision are
    rounded far more coarsely than that, and do without the rest.
    """

    GRID = 2.0**8  # the coarse part is a multiple of 1/256: exact in float32 up to 2**16, and Q * 120 is below
    TINY = 1e-30  # a step size of 0 has no logarithm; below this one nothing of the token is seen in float32

    def __init__(self, log_decay: Tensor, delta: Tensor, group: BlockGroup, dtype: torch.dtype) -> None:
        """log_decay (b, q, H) <= 0 and delta (b, q, H) >= 0, float32 or float64; dtype: of the matrix products."""
        self.group = group
        self.dtype = dtype
        self.wide = log_decay.dtype
        self.delta = delta
        if not group.is_slice:
            log_decay = log_decay * group.inside[..., None]
        self.sums = group.sums(log_decay.double())

    def between(self, queries: list[int] | None) -> Tensor:
        """(b, H, i, j) >= 0: what of token j's step is left at token i; arbitrary but finite where i may not see j.

        Exponents are kept in a range where neither they nor their products are denormal, which would cost a hundred
        times the time; the least, exp(-80), is as good as zero.
        """
        # Contiguous, so that what is made of them has j innermost, as the matrix product wants it.
        at_i = self.sums.transpose(1, 2).contiguous()
        at_j = at_i - self.delta.double().clamp(min=self.TINY).log().transpose(1, 2)
        at_i = at_i if queries is None else at_i[:, :, queries]
        if self.dtype.itemsize == 2:
            exponent = at_i.to(self.wide)[..., None] - at_j.to(self.wide)[:, :, None, :]
        else:
            (coarse_i, fine_i), (coarse_j, fine_j) = self._split(at_i), self._split(at_j)
            exponent = coarse_i[..., None] - coarse_j[:, :, None, :]
            exponent = exponent.add_(fine_i[..., None]).sub_(fine_j[:, :, None, :])
        return exponent.clamp_(-80, 80).exp_()

    def _split(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        coarse = ((sums * self.GRID).round() / self.GRID).detach()
        return coarse.to(self.wide), (sums - coarse).to(self.wide)

    def into(self, queries: list[int] | None) -> Tensor:
        """(b, i, H): decay from the block's start to token i, zero where i has no past before the block."""
        decay = self.sums.exp()
        if not self.group.all_enter:
            decay = decay * self.group.enters[..., None]
        decay = decay.to(self.dtype)
        return decay if queries is None else decay[:, queries]

    def out_of(self) -> Tensor:
        """(b, j, H): token j's step times the decay from there to the block's end, zero where nothing goes on."""
        exponent = self.sums[:, -1:] - self.sums
        if self.group.all_leave:
            return (self.delta * exponent.exp()).to(self.dtype)
        decay = exponent.clamp(max=0).exp() * self.group.leaves[..., None]  # above 0 is what does not go on
        return (self.delta * decay).to(self.dtype)

    def through(self) -> Tensor:
        """(b, H): decay over the whole block."""
        return self.sums[:, -1].exp().to(self.wide)


def _by_group(t: Tensor, groups: int) -> Tensor:
    """(b, q, H, P) -> (b, G, q, H/G * P)."""
    return t.unflatten(2, (groups, -1)).flatten(3).transpose(1, 2)


def _within_block(
    x: Tensor, B: Tensor, C: Tensor, steps: _Steps, D: Tensor | None, queries: list[int] | None
) -> Tensor:
    """(b, i, H, P): what the tokens of the same block contribute, the skip D x among it."""
    heads, groups = x.shape[2], B.shape[2]
    scores = C.transpose(1, 2).to(steps.wide) @ B.permute(0, 2, 3, 1).to(steps.wide)  # (b, G, i, j)
    visible = steps.group.visible if queries is None else steps.group.visible[:, queries]
    scores = scores.masked_fill(~visible[:, None], 0)
    weights = steps.between(queries).unflatten(1, (groups, heads // groups))
    weights = (weights * scores[:, :, None]).flatten(1, 2)
    if D is not None:
        skip = D.to(steps.wide)[:, None]
        if queries is None:
            weights.diagonal(dim1=-2, dim2=-1).add_(skip)
        else:
            weights[:, :, range(len(queries)), queries] += skip
    return (weights.to(x.dtype) @ x.transpose(1, 2)).transpose(1, 2)


def _from_past(C: Tensor, entering: Tensor) -> Tensor:
    """(b, i, H, P): C times the state before the block, (b, K, H, P), still without its decay."""
    groups = C.shape[2]
    read = C.transpose(1, 2) @ _by_group(entering.to(C.dtype), groups)
    return read.unflatten(3, (-1, entering.shape[3])).permute(0, 2, 1, 3, 4).flatten(2, 3)


def _local_states(x: Tensor, B: Tensor, steps: _Steps) -> Tensor:
    """(b, K, H, P): what each block adds to the state that leaves it."""
    weighted = x * steps.out_of()[..., None]
    added = B.permute(0, 2, 3, 1) @ _by_group(weighted, B.shape[2])  # (b, G, K, H/G * P)
    added = added.to(steps.wide).unflatten(3, (-1, x.shape[3]))
    return added.transpose(1, 2).flatten(2, 3)


def _hand_on_one(
    local: Tensor | None, steps: _Steps, block: Block, carry: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The states (1, K, H, P) that enter and leave a block on its own; None stands for zero or not needed."""
    entering = None
    if block.initial >= 0:
        entering = None if initial_state is None else initial_state[block.initial, None]
    elif block.enters and carry is not None:
        entering = carry[None]
    if local is not None and entering is not None and block.passes_through:
        local = local.addcmul_(steps.through()[:, None, :, None], entering)
    return entering, local


def _hand_on_many(
    local: Tensor, steps: _Steps, links: Links, carry: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The states (b, K, H, P) that enter and leave each block, from what the blocks add themselves."""
    through = steps.through()[:, None, :, None]

    def leave(blocks: Tensor, past: Tensor) -> Tensor:
        return local[blocks] + through[blocks] * past

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
    if x.ndim != 3 or len(x) != packing.n_tokens:
        raise InvalidInputError(f"x must be (N={packing.n_tokens}, H, P), got {tuple(x.shape)}")
    n, heads, width = x.shape
    if dt.shape != (n, heads) or A.shape != (heads,):
        raise InvalidInputError(
            f"dt must be (N, H) = {(n, heads)} and A (H,), got {tuple(dt.shape)} and {tuple(A.shape)}"
        )
    if B.ndim != 3 or B.shape != C.shape or len(B) != n or heads % B.shape[1]:
        raise InvalidInputError(
            f"B and C must be (N={n}, G, K) with G a divisor of H={heads}, got {tuple(B.shape)} and {tuple(C.shape)}"
        )
    expected = (packing.n_states, B.shape[2], heads, width)
    if initial_state is not None and tuple(initial_state.shape) != expected:
        raise InvalidInputError(f"initial_state must be (S_in, K, H, P) = {expected}, got {tuple(initial_state.shape)}")
    if chunk_size is not None and chunk_size < 1:
        raise InvalidInputError(f"chunk_size must be at least 1, got {chunk_size}")
