"""Small parts that several families share."""

from __future__ import annotations

import functools
import platform
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.models.quantized import QuantizedLinear
from thalweg.ops import gates
from thalweg.ops.norms import rms_norm

PRODUCT_ROWS = 2048
"""Rows of a matrix product of half precision on the CPU. The library keeps float32 sums of all rows of a product, and
more than these would cost memory that no plan could state."""
NARROW, NARROW_ROWS = 1024, 512
"""Rows of such a product with so few outputs, where threads are few: of two threads the library gives one all the work
of 1024 rows by 768 outputs (measured: 1.1 against 1.8 TFLOP/s)."""
FEW_THREADS = 4
WIDE_ROWS, WIDE_OUTPUTS = 1024, 1024
"""Rows and outputs of a product of half precision that is made in float32, at a time."""


@functools.cache
def widened() -> bool:
    """Whether products of half precision are made in float32 on this CPU and rounded once.

    On x86 without instructions for bfloat16 the library emulates them, at a fifth of float32's speed (measured).
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return not any(getattr(torch.cpu, name, lambda: True)() for name in names)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, D), (E, D), (E,) -> (N, E), without gradients in parts where that saves memory or time."""
    rows = _rows_at_once(len(weight))
    if x.dtype.itemsize != 2 or x.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    if widened():
        return _wide_linear(x, weight, bias)
    if len(x) <= rows:
        return F.linear(x, weight, bias)
    out = x.new_empty(len(x), len(weight))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        if bias is None:
            torch.mm(x[part], weight.t(), out=out[part])
        else:
            torch.addmm(bias, x[part], weight.t(), out=out[part])
    return out


def _wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x.new_empty(len(x), len(weight))
    for first_row in range(0, len(x), WIDE_ROWS):
        rows = slice(first_row, first_row + WIDE_ROWS)
        wide = x[rows].float()
        for first in range(0, len(weight), WIDE_OUTPUTS):
            outputs = slice(first, first + WIDE_OUTPUTS)
            product = wide @ weight[outputs].float().t()
            out[rows, outputs] = product if bias is None else product.add_(bias[outputs].float())
    return out


def _rows_at_once(outputs: int) -> int:
    return NARROW_ROWS if NARROW_ROWS < outputs <= NARROW and torch.get_num_threads() <= FEW_THREADS else PRODUCT_ROWS


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`, as `linear` where the layer is nn.Linear itself and not an adapter around one."""
    return linear(x, layer.weight, layer.bias) if type(layer) is nn.Linear else layer(x)


def project_part(layer: nn.Linear | QuantizedLinear, x: Tensor, start: int, stop: int) -> Tensor:
    """The outputs start … stop of `project`; where the layer is quantised, these must be whole parts of it."""
    if isinstance(layer, QuantizedLinear):
        return layer.columns(x, start, stop)
    return linear(x, layer.weight[start:stop], None if layer.bias is None else layer.bias[start:stop])


def cuttable(layer: nn.Module) -> TypeGuard[nn.Linear | QuantizedLinear]:
    """Whether `project_part` takes the layer: not an adapter around one, whose weight is not the whole map."""
    return type(layer) is nn.Linear or isinstance(layer, QuantizedLinear)


def dtype_of(layer: nn.Module) -> torch.dtype:
    """What a linear layer takes and gives."""
    dtype = layer.dtype if isinstance(layer, QuantizedLinear) else layer.weight.dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def add_projected(u: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
    """u + layer(x), (N, D) float32; without gradients the residual stream u is overwritten."""
    if torch.is_grad_enabled() or not u.is_contiguous():
        return u + layer(x)
    if u.dtype == x.dtype and type(layer) is nn.Linear and layer.bias is None:
        return u.addmm_(x, layer.weight.t())
    return gates.add(u, project(layer, x))


class Norm(nn.Module):
    """RMSNorm, computed in float32 at least, rounded once to the dtype asked for."""

    def __init__(self, width: int, eps: float, groups: int = 1, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps
        self.groups = groups

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """(…, D) -> (…, D) `dtype`, by default x's own: the residual stream's."""
        return rms_norm(x, self.weight, self.eps, groups=self.groups, bias=self.bias, dtype=dtype or x.dtype)


class Conv(nn.Module):
    """Weights of the depthwise convolution: (C, W) and (C,)."""

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
