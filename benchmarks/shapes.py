"""A model of 0.1 to 0.2 billion parameters (random weights) of every family, and the products it cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from thalweg.models.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig
from thalweg.models.mamba import Mamba, MambaConfig
from thalweg.models.mamba2 import Mamba2, Mamba2Config
from thalweg.models.rwkv7 import RWKV7, RWKV7Config
from thalweg.models.xlstm import XLSTM, XLSTMConfig
from thalweg.ops import gated_delta_rule, mlstm, ssd, wkv7

Product = tuple[int, int, int, int]
"""(b, m, k, n): b products of (m, k) by (k, n)."""

WIDE = ("A_log", "dt_bias", ".D")  # parameters that stay float32, as `load_checkpoint` keeps them


@dataclass(frozen=True)
class Shape:
    """A family at one size.

    model, config: the family's classes; small: the fields of a small model of the same build, for runs of a million
    tokens; chunk_size: the inner chunk Q of the scan for a dtype; scan: the products of one layer's scan for a block
    of Q tokens, none for Mamba1, whose scan has no such form.
    """

    model: Callable[[Any], nn.Module]
    config: Any
    chunk_size: Callable[[torch.dtype], int]
    scan: Callable[[int], Sequence[Product]]

    def build(self, dtype: torch.dtype, **changes: int) -> Any:
        torch.manual_seed(0)
        model = self.model(type(self.config)(**{**vars(self.config), **changes})).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if not name.endswith(WIDE):
                parameter.data = parameter.data.to(dtype)
        return model


SHAPES = {
    "mamba2": Shape(
        Mamba2,
        Mamba2Config(vocab_size=50288, d_model=768, n_layers=24, n_heads=24, head_dim=64, d_state=128),
        ssd.default_chunk_size,
        lambda q: [(1, q, 128, q), (24, q, q, 64), (1, q, 128, 1536), (1, 128, q, 1536)],
    ),
    "mamba": Shape(
        Mamba,
        MambaConfig(vocab_size=50280, d_model=768, n_layers=24, d_inner=1536, dt_rank=48),
        lambda dtype: 1,
        lambda q: [],
    ),
    "rwkv7": Shape(
        RWKV7,
        RWKV7Config(
            vocab_size=65536,
            d_model=768,
            n_layers=12,
            head_dim=64,
            d_value=768,
            d_ffn=3072,
            rank_w=64,
            rank_a=64,
            rank_v=32,
            rank_g=128,
        ),
        lambda dtype: wkv7.default_chunk_size(),
        # keys and removals seen from queries and removals; the solve and what is read of both; the past; the state
        lambda q: [
            (12, 2 * q, 64, 2 * q),
            (12, q, q, 64),
            (12, q, 2 * q, 64),
            (12, 2 * q, 64, 64),
            (12, 64, 2 * q, 64),
        ],
    ),
    "xlstm": Shape(
        XLSTM,
        XLSTMConfig(vocab_size=50304, d_model=768, n_layers=14, n_heads=4, d_qk=384, d_v=768, d_ffn=2112),
        lambda dtype: mlstm.DEFAULT_CHUNK_SIZE,
        lambda q: [(4, q, 96, q), (4, q, q, 192), (4, q, 96, 192), (4, 96, q, 192)],
    ),
    "gated_deltanet": Shape(
        GatedDeltaNet,
        GatedDeltaNetConfig(
            vocab_size=32000,
            d_model=768,
            n_layers=12,
            n_heads=6,
            head_dim=128,
            n_value_heads=6,
            value_head_dim=256,
            d_mlp=2048,
        ),
        lambda dtype: gated_delta_rule.default_chunk_size(),
        lambda q: [(6, 2 * q, 128, q), (6, q, q, 256), (6, q, q, 256), (6, 2 * q, 128, 256), (6, 128, q, 256)],
    ),
}


def products(shape: Shape, model: nn.Module, n: int, q: int) -> Callable[[], None]:
    """The matrix products of one step of n tokens and nothing else: every layer with its own weights, in order."""
    dtype = next(layer.weight.dtype for layer in model.modules() if isinstance(layer, nn.Linear))
    inputs: dict[int, torch.Tensor] = {}
    layers = []
    stack: Any = model.blocks if hasattr(model, "blocks") else model.layers
    for block in stack:
        weights = [layer.weight for layer in block.modules() if isinstance(layer, nn.Linear)]
        layers.append([(inputs.setdefault(w.shape[1], torch.randn(n, w.shape[1]).to(dtype)), w) for w in weights])
    scan = [(torch.randn(b, m, k).to(dtype), torch.randn(b, k, p).to(dtype)) for b, m, k, p in shape.scan(q)]

    @torch.inference_mode()
    def run() -> None:
        for pairs in layers:
            for x, weight in pairs:
                torch.nn.functional.linear(x, weight)
            for _ in range(n // q if scan else 0):
                for left, right in scan:
                    torch.bmm(left, right) if len(left) > 1 else left[0] @ right[0]

    return run
