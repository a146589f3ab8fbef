"""A folder or hub id → what its model is, before any weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from thalweg.checkpoints.files import STANDALONE, scan
from thalweg.checkpoints.formats import keeps_float32
from thalweg.checkpoints.hub import read_headers, resolve
from thalweg.checkpoints.loader import Checkpoint, dtype_to_load, open_folder, stated_dtype
from thalweg.checkpoints.structure import build, check_sizes, main_dtype, match
from thalweg.errors import CheckpointError
from thalweg.models.quantized import Quantization, QuantizedLinear, check_quantization, replace_linears


def describe_checkpoint(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | Literal["auto"] | None = None,
    device: torch.device | str = "cpu",
    quantize: Quantization | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool | None = None,
) -> Checkpoint:
    """What `load_checkpoint` would give, with weights that take no memory: all of them are NaN.

    Names, shapes and dtypes are checked as there. Of a repository on the hub the small files are downloaded, and of
    safetensors the headers. Other weight files (`.bin`) are not looked at: then `weights_dtype` is None, and only the
    config says what the model is. A `.pth`, whose tensors are its config, is downloaded whole.

    Args:
        name_or_path, revision, token, cache_dir, local_files_only: as `resolve` takes them.
        dtype, device, quantize: as `load_checkpoint` takes them: of the model to be described.

    Returns:
        A checkpoint for `Embedder` and `plan_memory`; its model cannot be run, and its folder may lack the weights.

    Raises:
        CheckpointError: as `resolve` and `load_checkpoint`.
        InvalidInputError: no such quantisation, or not on this device.
    """
    check_quantization(quantize, device)
    found = None
    if isinstance(name_or_path, str) and not local_files_only:
        found = read_headers(name_or_path, revision=revision, token=token, cache_dir=cache_dir)
    if found is None:
        source = resolve(
            name_or_path, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        if not source.is_dir() and source.suffix != STANDALONE:
            raise CheckpointError(f"there is no checkpoint folder {source}")
        found = source, scan(source)
    source, tensors = found
    opened = open_folder(source)
    if tensors is not None:
        check_sizes(opened.config, tensors, opened.format, opened.described)
    model = build(opened.format, opened.config, opened.described)
    place, stored = torch.device(device), None
    if tensors is not None:
        match(model, tensors, opened.format)
        stored = main_dtype(tensors)
    checkpoint = opened.checkpoint(model, stored)
    dtype = dtype_to_load(dtype, stored or stated_dtype(source) or torch.float32, place)
    if quantize is not None:
        _quantize_nothing(model, quantize, dtype)
    _fill_with_nothing(model, dtype, place)
    return checkpoint


def _quantize_nothing(model: nn.Module, quantize: Quantization, dtype: torch.dtype) -> None:
    """Quantised layers of zeros; layers of one form share them."""
    filled: dict[object, QuantizedLinear] = {}
    for _, layer, old in replace_linears(model, quantize, dtype=dtype):
        alike = filled.setdefault((layer.in_features, layer.out_features, layer.widths), layer)
        if alike is layer:
            layer.fill(torch.zeros(old.weight.shape, dtype=dtype))
        layer.matrices = alike.matrices


def _fill_with_nothing(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """One NaN for each tensor, as wide as the tensor is."""
    nothing = {}
    for name, tensor in model.state_dict().items():
        kept = torch.promote_types(dtype, torch.float32) if keeps_float32(model, name) else dtype
        nothing[name] = torch.full((), torch.nan, dtype=kept, device=device).expand(tensor.shape)
    model.load_state_dict(nothing, assign=True)
