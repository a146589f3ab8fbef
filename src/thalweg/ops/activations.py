"""silu, sigmoid, softplus and the tanh form of GELU, with the same bits on any number of threads.

PyTorch splits more than 32,768 numbers between threads, computes most of a thread's part with vectors and the last few
numbers one by one, and these four then round otherwise. Here every thread is given parts of exactly so many numbers,
which leave none over, and what is left at the end goes to one thread. (GELU begins to split at half as many, and then
into uneven parts: it gets one part at a time.) With gradients, or on other devices, they are PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

GRAIN, GELU_GRAIN = 1 << 15, 1 << 14
"""Numbers of one call that PyTorch never splits between threads, multiples of any vector's length."""


def silu(x: Tensor, *, inplace: bool = False) -> Tensor:
    """x * sigmoid(x)."""
    if _is_whole(x, GRAIN):
        return F.silu(x, inplace=inplace)
    return _in_parts(x if inplace else _copy(x), lambda part: F.silu(part, inplace=True))


def sigmoid(x: Tensor, *, inplace: bool = False) -> Tensor:
    """1 / (1 + exp(-x))."""
    if _is_whole(x, GRAIN):
        return x.sigmoid_() if inplace else x.sigmoid()
    return _in_parts(x if inplace else _copy(x), torch.sigmoid_)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    if _is_whole(x, GRAIN):
        return F.softplus(x)
    return _in_parts(_copy(x), lambda part: part.copy_(F.softplus(part)))


def gelu_tanh(x: Tensor) -> Tensor:
    """x times the normal distribution, by a tanh."""
    if _is_whole(x, GELU_GRAIN):
        return F.gelu(x, approximate="tanh")
    out = _copy(x)
    for part in out.view(-1).split(GELU_GRAIN):
        part.copy_(F.gelu(part, approximate="tanh"))
    return out


def _is_whole(x: Tensor, grain: int) -> bool:
    """Whether one call does."""
    return x.requires_grad or x.device.type != "cpu" or x.numel() <= grain


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _in_parts(x: Tensor, act_: Callable[[Tensor], object]) -> Tensor:
    """x, with `act_` done to all of it, in parts whose split between threads lies at multiples of GRAIN."""
    if x.is_contiguous():
        flat = x.view(-1)
        whole = len(flat) // GRAIN * GRAIN
        for part in (*flat[:whole].split(GRAIN * torch.get_num_threads()), flat[whole:]):
            act_(part)
    elif x[0].numel() <= GRAIN:
        for part in x.split(GRAIN // x[0].numel()):
            act_(part)
    else:
        for row in x:
            _in_parts(row, act_)
    return x
