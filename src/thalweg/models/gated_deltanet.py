"""Gated DeltaNet (arXiv 2412.06464), the pure language model of flash-linear-attention.

Legend: N tokens, D d_model, Hk key heads of K channels, Hv value heads of V channels (a multiple of Hk), W conv taps.

One layer, u (N, D) float32 residual stream:
    x       = rms_norm(u)
    q, k, v = silu(causal_conv(q_proj(x))), likewise k and v         widths Hk K, Hk K, Hv V; a convolution for each
    g       = -exp(A_log) * softplus(a_proj(x) + dt_bias)            log decay, one number a value head
    beta    = sigmoid(b_proj(x)), times 2 with negative eigenvalues  writing strength
    y       = gated_delta_rule(l2norm(q), l2norm(k), v, g, beta)
    u      += o_proj(rms_norm(y) * silu(g_proj(x)))                  the norm of each head's V channels, then the gate
    u      += down_proj(silu(gate_proj(x')) * up_proj(x')),  x' = rms_norm(u)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from thalweg.errors import InvalidInputError
from thalweg.models.layers import Conv, Norm, dtype_of, project
from thalweg.models.stack import Stack, pick
from thalweg.ops.activations import sigmoid, silu, softplus
from thalweg.ops.causal_conv import causal_conv
from thalweg.ops.gated_delta_rule import default_chunk_size, gated_delta_rule
from thalweg.ops.gates import silu_multiply
from thalweg.ops.norms import rms_norm_gate
from thalweg.ops.tiles import wide
from thalweg.packing import Packing

GATES = ("silu", "sigmoid", None)


@dataclass(frozen=True)
class GatedDeltaNetConfig:
    """Shape and constants of a Gated DeltaNet stack.

    `d_conv` 0 stands for no short convolutions. `output_gate` is the function of g_proj's output, None for no gate.
    `allow_neg_eigval` doubles beta. `norm_eps` is that of all norms.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    head_dim: int
    n_value_heads: int
    value_head_dim: int
    d_mlp: int
    d_conv: int = 4
    conv_bias: bool = False
    output_gate: Literal["silu", "sigmoid"] | None = "silu"
    allow_neg_eigval: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "head_dim", "value_head_dim", "d_mlp"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_value_heads < 1 or self.n_value_heads % self.n_heads:
            raise InvalidInputError(
                f"n_value_heads must be a multiple of n_heads={self.n_heads}, got {self.n_value_heads}"
            )
        if self.d_conv < 0:
            raise InvalidInputError(f"d_conv must be at least 0 (no convolution), got {self.d_conv}")
        if self.output_gate not in GATES:
            raise InvalidInputError(f"output_gate must be one of {GATES}, got {self.output_gate!r}")

    @property
    def key_dim(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def value_dim(self) -> int:
        return self.n_value_heads * self.value_head_dim


class GatedDeltaNetLayerState(NamedTuple):
    """q, k, v: (S, W - 1, Hk K or Hv V) inputs of the convolutions, model dtype; memory: (S, Hv, K, V) float32."""

    q: Tensor
    k: Tensor
    v: Tensor
    memory: Tensor


class ShortConv(nn.Module):
    """Projection, causal convolution, SiLU: what makes q, k and v. Without taps, projection and SiLU only."""

    def __init__(self, config: GatedDeltaNetConfig, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(config.d_model, width, bias=False)
        self.conv = Conv(width, config.d_conv, config.conv_bias) if config.d_conv else None

    def forward(self, x: Tensor, packing: Packing, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """(N, D) -> (N, C) and the next (S, W - 1, C)."""
        y = project(self.proj, x)
        if self.conv is None:
            return silu(y, inplace=not y.requires_grad), y.new_zeros(len(packing.wanted), 0, y.shape[1])
        return causal_conv(y, self.conv.weight, self.conv.bias, packing, initial_state=state, silu=True)


class GatedDeltaNetMixer(nn.Module):
    """The sequence mixer of one layer."""

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk_size: int | None = None  # of the scan; None: the op's default
        self.q = ShortConv(config, config.key_dim)
        self.k = ShortConv(config, config.key_dim)
        self.v = ShortConv(config, config.value_dim)
        self.a_proj = nn.Linear(config.d_model, config.n_value_heads, bias=False)
        self.b_proj = nn.Linear(config.d_model, config.n_value_heads, bias=False)
        # As in Mamba2: softplus(dt_bias) log-uniform in [1e-3, 1e-1], exp(A_log) up to 16. Filled in place: a loader
        # skips that on the meta device (checkpoints/loader.py).
        heads = config.n_value_heads
        self.dt_bias = nn.Parameter(torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)).exp_().expm1_().log_())
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log_())
        self.g_proj = nn.Linear(config.d_model, config.value_dim, bias=False) if config.output_gate else None
        self.o_norm = Norm(config.value_head_dim, config.norm_eps)
        self.o_proj = nn.Linear(config.value_dim, config.d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        packing: Packing,
        state: GatedDeltaNetLayerState | None,
        rows: Sequence[int] | None,
    ) -> tuple[Tensor, GatedDeltaNetLayerState]:
        """(N, D) -> (N or M, D) and the layer's next state."""
        y, new_state = self._scan(x, packing, state, rows)
        gate = None if self.g_proj is None else project(self.g_proj, pick(x, rows))
        gated = rms_norm_gate(y, gate, self.o_norm.weight, self.o_norm.eps, self.config.output_gate or "silu")
        return project(self.o_proj, gated.flatten(1)), new_state

    def _scan(
        self,
        x: Tensor,
        packing: Packing,
        state: GatedDeltaNetLayerState | None,
        rows: Sequence[int] | None,
    ) -> tuple[Tensor, GatedDeltaNetLayerState]:
        """(N, D) -> (N or M, Hv, V) and the layer's next state."""
        c = self.config
        q, q_state = self.q(x, packing, state and state.q)
        k, k_state = self.k(x, packing, state and state.k)
        v, v_state = self.v(x, packing, state and state.v)
        g = -torch.exp(self.A_log) * softplus(project(self.a_proj, x).to(self.A_log.dtype) + self.dt_bias)
        beta = sigmoid(project(self.b_proj, x).to(self.A_log.dtype))
        y, memory = gated_delta_rule(
            q.unflatten(1, (c.n_heads, c.head_dim)),
            k.unflatten(1, (c.n_heads, c.head_dim)),
            v.unflatten(1, (c.n_value_heads, c.value_head_dim)),
            g,
            2 * beta if c.allow_neg_eigval else beta,
            packing,
            initial_state=state and state.memory,
            rows=rows,
            chunk_size=self.chunk_size,
        )
        return y, GatedDeltaNetLayerState(q_state, k_state, v_state, memory)


