"""A folder → a model with its weights: every tensor of the files used exactly once, none of them twice in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from thalweg.checkpoints.embedding import EmbeddingConfig, read_embedding_config
from thalweg.checkpoints.fields import Fields, listing, read_optional_object
from thalweg.checkpoints.files import STANDALONE, TensorInfo, scan, stream
from thalweg.checkpoints.format import Format
from thalweg.checkpoints.formats import detect
from thalweg.checkpoints.structure import (
    Matches,
    build,
    check_embedding,
    check_sizes,
    main_dtype,
    match,
    read_config,
)
from thalweg.checkpoints.tokens import read_token_ids
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.models.quantized import Quantization, check_quantization, replace_linears
from thalweg.system.forked import compute_in_forked_process

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded folder.

    Args:
        model: in eval mode, without gradients, on the device asked for.
        config: the family's config dataclass.
        family: for example "mamba2".
        format: the format it was read from, for example "mamba2/transformers".
        weights_dtype: of most numbers in the file; None where no weight file was looked at (`describe_checkpoint`).
        eos_token_id, bos_token_id, pad_token_id: None where no file states one.
        embedding: how its vectors are to be made.
        folder: where it was read from; the tokenizer's files lie there too, if anywhere.
        source: the folder again, or the file of weights that was asked for.
        prepend_bos: the model knows only texts that begin with BOS (`force_bos_token_insert` in its config).
    """

    model: nn.Module
    config: Any
    family: str
    format: str
    weights_dtype: torch.dtype | None
    eos_token_id: int | None
    bos_token_id: int | None
    pad_token_id: int | None
    embedding: EmbeddingConfig
    folder: Path
    source: Path
    prepend_bos: bool


def load_checkpoint(
    folder: str | Path,
    *,
    dtype: torch.dtype | Literal["auto"] | None = None,
    device: torch.device | str = "cpu",
    quantize: Quantization | None = None,
) -> Checkpoint:
    """Load a local folder (see `resolve` for names on the hub) in any of the known formats.

    Args:
        folder: holds config.json or params.json and the weights, or weights in a format that needs no config; or such
            a file of weights itself (`.pth`).
        dtype: of the weights in memory; "auto" is the file's, None is float32 on the CPU and the file's elsewhere. The
            few per-head parameters that go through exponentials stay at least float32.
        device: where the weights go.
        quantize: 8 or 4 bits for the weights of wide linear layers (`models.quantized`), on the CPU only. They are made
            as the file is read: no layer's weights are in memory twice.

    On the CPU, weights whose dtype is the file's are views of the memory-mapped file: they are read when first used
    and can be dropped by the system, so the file must not be overwritten in place meanwhile (replacing it is safe).
    Where the weights have another dtype or are quantised, they are converted one by one, and no view is left.

    Raises:
        CheckpointError: an unknown format, an unsupported variant, corrupt files, or tensors that are left over,
            missing, duplicated or of another shape.
        InvalidInputError: a dtype or quantisation that there is not, or a quantisation not on the CPU.
    """
    check_quantization(quantize, device)
    compute_in_forked_process()
    source = Path(folder)
    if not source.is_dir() and not (source.is_file() and source.suffix == STANDALONE):
        raise CheckpointError(f"there is no checkpoint folder {source}")
    opened = open_folder(source)
    tensors = scan(source)
    check_sizes(opened.config, tensors, opened.format, opened.described)
    model = build(opened.format, opened.config, opened.described)
    plan = match(model, tensors, opened.format)
    weights_dtype = main_dtype(tensors)
    checkpoint = opened.checkpoint(model, weights_dtype)
    load_weights(
        model,
        tensors,
        plan,
        dtype=dtype_to_load(dtype, weights_dtype, torch.device(device)),
        device=device,
        quantize=quantize,
    )
    return checkpoint


@dataclass(frozen=True)
class Opened:
    """What the small files of a folder say; no tensor was looked at.

    Args:
        described: the file that describes the model, for errors.
        stated: its keys; {} where only the shapes of tensors do.
    """

    source: Path
    folder: Path
    described: Path
    format: Format
    stated: dict[str, Any]
    config: Any

    def checkpoint(self, model: nn.Module, weights_dtype: torch.dtype | None) -> Checkpoint:
        """With a model that fits.

        Raises:
            CheckpointError: special tokens, or ways of making vectors, that do not fit it.
        """
        config, folder = self.config, self.folder
        embedding = read_embedding_config(folder, self.format.embedding, d_model=config.d_model)
        check_embedding(embedding, config, model, folder)
        tokens = read_token_ids(folder, self.stated, self.format.token_ids, config.vocab_size)
        return Checkpoint(
            model=model.eval().requires_grad_(False),
            config=config,
            family=self.format.family,
            format=self.format.name,
            weights_dtype=weights_dtype,
            eos_token_id=tokens.eos,
            bos_token_id=tokens.bos,
            pad_token_id=tokens.pad,
            embedding=embedding,
            folder=folder,
            source=self.source,
            prepend_bos=Fields(self.stated, str(self.described)).flag("force_bos_token_insert", False),
        )


