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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.errors import InvalidInputError
from thalweg.kernels import native
from thalweg.kernels.native.ssd import Convolution, Gate
from thalweg.models.layers import (
    PRODUCT_ROWS,
    TILE,
    Conv,
    Norm,
    add_projected,
    cuttable,
    dtype_of,
    project,
    project_part,
    write_state,
)
from thalweg.ops.causal_conv import causal_conv, last_columns
from thalweg.ops.ssd import default_chunk_size, fused_ssd, ssd
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
        options: dict[str, Any] = {
            "D": self.D,
            "dt_bias": self.dt_bias,
            "dt_limit": c.time_step_limit,
            "initial_state": state and state.ssm,
            "rows": rows,
            "chunk_size": self.chunk_size,
        }
        columns = state and state.conv
        if native.usable(z, xBC):
            conv = last_columns(xBC, packing, c.d_conv - 1, columns)
            around: dict[str, Any] = {
                "convolution": Convolution(self.conv.weight, self.conv.bias, columns),
                "gate": Gate(z, self.norm.weight, self.norm.groups, self.norm.eps),
            }
            x, dt, A, B, C = self._scanned(xBC, dt)
            gated, ssm = fused_ssd(x, dt, A, B, C, packing, **options, **around)
            return gated.flatten(1), Mamba2LayerState(conv, ssm)
        xBC, conv = causal_conv(xBC, self.conv.weight, self.conv.bias, packing, initial_state=columns, silu=True)
        x, dt, A, B, C = self._scanned(xBC, dt)
        y, ssm = ssd(x, dt, A, B, C, packing, **options)
        return self._gate(y.flatten(1), z), Mamba2LayerState(conv, ssm)

    def _scanned(self, xBC: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x (N, H, P), dt (N, H), A (H,), B and C (N, G, K): the first arguments of the scan."""
        c = self.config
        x, B, C = xBC.split([c.d_inner, c.n_groups * c.d_state, c.n_groups * c.d_state], dim=1)
        B, C = (t.unflatten(1, (c.n_groups, c.d_state)) for t in (B, C))
        return x.unflatten(1, (c.n_heads, c.head_dim)), dt, -torch.exp(self.A_log), B, C

    def _gate(self, y: Tensor, z: Tensor) -> Tensor:
        """(M, d_inner) twice -> (M, d_inner): the gate, then the norm, rounded once at the end."""
        if torch.is_grad_enabled() or y.device.type != "cpu":
            return self.norm(y.float() * F.silu(z.float())).to(y.dtype)
        out = torch.empty_like(y)
        for start in range(0, len(y), TILE):
            rows = slice(start, start + TILE)
            gated = F.silu(z[rows].float(), inplace=z.dtype != torch.float32).mul_(y[rows])
            parts = gated.unflatten(1, (self.norm.groups, -1))
            square = torch.linalg.vector_norm(parts, dim=2, keepdim=True).square_()
            parts.mul_(square.div_(parts.shape[2]).add_(self.norm.eps).rsqrt_())
            torch.mul(gated, self.norm.weight, out=gated)
            out[rows] = gated
        return out

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
        return add_projected(u if rows is None else u[list(rows)], self.mixer.out_proj, mixed), new_state


class Mamba2(nn.Module):
    """The stack without a language-model head; implements `thalweg.models.protocol.RecurrentModel`."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Mamba2Layer(config) for _ in range(config.n_layers))
        self.norm_f = Norm(config.d_model, config.norm_eps)

    @property
    def d_model(self) -> int:
        return self.config.d_model

    @property
    def device(self) -> torch.device:
        return self.embeddings.weight.device

    def init_state(self, n_segments: int) -> tuple[Mamba2LayerState, ...]:
        c, weight = self.config, self.embeddings.weight
        return tuple(
            Mamba2LayerState(
                conv=weight.new_zeros(n_segments, c.d_conv - 1, c.conv_dim),
                ssm=weight.new_zeros(n_segments, c.d_state, c.n_heads, c.head_dim, dtype=torch.float32),
            )
            for _ in self.layers
        )

    def forward(
        self,
        tokens: Tensor,
        packing: Packing,
        state: tuple[Mamba2LayerState, ...] | None = None,
        rows: Sequence[int] | None = None,
        out: tuple[Mamba2LayerState, ...] | None = None,
    ) -> tuple[Tensor, tuple[Mamba2LayerState, ...]]:
        """See `RecurrentModel.forward`. The last layer computes only the wanted rows."""
        u = self.embeddings(tokens).float()
        new_state = []
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            u, layer_state = layer(u, packing, state[i] if state else None, rows if last else None)
            layer_state = write_state(layer_state, out[i] if out else None)
            new_state.append(layer_state)
        return self.norm_f(u), tuple(new_state)

    def activation_blocks(self, n_tokens: int) -> list[int]:
        """See `RecurrentModel.activation_blocks`. What lives at once at the fullest point of a layer."""
        c = self.config
        weight = self.embeddings.weight
        width = weight.element_size()
        projected = 2 * c.d_inner + 2 * c.n_groups * c.d_state + c.n_heads
        # The residual stream and the steps in float32; the layer's input, z, xBC and dt; the gated y and what a product
        # takes, for half precision the sums of its rows and not both at once.
        per_token = [4 * c.d_model, width * c.d_model, width * projected, *[4 * c.n_heads] * 4]
        gated = n_tokens * width * c.d_inner
        product = 4 * min(n_tokens, PRODUCT_ROWS) * (c.d_inner if width == 4 else projected)
        blocks = [product, gated] if width == 4 else [max(product, gated)]
        if weight.device.type == "cpu" and weight.dtype in native.DTYPES and not native.missing():
            chunk = default_chunk_size(weight.dtype, fused=True)
            shared = c.n_groups * (5 * c.d_state + chunk)
            per_block = [c.d_state * c.d_inner, chunk * (3 * c.d_inner + shared)]
        else:
            per_token += [width * c.conv_dim, width * c.d_inner]  # the convolved xBC, y
            if width == 2:
                per_token += [4 * c.d_model] * 6  # the norm in several float32 steps
            chunk = default_chunk_size(weight.dtype)
            per_block = [c.n_heads * chunk * chunk] * 3 + [c.d_state * c.d_inner, chunk * c.d_inner] * 4
            blocks = [product, gated]
        return [n_tokens * size for size in per_token] + blocks + [4 * size for size in per_block]
