"""xLSTM-7b's architecture (arXiv 2503.13427): mLSTM layers, each followed by a gated feed-forward layer.

Legend: N tokens, D d_model, H heads with queries and keys of K = d_qk / H and values of P = d_v / H channels, F d_ffn.

One block, u (N, D) float32 residual stream:
    x       = rms_norm(u)
    q, k, v = linear maps of x                          widths d_qk, d_qk, d_v
    i, f    = cap * tanh(linear maps of x / cap)        one number a head, always with a bias; cap is 15
    y       = mlstm(q, k, v, i, f)
    u      += out_proj( sigmoid(o) * head_norm(y) )     o a linear map of x, width d_v; head_norm a LayerNorm a head
    u      += down( silu(gate(x)) * up(x) )             x = rms_norm(u), width F
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.errors import InvalidInputError
from thalweg.models.layers import Norm, add_projected, dtype_of, project
from thalweg.models.stack import Stack, pick
from thalweg.ops.gates import silu_multiply
from thalweg.ops.mlstm import MLSTMState, mlstm, mlstm_blocks
from thalweg.ops.norms import head_norm_gate
from thalweg.ops.tiles import wide
from thalweg.packing import Packing


@dataclass(frozen=True)
class XLSTMConfig:
    """Shape and constants of an xLSTM stack.

    `d_qk` and `d_v` are widths over all heads. `norm_eps` is that of all norms, `eps` that of the mLSTM's normaliser.
    `bias` gives biases to all linear maps and to all norms but the last. `force_bos_token_insert` says that the model
    knows only texts that begin with BOS: nothing here depends on it, but it must not be lost when a model is saved.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_qk: int
    d_v: int
    d_ffn: int
    gate_soft_cap: float = 15.0
    norm_eps: float = 1e-6
    eps: float = 1e-6
    bias: bool = False
    force_bos_token_insert: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "d_qk", "d_v", "d_ffn"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("d_qk", "d_v"):
            if getattr(self, name) % self.n_heads:
                raise InvalidInputError(f"n_heads={self.n_heads} does not divide {name}={getattr(self, name)}")
        if not self.gate_soft_cap > 0:
            raise InvalidInputError(f"gate_soft_cap must be above 0, got {self.gate_soft_cap}")


class HeadNorm(nn.Module):
    """Parameters of the LayerNorm of each head on its own: a weight (and a bias) for every channel."""

    def __init__(self, n_heads: int, head_dim: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_heads * head_dim))
        self.bias = nn.Parameter(torch.zeros(n_heads * head_dim)) if bias else None
        self.eps = eps


