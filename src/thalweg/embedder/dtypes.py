"""Names of dtypes."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import nn

from thalweg.errors import InvalidInputError

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"] | torch.dtype | None


def torch_dtype(dtype: Dtype) -> torch.dtype | Literal["auto"] | None:
    """The dtype of that name."""
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    named = getattr(torch, str(dtype), None)
    if not isinstance(named, torch.dtype):
        raise InvalidInputError(f"dtype must be 'auto', 'float32', 'bfloat16' or 'float16', got {dtype!r}")
    return named


def dtype_of_products(model: nn.Module) -> torch.dtype:
    """The dtype of a model's matrix products."""
    return next(p.dtype for p in model.parameters() if p.ndim == 2)
