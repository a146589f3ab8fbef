"""A folder → a model with its weights: every tensor of the files used exactly once, none of them twice in memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from thalweg.checkpoints.embedding import EmbeddingConfig, read_embedding_config
from thalweg.checkpoints.fields import Fields, listing, read_optional_object
from thalweg.checkpoints.files import STANDALONE, TensorInfo, scan, stream
from thalweg.checkpoints.format import Format, TensorMap
from thalweg.checkpoints.formats import detect, tried
from thalweg.checkpoints.tokens import read_token_ids
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.models.quantized import Quantization, check_quantization, replace_linears

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded folder.

    Args:
        model: in eval mode, without gradients, on the device asked for.
        config: the family's config dataclass.
        family: for example "mamba2".
        format: the format it was read from, for example "mamba2/transformers".
        weights_dtype: of most numbers in the file.
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
    weights_dtype: torch.dtype
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
    Other weights are converted one by one.

    Raises:
        CheckpointError: an unknown format, an unsupported variant, corrupt files, or tensors that are left over,
            missing, duplicated or of another shape.
        InvalidInputError: a dtype or quantisation that there is not, or a quantisation not on the CPU.
    """
    check_quantization(quantize, device)
    source = Path(folder)
    if not source.is_dir() and not (source.is_file() and source.suffix == STANDALONE):
        raise CheckpointError(f"there is no checkpoint folder {source}")
    folder = source if source.is_dir() else source.parent
    format, raw = detect(source)
    config = _read_config(format, raw, source / format.config_file if format.config_file else source)
    embedding = read_embedding_config(folder, format.embedding)
    lexicon = embedding.lexicon
    if lexicon is not None and lexicon.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{folder}: the lexicon has codes for {lexicon.vocab_size} ids, but the model has {config.vocab_size} "
            "embeddings: they do not belong together"
        )
    tensors = scan(source)
    weights_dtype = _main_dtype(tensors)
    with torch.device("meta"), _NoNumbers():
        model = format.model_class(config)
    load_weights(
        model,
        tensors,
        format,
        dtype=_weights_dtype(dtype, weights_dtype, torch.device(device)),
        device=device,
        quantize=quantize,
    )
    stated = raw if format.config_file else {}
    tokens = read_token_ids(folder, stated, format.token_ids, config.vocab_size)
    return Checkpoint(
        model=model.eval().requires_grad_(False),
        config=config,
        family=format.family,
        format=format.name,
        weights_dtype=weights_dtype,
        eos_token_id=tokens.eos,
        bos_token_id=tokens.bos,
        pad_token_id=tokens.pad,
        embedding=embedding,
        folder=folder,
        source=source,
        prepend_bos=Fields(stated, str(source)).flag("force_bos_token_insert", False),
    )


def stated_dtype(folder: Path) -> torch.dtype | None:
    """The dtype in which config.json wants the weights loaded (`dtype`, or as it was called `torch_dtype`)."""
    config = read_optional_object(folder / "config.json")
    named = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return named if named in WEIGHT_DTYPES else None


def load_weights(
    model: nn.Module,
    tensors: dict[str, TensorInfo],
    format: Format,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    quantize: Quantization | None = None,
) -> None:
    """Assign the tensors of `scan` to a model built on the meta device.

    Raises:
        CheckpointError: before anything is read, if not every tensor of the files and every parameter of the model
            meet exactly once with the same shape and a floating dtype.
    """
    plan = _match(model, tensors, format)
    weights = {}
    # On the meta device, so nothing but the form of the layers changes here.
    layers = replace_linears(model, quantize, dtype=dtype) if quantize else ()
    quantized = {f"{name}.weight": layer for name, layer, _ in layers}
    for path in dict.fromkeys(info.path for info in tensors.values()):
        wanted = {name for name in plan if tensors[name].path == path}
        for name, tensor in stream(path, wanted):
            for tensor_map, parameter in plan[name]:
                if parameter in quantized:
                    quantized[parameter].fill(tensor_map.load(tensor))
                    continue
                loaded = tensor_map.load(tensor).to(device=device, dtype=tensor_map.loaded_dtype(dtype))
                weights[parameter] = loaded.contiguous()
    model.load_state_dict(weights, assign=True)
    left = [name for name, tensor in chain(model.named_parameters(), model.named_buffers()) if tensor.is_meta]
    assert not left, f"{type(model).__name__} keeps tensors outside its state_dict: {left}"


