"""Fused kernels: a folder for each backend, one list of them, and one place that chooses.

An op asks `kernel` for the kernel of its name that takes the tensors at hand. Where there is none it runs its PyTorch
version, which takes all tensors and has the gradients. Models and references know no backend; another one is a folder
with a `BACKEND` and a row in `BACKENDS`. Kernels import `packing` and PyTorch, never an op or a model.

The environment variable `THALWEG_KERNELS` chooses: `auto` (default) is all backends that can run, `torch` is none, and
the name of a backend is that one alone. `THALWEG_NATIVE=0` is an older way to say `torch`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thalweg.errors import InvalidInputError
from thalweg.kernels import native
from thalweg.kernels.backend import Backend, Kernel

BACKENDS: tuple[Backend, ...] = (native.BACKEND,)
"""In the order in which they are tried."""


def kernel(name: str, *tensors: Tensor, dtype: torch.dtype | None = None) -> Callable[..., Any] | None:
    """The kernel of that op which takes these tensors, or None, which stands for PyTorch.

    None also where gradients are wanted, and under autocast: weights are then of another dtype than what they are
    applied to. `dtype`: of the result, where the op is told one.
    """
    if torch.is_grad_enabled():
        return None
    for backend in enabled():
        found = backend.kernels.get(name)
        if found is not None and found.takes(tensors, dtype) and not torch.is_autocast_enabled(backend.device):
            return found.run
    return None


def planned(name: str, device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """The kernel of that op which a model of that dtype on that device runs without gradients, or None."""
    for backend in enabled():
        if name in backend.kernels and device.type == backend.device and dtype in backend.dtypes:
            return backend.kernels[name]
    return None


@functools.cache
def enabled() -> tuple[Backend, ...]:
    """The backends that are tried, by the environment as it is at the first call.

    Raises:
        InvalidInputError: `THALWEG_KERNELS` is no backend, or one that cannot run here.
    """
    chosen = _chosen()
    if chosen == "auto":
        return tuple(backend for backend in BACKENDS if not backend.missing())
    if chosen == "torch":
        return ()
    backend = next(backend for backend in BACKENDS if backend.name == chosen)
    if backend.missing():
        raise InvalidInputError(
            f"THALWEG_KERNELS={chosen!r} cannot be used: {backend.missing()}; unset it, or set it to 'auto' or 'torch'"
        )
    return (backend,)


def _chosen() -> str:
    given = os.environ.get("THALWEG_KERNELS", "")
    off = os.environ.get("THALWEG_NATIVE") == "0"
    choices = ("auto", "torch", *(backend.name for backend in BACKENDS))
    if given and given not in choices:
        raise InvalidInputError(f"THALWEG_KERNELS must be one of {', '.join(choices)}, got {given!r}")
    if off and given not in ("", "auto", "torch"):
        raise InvalidInputError(f"THALWEG_KERNELS={given!r} and THALWEG_NATIVE=0 contradict each other; unset one")
    return "torch" if off else given or "auto"


def report(device: torch.device, dtype: torch.dtype) -> list[tuple[str, str]]:
    """Each backend's title, and "used" or why a model of that dtype on that device does without it."""
    return [(backend.title, _unused(backend, device, dtype) or "used") for backend in BACKENDS]


def _unused(backend: Backend, device: torch.device, dtype: torch.dtype) -> str:
    if backend.missing():
        return backend.missing()
    if backend not in enabled():
        off = "THALWEG_NATIVE=0" if os.environ.get("THALWEG_NATIVE") == "0" else f"THALWEG_KERNELS={_chosen()}"
        return f"switched off by {off}"
    if device.type != backend.device:
        return f"not used: the model is on {device}"
    if dtype not in backend.dtypes:
        return f"not used: the model is {str(dtype).removeprefix('torch.')}"
    return ""
