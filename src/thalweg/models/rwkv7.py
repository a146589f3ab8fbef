"""RWKV-7 "Goose" (arXiv 2503.14456).

Legend: N tokens, M of them wanted, D d_model, H heads of K = head_dim keys and V = d_value / H values; prev(x) is x of
the token before.

One layer, u (N, D) float32 residual stream (in layer 0 it is the embedding after a LayerNorm of its own):
    x           = layer_norm(u)
    x_i         = x + (prev(x) - x) * mix_i                                    for i in r, w, k, v, a, g
    r, k, v     = W_r x_r, W_k x_k, W_v x_v
    log w       = -e^-0.5 sigmoid(lora_w(x_w))          lora(x) = up act(down x) + bias; act is tanh for w
    a           = sigmoid(lora_a(x_a))
    g           = lora_g(x_g)                                                  act is sigmoid, no bias
    v          += (v_first - v) sigmoid(lora_v(x_v))    not in layer 0, whose v is v_first
    kk          = l2_normalised_per_head(k * k_k),      k *= 1 + (a - 1) k_a
    y           = wkv7(r, log w, k, v, kk, a)
    y           = group_norm_per_head(y) + (sum of r k r_k over the head) v
    u          += W_o (y * g)
    x           = layer_norm(u)
    u          += W_value relu(W_key (x + (prev(x) - x) * mix))^2
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.errors import InvalidInputError
from thalweg.models.layers import dtype_of, project
from thalweg.models.stack import Stack
from thalweg.ops.activations import sigmoid
from thalweg.ops.tiles import in_tiles, tiles, wide
from thalweg.ops.time_mix import relu_square, scan_inputs, scan_output, token_mix
from thalweg.ops.token_shift import token_shift
from thalweg.ops.wkv7 import wkv7
from thalweg.packing import Packing

PRODUCT_TILE = 512
"""Rows treated at a time on the CPU: a matrix product of fewer costs more, and what lies between them leaves the cache
where there are more."""


@dataclass(frozen=True)
class RWKV7Config:
    """Shape and constants of an RWKV-7 stack.

    `rank_w`, `rank_a`, `rank_v`, `rank_g`: inner widths of the low-rank products; `head_norm_eps`: of the norm over
    each head of the mixer; `heads`: names of the embedding heads of an embedding model, none for a language model.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    head_dim: int
    d_value: int
    d_ffn: int
    rank_w: int
    rank_a: int
    rank_v: int
    rank_g: int
    norm_eps: float = 1e-5
    head_norm_eps: float = 64e-5
    norm_bias: bool = True
    embedding_norm: bool = True
    heads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is int and value < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {value}")
        if self.d_model % self.head_dim:
            raise InvalidInputError(f"head_dim={self.head_dim} does not divide d_model={self.d_model}")
        if self.d_value % self.n_heads:
            raise InvalidInputError(f"d_value={self.d_value} is no multiple of the {self.n_heads} heads")

    @property
    def n_heads(self) -> int:
        return self.d_model // self.head_dim


def _in_tiles(
    function: Callable[..., Sequence[Tensor]], widths: Sequence[int], *inputs: Tensor | None
) -> Sequence[Tensor]:
    """`function(out, *inputs)` of tensors with N rows each: on the CPU without gradients a tile at a time, matrix
    products and all.

    What lies between the products then stays in cache. The results, of the given `widths` and the first input's dtype,
    are allocated before anything else, since small tensors made among large ones break up the free memory. A function
    may write a tile's results to `out` itself.
    """
    assert inputs[0] is not None
    if not in_tiles(inputs[0]):
        return function(None, *inputs)
    n = len(inputs[0])
    outputs = [inputs[0].new_empty(n, width) for width in widths]
    for rows in tiles(n, PRODUCT_TILE):
        out = [output[rows] for output in outputs]
        for kept, part in zip(out, function(out, *(None if t is None else t[rows] for t in inputs)), strict=True):
            if kept is not part:
                kept.copy_(part)
    return outputs


