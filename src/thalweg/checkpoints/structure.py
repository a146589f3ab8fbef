"""A config and the names and shapes of tensors → a model without weights, once they are known to belong together.

Nothing is built before the numbers of the config are compared with what the files hold: a config that lies about them
costs neither time nor memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from thalweg.checkpoints.embedding import EmbeddingConfig
from thalweg.checkpoints.fields import Fields, listing
from thalweg.checkpoints.files import TensorInfo
from thalweg.checkpoints.format import Format, TensorMap
from thalweg.checkpoints.formats import tried
from thalweg.errors import CheckpointError, InvalidInputError

MAX_LAYERS = 1024
"""Ten times as many as the deepest public model has."""

Matches = dict[str, list[tuple[TensorMap, str]]]
"""Stored name → the rows that convert it and the parameters they fill."""


def read_config(format: Format, raw: Mapping[str, Any], path: Path) -> Any:
    """The family's config of a parsed config file.

    Raises:
        CheckpointError: a value that cannot be, or a variant that the model does not have.
    """
    try:
        config = format.read_config(Fields(raw, str(path)))
    except InvalidInputError as error:  # the config class's own checks, which know no file
        raise CheckpointError(f"{path}: {error}") from error
    if config.n_layers > MAX_LAYERS:
        raise CheckpointError(f"{path}: {config.n_layers:,} layers, but no model has more than {MAX_LAYERS:,}")
    return config


def check_sizes(config: Any, tensors: Mapping[str, TensorInfo], format: Format, path: Path) -> None:
    """Hold the numbers of a config against the weight files, before anything of that size is made.

    Raises:
        CheckpointError: a size larger than all that the files hold, or a number of layers that they do not have.
    """
    if not tensors:
        raise CheckpointError("the weight files hold no tensor")
    total = sum(torch.Size(info.shape).numel() for info in tensors.values())
    for field in fields(config):
        size = getattr(config, field.name)
        if type(size) is int and size > total:
            raise CheckpointError(
                f"{path}: {field.name} is {size:,}, but the weight files hold {total:,} numbers in all"
            )
    n_stored = len(format.layers(tensors))
    if config.n_layers > n_stored > 0:
        raise CheckpointError(f"{path}: n_layers is {config.n_layers:,}, but the weight files hold {n_stored:,} layers")


def build(format: Format, config: Any, path: Path) -> Any:
    """The model on the meta device: shapes without memory.

    Raises:
        CheckpointError: sizes of which a tensor cannot be made.
    """
    try:
        with torch.device("meta"), _NoNumbers():
            return format.model_class(config)
    except (RuntimeError, OverflowError) as error:  # sizes whose product overflows
        raise CheckpointError(f"{path} describes a model that cannot be built: {error}") from error


def check_embedding(embedding: EmbeddingConfig, config: Any, model: nn.Module, folder: Path) -> None:
    """Raises:
    CheckpointError: a lexicon or a head of another model.
    """
    lexicon, heads = embedding.lexicon, tuple(getattr(model, "heads", ()))
    if lexicon is not None and lexicon.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{folder}: the lexicon has codes for {lexicon.vocab_size} ids, but the model has {config.vocab_size} "
            "embeddings: they do not belong together"
        )
    if embedding.head is not None and embedding.head not in heads:
        known = ", ".join(map(repr, heads)) or "none"
        raise CheckpointError(f"{folder}: the model has no embedding head {embedding.head!r:.80}; its heads: {known}")


def match(model: nn.Module, tensors: Mapping[str, TensorInfo], format: Format) -> Matches:
    """Which tensor fills which parameter, checked both ways. Where a format has several rows for a name, those count
    whose shape fits.

    Raises:
        CheckpointError: not every tensor of the files and every parameter of the model meet exactly once with the same
            shape and a floating dtype.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    plan: Matches = {}
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


def main_dtype(tensors: Mapping[str, TensorInfo]) -> torch.dtype:
    """The dtype of most numbers: some files keep their smallest tensors in float32."""
    counts: dict[torch.dtype, int] = {}
    for info in tensors.values():
        counts[info.dtype] = counts.get(info.dtype, 0) + torch.Size(info.shape).numel()
    return max(counts, key=counts.__getitem__)


def _unmatched(format: Format, tensors: Mapping[str, TensorInfo], leftover: list[str], missing: set[str]) -> str:
    folder = next(iter(tensors.values())).path.parent if tensors else "the file"
    parts = [f"{folder} does not hold exactly the tensors of format {format.name}"]
    if leftover:
        parts.append(f"{len(leftover)} left over: {listing(leftover)}")
    if missing:
        parts.append(f"{len(missing)} missing: {listing(missing)}")
    return "; ".join(parts) + f". Its config decided the format; known are {tried()}"


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
