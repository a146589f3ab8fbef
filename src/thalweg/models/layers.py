"""Small parts that several families share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TILE = 128
"""Rows treated at a time between two matrix products on the CPU, so that float32 temporaries stay in a core's cache."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, groups: int = 1) -> Tensor:
    """(…, D), any dtype -> (…, D) float32: each of `groups` equal parts by its own root mean square."""
    parts = x.unflatten(-1, (groups, -1))
    square = torch.linalg.vector_norm(parts, dim=-1, keepdim=True, dtype=torch.float32).square()
    scale = torch.rsqrt(square / parts.shape[-1] + eps)
    return (parts.float() * scale).flatten(-2) * weight


class Norm(nn.Module):
    """RMSNorm, computed in float32."""

    def __init__(self, width: int, eps: float, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, self.groups)


class Conv(nn.Module):
    """Weights of the depthwise convolution: (C, W) and (C,)."""

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
