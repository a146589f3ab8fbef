"""Fused CPU kernels (`kernels.cpp`), if they could be compiled when thalweg was installed.

They do in one pass over memory what PyTorch does in several, and give the same numbers up to rounding. Every op works
without them: `usable` says whether they are there and fit the tensors at hand. `THALWEG_NATIVE=0` switches them off.

The library is plain C: it is called with pointers, needs no header of PyTorch and runs on PyTorch's own OpenMP threads.
"""

from __future__ import annotations

import ctypes
import functools
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.packing import Packing

_SUFFIX = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
DTYPES = frozenset(_SUFFIX)
"""What the kernels compute in."""


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """The library and "", or None and why."""
    if os.environ.get("THALWEG_NATIVE") == "0":
        return None, "switched off by THALWEG_NATIVE=0"
    found = [path for suffix in EXTENSION_SUFFIXES if (path := Path(__file__).parent / f"_kernels{suffix}").is_file()]
    if not found:
        return None, "not compiled; install a C++ compiler, then install thalweg again"
    try:
        return ctypes.CDLL(str(found[0])), ""
    except OSError as error:
        return None, f"cannot be loaded: {error}"


def missing() -> str:
    """Why the kernels are not used, or ""."""
    return _library()[1]


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: on the CPU, all float32 or all bfloat16, and no gradients wanted.

    Nor under autocast: weights are then of another dtype than what they are applied to.
    """
    dtype = tensors[0].dtype
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and dtype in _SUFFIX
        and all(t.is_cpu and t.dtype == dtype and t.stride(-1) == 1 for t in tensors)
        and _library()[0] is not None
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
    function(*[argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments])


def _kind(argument: Tensor | int | float | None) -> Any:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p
    return ctypes.c_float if isinstance(argument, float) else ctypes.c_int64


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """(N, D) float32, (D,) -> (N, D) `dtype`: each row by its root mean square, times weight."""
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=dtype)
    call("rms_norm", dtype, x, weight.float(), out, len(x), x.shape[1], float(eps))
    return out


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, packing: Packing, carried: Tensor | None, silu: bool
) -> Tensor:
    """(N, C), (C, W), (C,) -> (N, C): depthwise; columns before a segment are carried (S_in, W - 1, C) or zero."""
    out = torch.empty(x.shape, dtype=x.dtype)
    taps = weight.t().float().contiguous()
    rows, channels = x.shape
    call(
        "causal_conv", x.dtype, x, x.stride(0), packing.segment_ids, packing.starts,
        None if carried is None else carried.to(x.dtype).contiguous(), packing.n_carried,
        taps, None if bias is None else bias.float(), out, rows, channels, len(taps), int(silu),
    )  # fmt: skip
    return out


def add_(u: Tensor, x: Tensor) -> Tensor:
    """(N, D) float32 += (N, D), both contiguous."""
    call("add", x.dtype, u, x, *x.shape)
    return u


def silu_multiply_(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, (N, F) each, written to gate."""
    call("silu_multiply", gate.dtype, gate, gate.stride(0), up, up.stride(0), *gate.shape)
    return gate


def selective_scan(
    x: Tensor,
    dt: Tensor,
    rates: Tensor,
    B: Tensor,
    C: Tensor,
    packing: Packing,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`ops.selective_scan` token by token; rates: A as (K, E) float32. The running states are float64."""
    n, channels = x.shape
    width = len(rates)
    y, final = torch.empty(n, channels, dtype=x.dtype), torch.empty(len(packing.wanted), width, channels)
    call(
        "selective_scan", x.dtype, x, x.stride(0), dt, dt.stride(0), rates, B.float().contiguous(),
        C.float().contiguous(), None if dt_bias is None else dt_bias.float(), None if D is None else D.float(),
        int(dt_softplus), packing.bounds, packing.wanted_rows, packing.n_segments,
        None if initial_state is None else initial_state.contiguous(), packing.n_carried, y, final, channels, width,
    )  # fmt: skip
    return y, final
