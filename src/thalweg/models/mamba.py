"""Mamba1 (arXiv 2312.00752) and Falcon-Mamba (arXiv 2410.05355), which adds three norms without weights.

Legend: N tokens, D d_model, E d_inner channels, K d_state, R dt_rank, W conv taps.

One layer, u (N, D) float32 residual stream:
    x, z     = in_proj(rms_norm(u))                      widths E, E
    x        = act(causal_conv(x))
    r, B, C  = x_proj(x)                                 widths R, K, K; in Falcon-Mamba each over its root mean square
    y        = selective_scan(x, dt_proj(r), -exp(A_log), B, C) + D x
    u       += out_proj(y * silu(z))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.errors import InvalidInputError
from thalweg.models.layers import (
    Conv,
    Norm,
    add_projected,
    cuttable,
    dtype_of,
    project,
    project_part,
)
from thalweg.models.stack import Stack, pick
from thalweg.ops.activations import gelu_tanh, silu
from thalweg.ops.causal_conv import causal_conv
from thalweg.ops.gates import silu_multiply
from thalweg.ops.norms import rms_norm_blocks
from thalweg.ops.selective_scan import selective_scan, selective_scan_blocks
from thalweg.ops.tiles import wide
from thalweg.packing import Packing

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": F.relu,
}
"""After the convolution; the gate is silu always."""


@dataclass(frozen=True)
class MambaConfig:
    """Shape and constants of a Mamba1 stack.

    `norm_eps` is that of the norms with a weight, `mixer_norm_eps` that of Falcon-Mamba's norms of r, B and C; None is
    Mamba1, which has none.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    d_inner: int
    dt_rank: int
    d_state: int = 16
    d_conv: int = 4
    norm_eps: float = 1e-5
    mixer_norm_eps: float | None = None
    activation: str = "silu"
    conv_bias: bool = True
    proj_bias: bool = False
    residual_in_fp32: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "d_inner", "dt_rank", "d_state", "d_conv"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.activation not in ACTIVATIONS:
            raise InvalidInputError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")


class MambaLayerState(NamedTuple):
    """conv: (S, W - 1, E) inputs of the convolution, model dtype; ssm: (S, K, E) float32."""

    conv: Tensor
    ssm: Tensor


class MambaMixer(nn.Module):
    """The sequence mixer of one layer."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk_size: int | None = None  # of the scan; None: the op's default
        c, channels = config, config.d_inner
        self.in_proj = nn.Linear(c.d_model, 2 * channels, bias=c.proj_bias)
        self.output_parts = {"in_proj": (channels, channels)}  # x, z
        self.conv = Conv(channels, c.d_conv, c.conv_bias)
        self.x_proj = nn.Linear(channels, c.dt_rank + 2 * c.d_state, bias=False)
        self.dt_proj = nn.Linear(c.dt_rank, channels, bias=False)
        # The initial values of the paper's code: delta log-uniform in [1e-3, 1e-1] (dt_bias is its inverse softplus), A
        # uniform in [1, K]. Filled in place: a loader skips that on the meta device (checkpoints/loader.py).
        self.dt_bias = nn.Parameter(
            torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1)).exp_().expm1_().log_()
        )
        self.A_log = nn.Parameter(torch.empty(channels, c.d_state).uniform_(1, max(c.d_state, 2)).log_())
        self.D = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, c.d_model, bias=c.proj_bias)

    def forward(
        self,
        u: Tensor,
        packing: Packing,
        state: MambaLayerState | None,
        rows: Sequence[int] | None,
    ) -> tuple[Tensor, MambaLayerState]:
        """(N, D) -> (N or M, E), which `out_proj` is still to be applied to, and the layer's next state."""
        c = self.config
        x, z = self._project(u, rows)
        x, conv = causal_conv(
            x,
            self.conv.weight,
            self.conv.bias,
            packing,
            initial_state=state and state.conv,
            silu=c.activation == "silu",
        )
        x = x if c.activation == "silu" else ACTIVATIONS[c.activation](x)
        r, B, C = project(self.x_proj, x).split([c.dt_rank, c.d_state, c.d_state], dim=1)
        if c.mixer_norm_eps is not None:
            r, B, C = (_unit_rms(t, c.mixer_norm_eps) for t in (r, B, C))
        y, ssm = selective_scan(
            x,
            project(self.dt_proj, r),
            -torch.exp(self.A_log),
            B,
            C,
            packing,
            D=self.D,
            dt_bias=self.dt_bias,
            initial_state=state and state.ssm,
            rows=rows,
            chunk_size=self.chunk_size,
        )
        return silu_multiply(z, y), MambaLayerState(conv, ssm)

    def _project(self, u: Tensor, rows: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """x (N, E) and z (N or M, E), of which only the wanted rows are made."""
        if not cuttable(self.in_proj):
            x, z = self.in_proj(u).chunk(2, dim=1)
            return x, pick(z, rows)
        # Two products, so that x can go after the convolution.
        cut = self.config.d_inner
        x = project_part(self.in_proj, u, 0, cut)
        return x, project_part(self.in_proj, pick(u, rows), cut, 2 * cut)


def _unit_rms(t: Tensor, eps: float) -> Tensor:
    """(N, …) over its root mean square, computed in float32 at least."""
    return F.rms_norm(t.to(wide(t)), t.shape[-1:], eps=eps).to(t.dtype)


class MambaLayer(nn.Module):
    """Pre-norm residual layer."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.norm = Norm(config.d_model, config.norm_eps)
        self.mixer = MambaMixer(config)

    def forward(
        self, u: Tensor, packing: Packing, state: MambaLayerState | None, rows: Sequence[int] | None
    ) -> tuple[Tensor, MambaLayerState]:
        mixed, new_state = self.mixer(self.norm(u, dtype_of(self.mixer.in_proj)), packing, state, rows)
        return add_projected(pick(u, rows), self.mixer.out_proj, mixed), new_state


class Mamba(Stack[MambaLayerState]):
    """The stack."""

    def __init__(self, config: MambaConfig) -> None:
        layers = (MambaLayer(config) for _ in range(config.n_layers))
        super().__init__(config.vocab_size, config.d_model, layers, Norm(config.d_model, config.norm_eps))
        self.config = config

    def layer_state(self, n_segments: int) -> MambaLayerState:
        c, weight = self.config, self.embeddings.weight
        return MambaLayerState(
            conv=weight.new_zeros(n_segments, c.d_conv - 1, c.d_inner),
            ssm=weight.new_zeros(n_segments, c.d_state, c.d_inner, dtype=wide(weight)),
        )

    def activation_blocks(self, n_tokens: int) -> list[int]:
        """See `RecurrentModel.activation_blocks`. What lives at once at the fullest point of a layer."""
        c = self.config
        weight = self.embeddings.weight
        width = weight.element_size()
        # z, the convolved x, dt and y; r, B and C; the residual stream in float32, its norm, what is added to it and,
        # while that is summed up, a copy.
        widths = 4 * [c.d_inner] + [c.dt_rank + 2 * c.d_state] + 3 * [c.d_model]
        blocks = [n_tokens * width * channels for channels in widths] + [n_tokens * 4 * c.d_model]
        blocks += rms_norm_blocks(n_tokens, c.d_model, weight.device, weight.dtype)
        return blocks + selective_scan_blocks(c.d_inner, c.d_state)
