"""What the machine could do at best: the matrix products that a model cannot do without, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.models.gated_deltanet import GatedDeltaNetConfig
from thalweg.models.layers import dtype_of, linear, widened
from thalweg.models.mamba import MambaConfig
from thalweg.models.mamba2 import Mamba2Config
from thalweg.models.quantized import QuantizedLinear
from thalweg.models.rwkv7 import RWKV7Config
from thalweg.models.xlstm import XLSTMConfig
from thalweg.ops import gated_delta_rule, gated_ssd, mlstm, selective_scan, wkv7
from thalweg.ops.quantized import ROWS, Int8, quantize_rows

Product = tuple[int, int, int, int]
"""(b, m, k, n): b products of (m, k) by (k, n)."""


def inner_chunk(model: Any) -> int:
    """The inner chunk Q that a model of thalweg computes with: the one it was given, else its op's own."""
    given = next(module.chunk_size for module in model.modules() if hasattr(module, "chunk_size"))
    if given is not None:
        return int(given)
    match model.config:
        case Mamba2Config():
            return gated_ssd.default_chunk_size(model.device, _dtype(model))
        case MambaConfig(d_inner=channels, d_state=width):
            return selective_scan.default_chunk_size(channels * width)
        case RWKV7Config():
            return wkv7.default_chunk_size()
        case XLSTMConfig():
            return mlstm.default_chunk_size(model.device, _dtype(model))
        case GatedDeltaNetConfig():
            return gated_delta_rule.default_chunk_size()
    raise AssertionError(type(model.config))


def set_inner_chunk(model: nn.Module, q: int | None) -> None:
    """Have all layers compute with inner chunks of `q` tokens; None leaves it to the op. The results do not change."""
    for module in model.modules():
        if hasattr(module, "chunk_size"):
            setattr(module, "chunk_size", q)  # noqa: B010 - a plain attribute, which mypy takes for a submodule


def scan_products(config: Any, q: int) -> list[Product]:
    """The products of one layer's scan for a block of q tokens; none for Mamba1, whose scan has no such form."""
    match config:
        case Mamba2Config(n_heads=h, head_dim=p, d_state=k, n_groups=g):
            return [(g, q, k, q), (h, q, q, p), (g, q, k, h * p // g), (g, k, q, h * p // g)]
        case RWKV7Config():
            h, k = config.n_heads, config.head_dim
            p = config.d_value // h
            # keys and removals seen from queries and removals; the solve and what is read of both; the past; the state
            return [(h, 2 * q, k, 2 * q), (h, q, q, p), (h, q, 2 * q, p), (h, 2 * q, k, p), (h, p, 2 * q, k)]
        case XLSTMConfig(n_heads=h):
            k, p = config.d_qk // h, config.d_v // h
            return [(h, q, k, q), (h, q, q, p), (h, q, k, p), (h, k, q, p)]
        case GatedDeltaNetConfig(n_value_heads=h, head_dim=k, value_head_dim=p):
            return [(h, 2 * q, k, q), (h, q, q, p), (h, q, q, p), (h, 2 * q, k, p), (h, k, q, p)]
    return []


def products(model: Any, n: int) -> Callable[[], None]:
    """The matrix products of one step of n tokens: every layer with its own weights, in order.

    Of quantised layers those of integers, from rows that are integers already, and those of weights in float32.
    """
    dtype, device, q = _dtype(model), model.device, inner_chunk(model)
    inputs: dict[int, Tensor] = {}
    layers = []
    for block in model.layers:
        linears = [layer for layer in block.modules() if isinstance(layer, (nn.Linear, QuantizedLinear))]
        widths = [layer.in_features for layer in linears]
        rows = [inputs.setdefault(width, _random(n, width, dtype, device)) for width in widths]
        layers.append([call for layer, x in zip(linears, rows, strict=True) for call in _calls(layer, x)])
    of_scan = torch.float32 if device.type == "cpu" and dtype.itemsize == 2 and widened() else dtype
    scan = [
        (_random(b, m, k, of_scan, device), _random(b, k, p, of_scan, device))
        for b, m, k, p in scan_products(model.config, q)
    ]
    blocks = max(n // q, 1) if scan else 0

    @torch.inference_mode()
    def run() -> None:
        for calls in layers:
            for call in calls:
                call()
            for _ in range(blocks):
                for left, right in scan:
                    torch.bmm(left, right) if len(left) > 1 else left[0] @ right[0]

    return run


def _calls(layer: nn.Linear | QuantizedLinear, x: Tensor) -> list[Callable[[], object]]:
    """The products of one layer."""
    if not isinstance(layer, QuantizedLinear):
        return [partial(linear, x, layer.weight)]
    q, calls = quantize_rows(x)[0], list[Callable[[], object]]()
    for matrix in layer.matrices:
        if isinstance(matrix, Int8):
            calls += [partial(matrix.sums, part) for part in q.split(ROWS)]
        else:
            calls.append(partial(linear, x, matrix.unpack(slice(None)).to(x.dtype)))
    return calls


def _random(*of: Any) -> Tensor:
    *shape, dtype, device = of
    return torch.randn(*shape, device=device).to(dtype)


def _dtype(model: nn.Module) -> torch.dtype:
    return next(dtype_of(layer) for layer in model.modules() if isinstance(layer, (nn.Linear, QuantizedLinear)))