class _NoNumbers(TorchFunctionMode):
    """Initial values that are filled in place are skipped: on the meta device there is nothing to fill.

    torch would agree, but only after importing 800 modules of arithmetic without numbers (a second and 70 MB).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_in_place = func.__name__.endswith("_") and not func.__name__.endswith(("__", "requires_grad_"))
        target = args[0] if args else kwargs.get("tensor")
        if is_in_place and isinstance(target, torch.Tensor) and target.is_meta:
            return target
        return func(*args, **kwargs)


def _read_config(format: Format, raw: dict[str, Any], path: Path) -> Any:
    try:
        return format.read_config(Fields(raw, str(path)))
    except InvalidInputError as error:  # the config class's own checks, which know no file
        raise CheckpointError(f"{path}: {error}") from error


def _match(model: nn.Module, tensors: dict[str, TensorInfo], format: Format) -> dict[str, list[tuple[TensorMap, str]]]:
    """Stored name → the rows that convert it and the parameters they fill, checked both ways.

    Where a format has several rows for a name, those count whose shape fits.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    plan: dict[str, list[tuple[TensorMap, str]]] = {}
    filled: dict[str, str] = {}
    leftover, wrong = [], []
    for stored, info in tensors.items():
        found = [(tensor_map, name) for tensor_map, name in format.find_all(stored) if name is None or name in expected]
        if not found:
            leftover.append(stored)
            continue
        known = [(tensor_map, name) for tensor_map, name in found if name is not None]
        if not known:
            continue
        fitting = [(row, name) for row, name in known if row.loaded_shape(info.shape) == expected[name]]
        for _, name in fitting or known[:1]:
            if name in filled:
                raise CheckpointError(f"both {filled[name]} and {stored} of {info.path} are the parameter {name}")
            filled[name] = stored
        plan[stored] = fitting
        if not fitting:
            tensor_map, name = known[0]
            kept = tensor_map.saved_shape(expected[name])
            wrong.append(f"{stored} is {list(info.shape)} in the file but should be {list(kept)}")
        elif not info.dtype.is_floating_point or info.dtype.itemsize == 1:
            wrong.append(f"{stored} is {info.dtype}, but quantised weights are not supported")
    missing = expected.keys() - filled.keys()
    if leftover or missing:
        raise CheckpointError(_unmatched(format, tensors, leftover, missing))
    if wrong:
        described = format.config_file or "the shape of others"
        raise CheckpointError(f"{len(wrong)} tensors do not fit the model that {described} describes: {listing(wrong)}")
    return plan


def _unmatched(format: Format, tensors: dict[str, TensorInfo], leftover: list[str], missing: set[str]) -> str:
    folder = next(iter(tensors.values())).path.parent if tensors else "the file"
    parts = [f"{folder} does not hold exactly the tensors of format {format.name}"]
    if leftover:
        parts.append(f"{len(leftover)} left over: {listing(leftover)}")
    if missing:
        parts.append(f"{len(missing)} missing: {listing(missing)}")
    return "; ".join(parts) + f". Its config decided the format; known are {tried()}"


def _main_dtype(tensors: dict[str, TensorInfo]) -> torch.dtype:
    """The dtype of most numbers: some files keep their smallest tensors in float32."""
    counts: dict[torch.dtype, int] = {}
    for info in tensors.values():
        counts[info.dtype] = counts.get(info.dtype, 0) + torch.Size(info.shape).numel()
    if not counts:
        raise CheckpointError("the weight files hold no tensor")
    return max(counts, key=counts.__getitem__)


def _weights_dtype(
    asked: torch.dtype | Literal["auto"] | None, stored: torch.dtype, device: torch.device
) -> torch.dtype:
    if asked is None:
        asked = torch.float32 if device.type == "cpu" else "auto"
    if asked == "auto":
        return stored
    if asked not in WEIGHT_DTYPES:
        raise InvalidInputError(f"dtype must be 'auto' or one of {listing(WEIGHT_DTYPES)}, but is {asked!r}")
    return asked