class MLSTMLayer(nn.Module):
    """The sequence mixer of one block."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk_size: int | None = None  # of the op; None: its default
        d_model, heads, bias = config.d_model, config.n_heads, config.bias
        self.q = nn.Linear(d_model, config.d_qk, bias=bias)
        self.k = nn.Linear(d_model, config.d_qk, bias=bias)
        self.v = nn.Linear(d_model, config.d_v, bias=bias)
        self.o = nn.Linear(d_model, config.d_v, bias=bias)
        self.i = nn.Linear(d_model, heads)
        self.f = nn.Linear(d_model, heads)
        # The paper's first values (section 3.3): hardly anything is written, hardly anything forgotten. Filled in
        # place: a loader skips that on the meta device (checkpoints/loader.py).
        self.i.bias = nn.Parameter(torch.empty(heads).fill_(-10))
        self.f.bias = nn.Parameter(torch.empty(heads).uniform_(3, 6))
        self.norm = HeadNorm(heads, config.d_v // heads, config.norm_eps, bias)
        self.out_proj = nn.Linear(config.d_v, d_model, bias=bias)

    def forward(
        self, x: Tensor, packing: Packing, state: MLSTMState | None, rows: Sequence[int] | None
    ) -> tuple[Tensor, MLSTMState]:
        """x (N, D) float32 -> (N or M, d_v), what `out_proj` takes, and the layer's next state."""
        i, f = self._gates(x)
        x = x.to(dtype_of(self.q))
        q, k, v = (project(linear, x).unflatten(1, (self.config.n_heads, -1)) for linear in (self.q, self.k, self.v))
        y, new_state = mlstm(
            q,
            k,
            v,
            i,
            f,
            packing,
            eps=self.config.eps,
            initial_state=state,
            rows=rows,
            chunk_size=self.chunk_size,
        )
        o = project(self.o, pick(x, rows))
        return head_norm_gate(y, o, self.norm.weight, self.norm.bias, self.norm.eps), new_state

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) float32 -> i, f (N, H) float32: they go through an exponential, so half precision stays out."""
        cap = self.config.gate_soft_cap
        if type(self.i) is nn.Linear and type(self.f) is nn.Linear:
            weight, bias = (torch.cat([self.i.weight, self.f.weight]), torch.cat([self.i.bias, self.f.bias]))
            raw = F.linear(x, weight.to(x.dtype), bias.to(x.dtype))
        else:  # an adapter: its weight is not the whole map
            raw = torch.cat([gate(x.to(dtype_of(gate))).to(x.dtype) for gate in (self.i, self.f)], dim=1)
        i, f = (cap * torch.tanh(raw / cap)).chunk(2, dim=1)
        return i, f


FFN_ROWS = 512
"""Rows of the feed-forward layer at a time: its products gain nothing from more, and its gates nearly stay in cache."""


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_ffn, bias=config.bias)
        self.up = nn.Linear(config.d_model, config.d_ffn, bias=config.bias)
        self.down = nn.Linear(config.d_ffn, config.d_model, bias=config.bias)

    def forward(self, u: Tensor, x: Tensor) -> Tensor:
        """u + down(…), u (N, D) float32, x (N, D). Without gradients u is overwritten, a part of its rows at a time."""
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return u + self.down(silu_multiply(self.gate(x), self.up(x)))
        u = u.contiguous()
        for stream, part in zip(u.split(FFN_ROWS), x.split(FFN_ROWS), strict=True):
            add_projected(stream, self.down, silu_multiply(project(self.gate, part), project(self.up, part)))
        return u


class XLSTMBlock(nn.Module):
    """Two pre-norm residual layers."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        self.norm_mlstm = Norm(config.d_model, config.norm_eps, bias=config.bias)
        self.mlstm = MLSTMLayer(config)
        self.norm_ffn = Norm(config.d_model, config.norm_eps, bias=config.bias)
        self.ffn = FeedForward(config)

    def forward(
        self, u: Tensor, packing: Packing, state: MLSTMState | None, rows: Sequence[int] | None
    ) -> tuple[Tensor, MLSTMState]:
        gated, new_state = self.mlstm(self.norm_mlstm(u), packing, state, rows)
        u = add_projected(pick(u, rows), self.mlstm.out_proj, gated)
        return self.ffn(u, self.norm_ffn(u, gated.dtype)), new_state


class XLSTM(Stack[MLSTMState]):
    """The stack."""

    def __init__(self, config: XLSTMConfig) -> None:
        layers = (XLSTMBlock(config) for _ in range(config.n_layers))
        super().__init__(config.vocab_size, config.d_model, layers, Norm(config.d_model, config.norm_eps))
        self.config = config

    def layer_state(self, n_segments: int) -> MLSTMState:
        c = self.config
        key_width, value_width = c.d_qk // c.n_heads, c.d_v // c.n_heads

        def zeros(*shape: int) -> Tensor:
            return self.embeddings.weight.new_zeros(n_segments, c.n_heads, *shape, dtype=wide(self.embeddings.weight))

        return MLSTMState(zeros(key_width, value_width), zeros(key_width), zeros())

    def activation_blocks(self, n_tokens: int) -> list[int]:
        """See `RecurrentModel.activation_blocks`. What lives at once at the fullest point of a block."""
        c = self.config
        weight = self.embeddings.weight
        width = weight.element_size()
        # The residual stream, its norm in float32 and in the weights' dtype, q, k, v, o, y, and what they add to the
        # stream. The output of the feed-forward layer, twice while its rows are joined, takes less.
        copy = 0 if width == 4 else width
        per_token = [4 * c.d_model] * 2 + [copy * c.d_model, width * c.d_model]
        per_token += [width * c.d_qk] * 2 + [width * c.d_v] * 3
        wide = width * c.d_ffn * min(n_tokens, FFN_ROWS)
        per_block = mlstm_blocks(c.n_heads, c.d_qk, c.d_v, weight.device, weight.dtype)
        per_token += [4 * c.d_model]  # copies inside products: measured, not derived
        return [n_tokens * size for size in per_token] + [wide, wide] + per_block
