"""The table of all checkpoint formats, and which of them a folder is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from thalweg.checkpoints.fields import Fields, listing, read_json_object
from thalweg.checkpoints.files import STANDALONE, choose_weights, scan
from thalweg.checkpoints.format import HYBRID_HINT, Format, generic_name
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.families import FAMILIES, named

FORMATS: tuple[Format, ...] = tuple(
    sorted(
        (format for family in FAMILIES for format in named(family.formats)),
        key=lambda format: format.config_file is None,
    )
)
"""In order of preference: a repository that holds two formats at once is read as the first. What a config describes
comes before what only the shapes of tensors do."""

ATTENTION_HYBRIDS = frozenset(
    {
        "bamba",
        "falcon_h1",
        "granitemoehybrid",
        "jamba",
        "kimi_linear",
        "lfm2",
        "lfm2_moe",
        "minimax",
        "nemotron_h",
        "olmo_hybrid",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_next",
        "zamba",
        "zamba2",
    }
)
"""`model_type`s of transformers whose stacks hold recurrent and attention layers."""


def detect(source: Path) -> tuple[Format, dict[str, Any]]:
    """The format of a folder and its parsed config file; of a weight file without one, the shapes of its tensors.

    Only the config is looked at: `auto_map` and a `model_type` of the repository's own do not matter, and no code of
    the repository is run. The names and shapes of the tensors are checked by `structure.match`.

    Raises:
        CheckpointError: no config file, none of the known formats, or a model with attention layers.
    """
    configs = {
        name: read_json_object(source / name)
        for name in dict.fromkeys(format.config_file for format in FORMATS)
        if name is not None and (source / name).is_file()
    }
    for name, found in configs.items():
        model_type = Fields(found, str(source / name)).text("model_type")
        if model_type in ATTENTION_HYBRIDS:
            raise CheckpointError(f"{source / name}: a model of type {model_type} has attention layers; {HYBRID_HINT}")
    shapes = _standalone_shapes(source)
    for format in FORMATS:
        described = shapes if format.config_file is None else configs.get(format.config_file)
        if described is not None and format.recognises(described):
            return format, described
    raise CheckpointError(f"{_seen(source, configs, shapes)}. Formats tried: {tried()}")


def find_format(name: str) -> Format:
    """The format of that name, which must be one."""
    return next(format for format in FORMATS if format.name == name)


def format_to_write(model: nn.Module) -> Format:
    """The format that `save_checkpoint` writes for a model."""
    for format in FORMATS:
        if format.write_config is not None and type(model) is format.model_class:
            return format
    raise InvalidInputError(f"no checkpoint format to save a {type(model).__name__}; known: {tried()}")


def keeps_float32(model: nn.Module, name: str) -> bool:
    """Whether a parameter is at least float32 in whatever dtype the weights are asked (`TensorMap.keep_float32`)."""
    generic, _ = generic_name(name)
    formats = [format for format in FORMATS if format.model_class is type(model)]
    maps = [tensor_map for format in formats for tensor_map in format.tensor_maps]
    return any(tensor_map.keep_float32 and tensor_map.name == generic for tensor_map in maps)


def keep_float32_(model: nn.Module) -> None:
    """Give a model that was made in some dtype the dtypes that `load_checkpoint` gives it in that dtype, in place."""
    for name, parameter in model.named_parameters():
        if keeps_float32(model, name):
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def tried() -> str:
    """All formats with what they look like, for errors."""
    return "; ".join(f"{format.name} ({format.looks_like})" for format in FORMATS)


def _standalone_shapes(source: Path) -> dict[str, Any] | None:
    """The shape of every tensor by name, where the weights are in a file that may do without a config."""
    names = [path.name for path in source.iterdir()] if source.is_dir() else [source.name]
    if not any(name.endswith(STANDALONE) for name in choose_weights(names)):
        return None
    return {name: info.shape for name, info in scan(source).items()}


def _seen(source: Path, configs: dict[str, dict[str, Any]], shapes: dict[str, Any] | None) -> str:
    if not configs and shapes is not None:
        return f"{source} is of no known format: it holds {listing(shapes, 5)}"
    if not configs:
        return (
            f"{source} is not a checkpoint: it has neither a config.json nor a params.json, nor one *{STANDALONE} "
            "(of several, give the path of one)"
        )
    found = "; ".join(
        f"{name} with model_type {config.get('model_type')!r:.80} and architectures {config.get('architectures')!r:.80}"
        for name, config in configs.items()
    )
    return f"{source} is of no known format: it has {found}"