class RWKV7LayerState(NamedTuple):
    """att, ffn: (S, D) last inputs of the two token shifts; wkv: (S, H, V, K); all float32."""

    att: Tensor
    ffn: Tensor
    wkv: Tensor


@dataclass(frozen=True)
class _Wanted:
    """What the last layer computes of its second half: the wanted rows, the rows before them, and each segment's last.

    rows: positions in the run; packing: of those rows, which are a segment's last rows and some earlier ones; chosen:
    where in `rows` the wanted ones are.
    """

    rows: list[int]
    packing: Packing
    chosen: list[int]

    @classmethod
    def build(cls, packing: Packing, rows: Sequence[int]) -> _Wanted:
        starts = set(packing.cu_seqlens)
        before = (row - 1 for row in rows if row not in starts)
        needed = sorted({*rows, *before, *packing.last_rows})
        cuts = [bisect_left(needed, edge) for edge in packing.cu_seqlens]
        lengths = [stop - start for start, stop in pairwise(cuts)]
        sub = Packing(
            lengths,
            n_carried=packing.n_carried,
            carried_rows=packing.carried_rows,
            wanted=packing.wanted,
            device=packing.device,
        )
        return cls(needed, sub, [bisect_left(needed, row) for row in rows])


class LayerNorm(nn.LayerNorm):
    """LayerNorm of the residual stream, in its dtype, whatever that of the weights."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)


class LowRank(nn.Module):
    """up act(down x), in the weights' dtype; the bias comes after it."""

    def __init__(
        self, d_in: int, rank: int, d_out: int, *, act: Callable[[Tensor], Tensor] | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        self.act = act
        self.down = nn.Linear(d_in, rank, bias=False)
        self.up = nn.Linear(rank, d_out, bias=False)
        self.bias = nn.Parameter(torch.empty(d_out).uniform_(-1, 1)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        inner = project(self.down, x)
        return project(self.up, inner if self.act is None else self.act(inner))


class TimeMix(nn.Module):
    """The sequence mixer of one layer."""

    def __init__(self, config: RWKV7Config, *, first: bool) -> None:
        super().__init__()
        c = self.config = config
        self.chunk_size: int | None = None  # of the scan; None: the op's default
        self.mix = nn.ParameterDict({name: nn.Parameter(torch.empty(c.d_model).uniform_(0, 1)) for name in "rwkvag"})
        self.receptance = nn.Linear(c.d_model, c.d_model, bias=False)
        self.key = nn.Linear(c.d_model, c.d_model, bias=False)
        self.value = nn.Linear(c.d_model, c.d_value, bias=False)
        self.output = nn.Linear(c.d_value, c.d_model, bias=False)
        self.lora_w = LowRank(c.d_model, c.rank_w, c.d_model, act=torch.tanh)
        self.lora_a = LowRank(c.d_model, c.rank_a, c.d_model)
        self.lora_v = None if first else LowRank(c.d_model, c.rank_v, c.d_value)
        self.lora_g = LowRank(c.d_model, c.rank_g, c.d_value, act=sigmoid, bias=False)
        self.k_k = nn.Parameter(torch.empty(c.d_model).fill_(0.7))
        self.k_a = nn.Parameter(torch.ones(c.d_model))
        self.r_k = nn.Parameter(torch.empty(c.n_heads, c.head_dim).uniform_(-0.1, 0.1))
        self.norm = nn.GroupNorm(c.n_heads, c.d_value, eps=c.head_norm_eps)

    def forward(
        self, x: Tensor, v_first: Tensor | None, packing: Packing, state: RWKV7LayerState | None, wanted: _Wanted | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (N, D) float32 -> (N or M, D), v_first (N, H V), and the next `att` and `wkv` states."""
        before, att = token_shift(x, packing, initial_state=state and state.att)
        d, d_value = self.config.d_model, self.config.d_value
        log_w, k, v, kk, a = _in_tiles(
            partial(self._scan_inputs, self._mixes("wakv")), (d, d, d_value, d, d), x, before, v_first
        )
        rows = None if wanted is None else wanted.rows
        if rows is not None:
            x, before = x[rows], before[rows]
        (r,) = _in_tiles(partial(self._receptance, self._mixes("r")), (d,), x, before)
        r = r.to(x.dtype)
        y, wkv = wkv7(
            self._by_head(r),
            self._by_head(log_w),
            self._by_head(k),
            self._by_head(v),
            self._by_head(kk),
            self._by_head(a),
            packing,
            initial_state=state and state.wkv,
            rows=rows,
            chunk_size=self.chunk_size,
        )
        del log_w, kk, a  # long tensors that would outlive their last use
        first = v if v_first is None else v_first
        if rows is not None:
            k, v = k[rows], v[rows]
        (out,) = _in_tiles(partial(self._output, self._mixes("g")), (d,), x, before, y.flatten(1), r, k, v)
        return out, first, att, wkv

    def _mixes(self, names: str) -> Tensor:
        """(m, D) float32: how much of the token before there is in what each of the names is made of."""
        mixes = torch.stack([self.mix[name] for name in names])
        return mixes.to(wide(mixes))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.config.n_heads, -1))

    def _scan_inputs(
        self, mixes: Tensor, out: Sequence[Tensor] | None, x: Tensor, before: Tensor, v_first: Tensor | None
    ) -> Sequence[Tensor]:
        """log w, k, v, kk, a (N, D) float32: all that the state needs of every token."""
        x_w, x_a, x_k, x_v = token_mix(x, before, mixes, dtype_of(self.output))
        bias_w, bias_a = self.lora_w.bias, self.lora_a.bias
        assert bias_w is not None
        assert bias_a is not None
        blend = None
        if self.lora_v is not None and self.lora_v.bias is not None and v_first is not None:
            blend = self.lora_v(x_v), self.lora_v.bias, v_first
        products = (self.lora_w(x_w), self.lora_a(x_a), project(self.key, x_k), project(self.value, x_v))
        return scan_inputs(*products, bias_w, bias_a, self.k_k, self.k_a, blend, self.config.n_heads, out)

    def _receptance(self, mixes: Tensor, out: Sequence[Tensor] | None, x: Tensor, before: Tensor) -> Sequence[Tensor]:
        (x_r,) = token_mix(x, before, mixes, dtype_of(self.output))
        return (project(self.receptance, x_r),)

    def _output(
        self,
        mixes: Tensor,
        out: Sequence[Tensor] | None,
        x: Tensor,
        before: Tensor,
        y: Tensor,
        r: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Sequence[Tensor]:
        """(M, D): what the scan gave, normalised, with the token's own value, gated and projected."""
        (x_g,) = token_mix(x, before, mixes, dtype_of(self.output))
        gate, norm = self.lora_g(x_g), self.norm
        return (project(self.output, scan_output(y, r, k, v, self.r_k, gate, norm.weight, norm.bias, norm.eps)),)


class ChannelMix(nn.Module):
    """The two-layer network after the mixer, over a token and the one before."""

    def __init__(self, config: RWKV7Config) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.empty(config.d_model).uniform_(0, 1))
        self.key = nn.Linear(config.d_model, config.d_ffn, bias=False)
        self.value = nn.Linear(config.d_ffn, config.d_model, bias=False)

    def forward(
        self, x: Tensor, packing: Packing, state: RWKV7LayerState | None, chosen: list[int] | None
    ) -> tuple[Tensor, Tensor]:
        """x (N, D) float32 -> (N or len(chosen), D), and the next `ffn` state."""
        before, ffn = token_shift(x, packing, initial_state=state and state.ffn)
        if chosen is not None:
            x, before = x[chosen], before[chosen]
        (out,) = _in_tiles(partial(self._mixed, self.mix.to(x.dtype)[None]), (x.shape[1],), x, before)
        return out, ffn

    def _mixed(self, mixes: Tensor, out: Sequence[Tensor] | None, x: Tensor, before: Tensor) -> Sequence[Tensor]:
        (mixed,) = token_mix(x, before, mixes, dtype_of(self.key))
        return (project(self.value, relu_square(project(self.key, mixed))),)


class _Stream(NamedTuple):
    """What goes from layer to layer: u (N, D) float32, and v of the first layer (N, H V), None before it."""

    u: Tensor
    v_first: Tensor | None


class RWKV7Layer(nn.Module):
    """Pre-norm residual layer."""

    def __init__(self, config: RWKV7Config, *, first: bool) -> None:
        super().__init__()
        self.att_norm = LayerNorm(config.d_model, config.norm_eps, bias=config.norm_bias)
        self.att = TimeMix(config, first=first)
        self.ffn_norm = LayerNorm(config.d_model, config.norm_eps, bias=config.norm_bias)
        self.ffn = ChannelMix(config)

    def forward(
        self, stream: _Stream, packing: Packing, state: RWKV7LayerState | None, rows: Sequence[int] | None
    ) -> tuple[_Stream, RWKV7LayerState]:
        """What the wanted rows and the layer's state need, and no more."""
        u, v_first = stream
        wanted = None if rows is None else _Wanted.build(packing, rows)
        mixed, v_first, att, wkv = self.att(self.att_norm(u), v_first, packing, state, wanted)
        u = (u if wanted is None else u[wanted.rows]) + mixed
        chosen = None if wanted is None else wanted.chosen
        mixed, ffn = self.ffn(self.ffn_norm(u), packing if wanted is None else wanted.packing, state, chosen)
        u = (u if chosen is None else u[chosen]) + mixed
        return _Stream(u, v_first), RWKV7LayerState(att, ffn, wkv)


class EmbeddingHead(nn.Module):
    """What an embedding model does to a pooled vector (arXiv 2601.07861): layer_norm(fc2 relu(fc1 x) + x), float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.linear(x, self.fc1.weight.to(x.dtype)).relu()
        return self.norm(F.linear(inner, self.fc2.weight.to(x.dtype)) + x)


class RWKV7(Stack[RWKV7LayerState]):
    """The stack, and the embedding heads of an embedding model."""

    def __init__(self, config: RWKV7Config) -> None:
        width, eps, bias = config.d_model, config.norm_eps, config.norm_bias
        layers = (RWKV7Layer(config, first=i == 0) for i in range(config.n_layers))
        super().__init__(config.vocab_size, width, layers, LayerNorm(width, eps, bias=bias))
        self.config = config
        self.embedding_norm = LayerNorm(width, eps, bias=bias) if config.embedding_norm else nn.Identity()
        self.heads = nn.ModuleDict({name: EmbeddingHead(width) for name in config.heads})

    def layer_state(self, n_segments: int) -> RWKV7LayerState:
        c = self.config

        def zeros(*shape: int) -> Tensor:
            return self.embeddings.weight.new_zeros(n_segments, *shape, dtype=wide(self.embeddings.weight))

        return RWKV7LayerState(zeros(c.d_model), zeros(c.d_model), zeros(c.n_heads, c.d_value // c.n_heads, c.head_dim))

    def embed(self, tokens: Tensor) -> _Stream:
        return _Stream(self.embedding_norm(super().embed(tokens)), None)

    def finish(self, stream: _Stream) -> Tensor:
        return super().finish(stream.u)

    def activation_blocks(self, n_tokens: int) -> list[int]:
        """See `RecurrentModel.activation_blocks`. What lives at once at the fullest point of a layer."""
        c = self.config
        # Around the scan: u, its norm and the tokens before; log w, k, kk, a, r; v, v_first and y. And a tile's own.
        return [4 * n_tokens * c.d_model] * 10 + [4 * n_tokens * c.d_value] * 3 + [4 * PRODUCT_TILE * c.d_model] * 14
