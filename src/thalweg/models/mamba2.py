"""Mamba2 (arXiv 2405.21060), every published variant.

Legend: N tokens, D d_model, H heads of P = head_dim channels, d_inner = H * P, K d_state, G groups, W conv taps.

One layer, u (N, D) float32 residual stream:
    z, xBC, dt = in_proj(rms_norm(u))                    widths d_inner, d_inner + 2 G K, H
    x, B, C    = silu(causal_conv(xBC))
    y          = ssd(x, dt, -exp(A_log), B, C) + D x
    u         += out_proj(weight * group_rms_norm(y * silu(z)))       the gate always comes before the norm
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from thalweg.errors import InvalidInputError
from thalweg.models.layers import (
    PRODUCT_ROWS,
    Conv,
    Norm,
    add_projected,
    cuttable,
    dtype_of,
    project,
    project_part,
)
from thalweg.models.stack import Stack, pick
from thalweg.ops.gated_ssd import gated_ssd, gated_ssd_blocks, is_one_kernel
from thalweg.ops.norms import rms_norm_blocks
from thalweg.ops.tiles import wide
from thalweg.packing import Packing


@dataclass(frozen=True)
class Mamba2Config:
    """Shape and constants of a Mamba2 stack.

    `time_step_limit` clamps delta (linear space, seconds of the continuous system); `norm_eps` is that of all norms.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    head_dim: int
    d_state: int
    n_groups: int = 1
    d_conv: int = 4
    norm_eps: float = 1e-5
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    conv_bias: bool = True
    proj_bias: bool = False
    residual_in_fp32: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "head_dim", "d_state", "n_groups", "d_conv"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_heads % self.n_groups:
            raise InvalidInputError(f"n_groups={self.n_groups} does not divide n_heads={self.n_heads}")

    @property
    def d_inner(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def conv_dim(self) -> int:
        return self.d_inner + 2 * self.n_groups * self.d_state


class Mamba2LayerState(NamedTuple):
    """conv: (S, W - 1, conv_dim) inputs of the convolution, model dtype; ssm: (S, K, H, P) float32."""

    conv: Tensor
    ssm: Tensor


class Mamba2Mixer(nn.Module):
    """The sequence mixer of one layer."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.config = config
        self.chunk_size: int | None = None  # of the scan; None: the op's default
        d_inner, heads = config.d_inner, config.n_heads
        self.in_proj = nn.Linear(config.d_model, d_inner + config.conv_dim + heads, bias=config.proj_bias)
        self.output_parts = {"in_proj": (d_inner, config.conv_dim)}  # z; x, B, C; then dt, which becomes an exponent
        self.conv = Conv(config.conv_dim, config.d_conv, config.conv_bias)
        # The initial values of the paper's code: delta log-uniform in [1e-3, 1e-1] (dt_bias is its inverse softplus), A
        # uniform in [1, 16]. Filled in place: a loader skips that on the meta device (checkpoints/loader.py).
        self.dt_bias = nn.Parameter(torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)).exp_().expm1_().log_())
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log_())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = Norm(d_inner, config.norm_eps, config.n_groups)
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=config.proj_bias)

    def forward(
        self,
        u: Tensor,
        packing: Packing,
        state: Mamba2LayerState | None,
        rows: Sequence[int] | None,
    ) -> tuple[Tensor, Mamba2LayerState]:
        """(N, D) -> (N or M, d_inner), what `out_proj` takes, and the layer's next state."""
        c = self.config
        z, xBC, dt = self._project(u, rows)
        y, (conv, ssm) = gated_ssd(
            xBC,
            z,
            dt,
            -torch.exp(self.A_log),
            packing,
            head_dim=c.head_dim,
            n_groups=c.n_groups,
            conv_weight=self.conv.weight,
            conv_bias=self.conv.bias,
            D=self.D,
            dt_bias=self.dt_bias,
            dt_limit=c.time_step_limit,
            norm_weight=self.norm.weight,
            norm_groups=self.norm.groups,
            norm_eps=self.norm.eps,
            initial_state=state,
            rows=rows,
            chunk_size=self.chunk_size,
        )
        return y, Mamba2LayerState(conv, ssm)

    def _project(self, u: Tensor, rows: Sequence[int] | None) -> tuple[Tensor, Tensor, Tensor]:
        """z (N or M, d_inner), xBC (N, conv_dim), dt (N, H). Where few rows are wanted, z is made for those only."""
        c = self.config
        widths = [c.d_inner, c.conv_dim, c.n_heads]
        if rows is None:
            z, xBC, dt = project(self.in_proj, u).split(widths, dim=1)
            return z, xBC, dt
        if not cuttable(self.in_proj):
            z, xBC, dt = self.in_proj(u).split(widths, dim=1)
            return z[list(rows)], xBC, dt
        z = project_part(self.in_proj, u[list(rows)], 0, c.d_inner)
        xBC, dt = project_part(self.in_proj, u, c.d_inner, sum(widths)).split(widths[1:], dim=1)
        return z, xBC, dt


class Mamba2Layer(nn.Module):
    """Pre-norm residual layer."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.norm = Norm(config.d_model, config.norm_eps)
        self.mixer = Mamba2Mixer(config)

    def forward(
        self, u: Tensor, packing: Packing, state: Mamba2LayerState | None, rows: Sequence[int] | None
    ) -> tuple[Tensor, Mamba2LayerState]:
        mixed, new_state = self.mixer(self.norm(u, dtype_of(self.mixer.in_proj)), packing, state, rows)
        return add_projected(pick(u, rows), self.mixer.out_proj, mixed), new_state


class Mamba2(Stack[Mamba2LayerState]):
    """The stack."""

    def __init__(self, config: Mamba2Config) -> None:
        layers = (Mamba2Layer(config) for _ in range(config.n_layers))
        super().__init__(config.vocab_size, config.d_model, layers, Norm(config.d_model, config.norm_eps))
        self.config = config

    def layer_state(self, n_segments: int) -> Mamba2LayerState:
        c, weight = self.config, self.embeddings.weight
        return Mamba2LayerState(
            conv=weight.new_zeros(n_segments, c.d_conv - 1, c.conv_dim),
            ssm=weight.new_zeros(n_segments, c.d_state, c.n_heads, c.head_dim, dtype=wide(weight)),
        )

    def activation_blocks(self, n_tokens: int) -> list[int]:
        """See `RecurrentModel.activation_blocks`. What lives at once at the fullest point of a layer."""
        c = self.config
        weight = self.embeddings.weight
        width = weight.element_size()
        projected = 2 * c.d_inner + 2 * c.n_groups * c.d_state + c.n_heads
        # The residual stream; the layer's input, z, xBC and dt; the gated y and what a product takes: the sums of its
        # rows for half precision, and where all between the products is one kernel not both at once.
        per_token = [4 * c.d_model, width * c.d_model, width * projected]
        gated = n_tokens * width * c.d_inner
        product = 4 * min(n_tokens, PRODUCT_ROWS) * (c.d_inner if width == 4 else projected)
        one_kernel = is_one_kernel(weight.device, weight.dtype)
        blocks = [max(product, gated)] if width == 2 and one_kernel else [product, gated]
        blocks += gated_ssd_blocks(n_tokens, c.d_inner, c.d_state, c.n_groups, c.n_heads, weight.device, weight.dtype)
        blocks += rms_norm_blocks(n_tokens, c.d_model, weight.device, weight.dtype)
        return [n_tokens * size for size in per_token] + blocks
