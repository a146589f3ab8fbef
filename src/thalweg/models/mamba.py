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
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.errors import InvalidInputError
from thalweg.kernels import native
from thalweg.models.layers import (
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
from thalweg.ops.causal_conv import causal_conv
from thalweg.ops.selective_scan import default_chunk_size, selective_scan
from thalweg.packing import Packing

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
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
        return _gate(y, z), MambaLayerState(conv, ssm)

    def _project(self, u: Tensor, rows: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """x (N, E) and z (N or M, E), of which only the wanted rows are made."""
        if not cuttable(self.in_proj):
            x, z = self.in_proj(u).chunk(2, dim=1)
            return x, z if rows is None else z[list(rows)]
        # Two products, so that x can go after the convolution.
        cut = self.config.d_inner
        x = project_part(self.in_proj, u, 0, cut)
        return x, project_part(self.in_proj, u if rows is None else u[list(rows)], cut, 2 * cut)


def _unit_rms(t: Tensor, eps: float) -> Tensor:
    """(N, …) over its root mean square, computed in float32."""
    return F.rms_norm(t.float(), t.shape[-1:], eps=eps).to(t.dtype)


def _gate(y: Tensor, z: Tensor) -> Tensor:
    """(M, E) twice -> (M, E): y * silu(z), rounded once at the end. Without gradients y's memory is used again."""
    if torch.is_grad_enabled() or y.device.type != "cpu":
        return (y.float() * F.silu(z.float())).to(y.dtype)
    for start in range(0, len(y), TILE):
        rows = slice(start, start + TILE)
        y[rows] = F.silu(z[rows].float(), inplace=z.dtype != torch.float32).mul_(y[rows])
    return y


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
        return add_projected(u if rows is None else u[list(rows)], self.mixer.out_proj, mixed), new_state


class Mamba(nn.Module):
    """The stack without a language-model head; implements `thalweg.models.protocol.RecurrentModel`."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(MambaLayer(config) for _ in range(config.n_layers))
        self.norm_f = Norm(config.d_model, config.norm_eps)

    @property
    def d_model(self) -> int:
        return self.config.d_model

    @property
    def device(self) -> torch.device:
        return self.embeddings.weight.device

    def init_state(self, n_segments: int) -> tuple[MambaLayerState, ...]:
        c, weight = self.config, self.embeddings.weight
        return tuple(
            MambaLayerState(
                conv=weight.new_zeros(n_segments, c.d_conv - 1, c.d_inner),
                ssm=weight.new_zeros(n_segments, c.d_state, c.d_inner, dtype=torch.float32),
            )
            for _ in self.layers
        )

    def forward(
        self,
        tokens: Tensor,
        packing: Packing,
        state: tuple[MambaLayerState, ...] | None = None,
        rows: Sequence[int] | None = None,
        out: tuple[MambaLayerState, ...] | None = None,
    ) -> tuple[Tensor, tuple[MambaLayerState, ...]]:
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
        width = self.embeddings.weight.element_size()
        # z, the convolved x, dt and y; r, B and C; the residual stream in float32, its norm, what is added to it and,
        # while that is summed up, a copy.
        widths = 4 * [c.d_inner] + [c.dt_rank + 2 * c.d_state] + 3 * [c.d_model]
        blocks = [n_tokens * width * channels for channels in widths] + [n_tokens * 4 * c.d_model]
        if width == 2 and native.missing():
            blocks += 6 * [n_tokens * 4 * c.d_model]  # the norm in several float32 steps
        state = 4 * c.d_state * c.d_inner
        return blocks + 2 * [state * default_chunk_size(c.d_state * c.d_inner)] + 6 * [state]