MLP_TILE = 512
"""Rows that go through the MLP together on the CPU: enough for full speed, and its width then takes no memory."""


class GatedMLP(nn.Module):
    """down_proj(silu(gate_proj(x)) * up_proj(x))."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, width, bias=False)
        self.up_proj = nn.Linear(d_model, width, bias=False)
        self.down_proj = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return project(self.down_proj, silu_multiply(project(self.gate_proj, x), project(self.up_proj, x)))


class GatedDeltaNetLayer(nn.Module):
    """Mixer and MLP, each with its norm before it and the residual stream around it."""

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__()
        self.attn_norm = Norm(config.d_model, config.norm_eps)
        self.attn = GatedDeltaNetMixer(config)
        self.mlp_norm = Norm(config.d_model, config.norm_eps)
        self.mlp = GatedMLP(config.d_model, config.d_mlp)

    def forward(
        self, u: Tensor, packing: Packing, state: GatedDeltaNetLayerState | None, rows: Sequence[int] | None
    ) -> tuple[Tensor, GatedDeltaNetLayerState]:
        dtype = dtype_of(self.attn.o_proj)
        mixed, new_state = self.attn(self.attn_norm(u).to(dtype), packing, state, rows)
        u = _add(pick(u, rows), mixed)
        if torch.is_grad_enabled() or u.device.type != "cpu":
            return u + self.mlp(self.mlp_norm(u).to(dtype)), new_state
        for start in range(0, len(u), MLP_TILE):
            tile = u[start : start + MLP_TILE]
            tile += self.mlp(self.mlp_norm(tile).to(dtype))
        return u, new_state


def _add(u: Tensor, branch: Tensor) -> Tensor:
    """The residual stream belongs to the step: without gradients one copy of it is enough."""
    return u + branch if torch.is_grad_enabled() else u.add_(branch)


class GatedDeltaNet(Stack[GatedDeltaNetLayerState]):
    """The stack."""

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        layers = (GatedDeltaNetLayer(config) for _ in range(config.n_layers))
        super().__init__(config.vocab_size, config.d_model, layers, Norm(config.d_model, config.norm_eps))
        self.config = config

    def layer_state(self, n_segments: int) -> GatedDeltaNetLayerState:
        c, weight = self.config, self.embeddings.weight
        taps = max(c.d_conv - 1, 0)
        return GatedDeltaNetLayerState(
            q=weight.new_zeros(n_segments, taps, c.key_dim),
            k=weight.new_zeros(n_segments, taps, c.key_dim),
            v=weight.new_zeros(n_segments, taps, c.value_dim),
            memory=weight.new_zeros(n_segments, c.n_value_heads, c.head_dim, c.value_head_dim, dtype=wide(weight)),
        )

    def activation_blocks(self, n_tokens: int) -> list[int]:
        """See `RecurrentModel.activation_blocks`. What lives at once at the fullest point of a layer."""
        c = self.config
        width = self.embeddings.weight.element_size()
        # the residual stream and its norm; then q, k, v and y of the scan, or y, its gate and what becomes of them
        mixer = [c.value_dim] * 2 + max([c.key_dim] * 2, [c.d_model], key=sum)
        rows = min(n_tokens, MLP_TILE)
        mlp = [rows * width * c.d_mlp] * 3 + [rows * 4 * c.d_model] * 3
        q, channels = default_chunk_size(), c.head_dim + c.value_head_dim
        per_block = 4 * c.n_value_heads * (8 * q * q + 6 * q * channels + 3 * c.head_dim * c.value_head_dim)
        # Large products of half precision keep float32 sums and copies inside the library: measured, not derived.
        inside = [4 * n_tokens * c.d_model] * 2 if width == 2 else []
        streams = [n_tokens * 4 * c.d_model, n_tokens * width * c.d_model]
        return streams + [n_tokens * width * channels for channels in mixer] + mlp + inside + [per_block]
