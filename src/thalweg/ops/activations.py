"""silu, sigmoid, softplus and the tanh form of GELU, with the same bits on any number of threads.

PyTorch splits more than 32,768 numbers between threads, computes most of a thread's part with vectors and the last few
numbers one by one, and these four then round otherwise. Here every thread is given parts of exactly so many numbers,
which leave none over, and what is left at the end goes to one thread. With gradients, or on other devices, they are
PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

GRAIN = 1 << 15
"""Numbers of one call that PyTorch never splits between threads, a multiple of any vector's length."""


def silu(x: Tensor, *, inplace: bool = False) -> Tensor:
    """x * sigmoid(x)."""
    return _apply(x, lambda t: F.silu(t, inplace=True), F.silu, inplace)


def sigmoid(x: Tensor, *, inplace: bool = False) -> Tensor:
    """1 / (1 + exp(-x))."""
    return _apply(x, torch.sigmoid_, torch.sigmoid, inplace)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return _apply(x, lambda t: t.copy_(F.softplus(t)), F.softplus, False)


def gelu_tanh(x: Tensor) -> Tensor:
    """x times the normal distribution, by a tanh."""

    def gelu(t: Tensor) -> Tensor:
        return F.gelu(t, approximate="tanh")

    return _apply(x, lambda t: t.copy_(gelu(t)), gelu, False)


def _apply(x: Tensor, act_: Callable[[Tensor], Tensor], act: Callable[[Tensor], Tensor], inplace: bool) -> Tensor:
    if x.requires_grad or x.device.type != "cpu" or x.numel() <= GRAIN:
        return act_(x) if inplace else act(x)
    out = x if inplace else x.clone(memory_format=torch.contiguous_format)
    for part in _parts(out):
        act_(part)
    return out


def _parts(x: Tensor) -> Iterator[Tensor]:
    """All of x, in parts whose split between threads, if there is one, lies at multiples of GRAIN."""
    if x.is_contiguous():
        flat = x.view(-1)
        whole = len(flat) // GRAIN * GRAIN
        yield from flat[:whole].split(GRAIN * torch.get_num_threads())
        yield flat[whole:]
    elif x[0].numel() <= GRAIN:
        yield from x.split(GRAIN // x[0].numel())
    else:
        for row in x:
            yield from _parts(row)