def open_folder(source: Path) -> Opened:
    """What a folder, or a weight file that needs no config, says about the model in it.

    Raises:
        CheckpointError: an unknown format, or a config that cannot be read.
    """
    format, raw = detect(source)
    folder = source if source.is_dir() else source.parent
    described = source / format.config_file if format.config_file else source
    config = read_config(format, raw, described)
    return Opened(source, folder, described, format, raw if format.config_file else {}, config)


def stated_dtype(folder: Path) -> torch.dtype | None:
    """The dtype in which config.json wants the weights loaded (`dtype`, or as it was called `torch_dtype`)."""
    config = read_optional_object(folder / "config.json")
    named = config.get("dtype") or config.get("torch_dtype")
    return next((dtype for dtype in WEIGHT_DTYPES if named in (str(dtype), str(dtype).removeprefix("torch."))), None)


def load_weights(
    model: nn.Module,
    tensors: Mapping[str, TensorInfo],
    plan: Matches,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    quantize: Quantization | None = None,
) -> None:
    """Assign the tensors of `scan` to a model of `build` as `match` has paired them."""
    weights = {}
    # On the meta device, so nothing but the form of the layers changes here.
    layers = replace_linears(model, quantize, dtype=dtype) if quantize else ()
    quantized = {f"{name}.weight": layer for name, layer, _ in layers}
    for path in dict.fromkeys(info.path for info in tensors.values()):
        wanted = {name for name in plan if tensors[name].path == path}
        copies = _copies(wanted, tensors, plan, dtype, quantized) if torch.device(device).type == "cpu" else {}
        for name, tensor in stream(path, wanted, copies):
            for tensor_map, parameter in plan[name]:
                if parameter in quantized:
                    quantized[parameter].fill(tensor_map.load(tensor))
                    continue
                loaded = tensor_map.load(tensor).to(device=device, dtype=tensor_map.loaded_dtype(dtype))
                weights[parameter] = loaded.contiguous()
    model.load_state_dict(weights, assign=True)
    left = [name for name, tensor in chain(model.named_parameters(), model.named_buffers()) if tensor.is_meta]
    assert not left, f"{type(model).__name__} keeps tensors outside its state_dict: {left}"


def _copies(
    wanted: Collection[str],
    tensors: Mapping[str, TensorInfo],
    plan: Matches,
    dtype: torch.dtype,
    quantized: Collection[str],
) -> dict[str, torch.dtype]:
    """The tensors of a file that are to be copied, and in which dtype; all others are views of it, or quantised.

    A view keeps all of the file's map, with every page that was read for others. Where more than a sixteenth of the
    file is read only to be converted, nothing stays a view: a few parameters that are float32 in any dtype would keep a
    whole file of float32 in memory.
    """
    copies: dict[str, torch.dtype] = {}
    total = converted = 0
    for name in wanted:
        info = tensors[name]
        n_bytes = torch.Size(info.shape).numel() * info.dtype.itemsize
        total += n_bytes
        dtypes = {tensor_map.loaded_dtype(dtype) for tensor_map, _ in plan[name]}
        if any(parameter in quantized for _, parameter in plan[name]):
            converted += n_bytes
        elif len(dtypes) == 1:  # else each parameter is converted by itself
            copies[name] = dtypes.pop()
            converted += n_bytes * (copies[name] != info.dtype)
    if 16 * converted > total:
        return copies
    return {name: kept for name, kept in copies.items() if kept != tensors[name].dtype}


def dtype_to_load(
    asked: torch.dtype | Literal["auto"] | None, stored: torch.dtype, device: torch.device
) -> torch.dtype:
    if asked is None:
        asked = torch.float32 if device.type == "cpu" else "auto"
    if asked == "auto":
        return stored
    if asked not in WEIGHT_DTYPES:
        raise InvalidInputError(f"dtype must be 'auto' or one of {listing(WEIGHT_DTYPES)}, but is {asked!r}")
    return asked
