"""Fused CPU kernels in C++, if they could be compiled when thalweg was installed.

They do in one pass over memory what PyTorch does in several, and give the same numbers up to rounding. A file of
kernels and the calls into it have one name; `library.py` loads and calls what was compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.kernels.backend import Backend, Kernel
from thalweg.kernels.native import kernels, mlstm, mlstm_scan, quantize, rwkv7, ssd
from thalweg.kernels.native.library import DTYPES, missing, takes


def _dense(tensors: Sequence[Tensor], dtype: torch.dtype | None) -> bool:
    return takes(tensors, dtype) and all(t.is_contiguous() for t in tensors)


def _float32(tensors: Sequence[Tensor], dtype: torch.dtype | None) -> bool:
    return tensors[0].dtype == torch.float32 and takes(tensors, dtype)


def _float32_rows(tensors: Sequence[Tensor], dtype: torch.dtype | None) -> bool:
    return tensors[0].ndim == 2 and _float32(tensors, dtype)


def _product_and_float32(tensors: Sequence[Tensor], dtype: torch.dtype | None) -> bool:
    product, *others = tensors
    return _dense([product], dtype) and _dense(others, None) and others[0].dtype == torch.float32


BACKEND = Backend(
    name="native",
    title="native CPU kernels",
    device="cpu",
    dtypes=DTYPES,
    missing=missing,
    kernels={
        "rms_norm": Kernel(kernels.rms_norm, _float32_rows),
        "add": Kernel(kernels.add, _dense),
        "silu_multiply": Kernel(kernels.silu_multiply, takes),
        "rms_norm_gate": Kernel(kernels.rms_norm_gate, takes),
        "causal_conv": Kernel(kernels.causal_conv, takes),
        "selective_scan": Kernel(kernels.selective_scan, takes),
        "ssd": Kernel(ssd.ssd, takes, chunk_size=ssd.CHUNK_SIZE),
        "gated_ssd": Kernel(ssd.gated_ssd, takes, chunk_size=ssd.CHUNK_SIZE, workspace=ssd.workspace),
        "mlstm": Kernel(mlstm_scan.mlstm, takes, chunk_size=mlstm_scan.CHUNK_SIZE, workspace=mlstm_scan.workspace),
        "head_norm_gate": Kernel(mlstm.head_norm_gate, takes),
        "token_mix": Kernel(rwkv7.token_mix, _float32),
        "scan_inputs": Kernel(rwkv7.scan_inputs, _dense),
        "scan_output": Kernel(rwkv7.scan_output, _product_and_float32),
        "relu_square": Kernel(rwkv7.relu_square, _dense),
        "wkv7": Kernel(rwkv7.wkv7, _float32),
        "quantize_rows": Kernel(quantize.quantize_rows, takes),
        "scale_rows": Kernel(quantize.scale_rows, takes),
    },
)
