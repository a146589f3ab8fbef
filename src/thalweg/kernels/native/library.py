"""The compiled library: whether it is there, what it takes, and how it is called.

It is plain C: it is called with pointers, needs no header of PyTorch and runs on PyTorch's own OpenMP threads.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SUFFIX = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
DTYPES = frozenset(_SUFFIX)
"""What the kernels compute in."""


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """The library and "", or None and why."""
    found = [path for suffix in EXTENSION_SUFFIXES if (path := Path(__file__).parent / f"_kernels{suffix}").is_file()]
    if not found:
        return None, "not compiled; install a C++ compiler, then install thalweg again"
    try:
        return ctypes.CDLL(str(found[0])), ""
    except OSError as error:
        return None, f"cannot be loaded: {error}"


def missing() -> str:
    """Why the kernels cannot be used, or ""."""
    return _library()[1]


def takes(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> bool:
    """Whether kernels take these tensors: on the CPU, all float32 or all bfloat16, and dense in their last dimension.

    `dtype`: of the result, where it is not that of the tensors.
    """
    own = tensors[0].dtype
    return (
        own in _SUFFIX
        and (dtype is None or dtype in _SUFFIX)
        and all(t.is_cpu and t.dtype == own and t.stride(-1) == 1 for t in tensors)
    )


@functools.cache
def _function(name: str, dtype: torch.dtype | None) -> Any:
    library = _library()[0]
    assert library is not None
    function = library[f"thalweg_{name}_{_SUFFIX[dtype]}" if dtype else f"thalweg_{name}"]
    function.restype = None
    return function


def call(name: str, dtype: torch.dtype | None, *arguments: Tensor | int | float | None) -> None:
    """The kernel of that name for that dtype. Tensors go as pointers, None as a null pointer, integers as int64."""
    function = _function(name, dtype)
    if function.argtypes is None:  # a kernel takes the same kinds at every call
        function.argtypes = [_kind(argument) for argument in arguments]
    function(*[_pointer(argument) if isinstance(argument, Tensor) else argument for argument in arguments])


def _pointer(tensor: Tensor) -> int:
    assert tensor.is_cpu, tensor.device  # a kernel would read and write wherever the number points to
    return tensor.data_ptr()


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised memory for a kernel: on the CPU, whatever the default device and dtype."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def _kind(argument: Tensor | int | float | None) -> Any:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p
    return ctypes.c_float if isinstance(argument, float) else ctypes.c_int64


def finite_flag() -> Tensor:
    """(1,) int64: 1, which a kernel makes 0 where a result is not finite."""
    return torch.ones(1, dtype=torch.int64, device="cpu")


def row_targets(n: int, rows: Sequence[int] | None) -> Tensor | None:
    """(N,) int64: the row of y that each token is, -1 for none; None for all of them in order."""
    if rows is None:
        return None
    targets = torch.full((n,), -1, dtype=torch.int64, device="cpu")
    targets[list(rows)] = torch.arange(len(rows), device="cpu")
    return targets
