"""What the machine could do at best: the matrix products that a model cannot do without, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.families import Product, family_of
from thalweg.models.layers import dtype_of, linear, widened
from thalweg.models.quantized import QuantizedLinear
from thalweg.ops.quantized import ROWS, Int8, quantize_rows


def inner_chunk(model: Any) -> int:
    """The inner chunk Q that a model of thalweg computes with: the one it was given, else its op's own."""
    given = next(module.chunk_size for module in model.modules() if hasattr(module, "chunk_size"))
    if given is not None:
        return int(given)
    return family_of(model.config).inner_chunk(model.config, model.device, _dtype(model))


def set_inner_chunk(model: nn.Module, q: int | None) -> None:
    """Have all layers compute with inner chunks of `q` tokens; None leaves it to the op. The results do not change."""
    for module in model.modules():
        if hasattr(module, "chunk_size"):
            setattr(module, "chunk_size", q)  # noqa: B010 - a plain attribute, which mypy takes for a submodule


def scan_products(config: Any, q: int) -> list[Product]:
    """The products of one layer's scan for a block of q tokens; none for a scan that has no such form."""
    of_block = family_of(config).scan_products
    return [] if of_block is None else of_block(config, q)


def products(model: Any, n: int) -> Callable[[], None]:
    """The matrix products of one step of n tokens: every layer with its own weights, in order.

    Of quantised layers those of integers, from rows that are integers already, and those of weights in float32.
    """
    dtype, device, q = _dtype(model), model.device, inner_chunk(model)
    inputs: dict[tuple[int, torch.dtype], Tensor] = {}
    layers = []
    for block in model.layers:
        linears = [layer for layer in block.modules() if isinstance(layer, (nn.Linear, QuantizedLinear))]
        kinds = [(layer.in_features, dtype_of(layer)) for layer in linears]  # a few layers stay in float32
        rows = [inputs.setdefault(kind, _random(n, *kind, device)) for kind in kinds]
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
