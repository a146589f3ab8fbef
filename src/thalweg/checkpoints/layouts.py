"""The table of all checkpoint formats, and which of them a folder is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from thalweg.checkpoints import gated_deltanet, mamba, mamba2, rwkv7, xlstm
from thalweg.checkpoints.fields import listing, read_json_object
from thalweg.checkpoints.files import STANDALONE, choose_weights, scan
from thalweg.checkpoints.layout import HYBRID_HINT, Layout, generic_name
from thalweg.errors import CheckpointError, InvalidInputError

LAYOUTS: tuple[Layout, ...] = (*mamba2.LAYOUTS, *mamba.LAYOUTS, *xlstm.LAYOUTS, *gated_deltanet.LAYOUTS, *rwkv7.LAYOUTS)
"""In order of preference: a repository that holds two formats at once is read as the first."""

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


def detect(source: Path) -> tuple[Layout, dict[str, Any]]:
    """The layout of a folder and its parsed config file; of a weight file without one, the shapes of its tensors.

    Only the config is looked at: `auto_map` and a `model_type` of the repository's own do not matter, and no code of
    the repository is run. The names and shapes of the tensors are checked by `load_weights`.

    Raises:
        CheckpointError: no config file, none of the known formats, or a model with attention layers.
    """
    configs = {
        name: read_json_object(source / name)
        for name in dict.fromkeys(layout.config_file for layout in LAYOUTS)
        if name is not None and (source / name).is_file()
    }
    for name, found in configs.items():
        if found.get("model_type") in ATTENTION_HYBRIDS:
            raise CheckpointError(
                f"{source / name}: a model of type {found['model_type']} has attention layers; {HYBRID_HINT}"
            )
    shapes = _standalone_shapes(source)
    for layout in LAYOUTS:
        described = shapes if layout.config_file is None else configs.get(layout.config_file)
        if described is not None and layout.recognises(described):
            return layout, described
    raise CheckpointError(f"{_seen(source, configs, shapes)}. Layouts tried: {tried()}")


def layout_to_write(model: nn.Module) -> Layout:
    """The layout that `save_checkpoint` writes for a model."""
    for layout in LAYOUTS:
        if layout.write_config is not None and type(model) is layout.model_class:
            return layout
    raise InvalidInputError(f"no checkpoint layout to save a {type(model).__name__}; known: {tried()}")


def keeps_float32(model: nn.Module, name: str) -> bool:
    """Whether a parameter is at least float32 in whatever dtype the weights are asked (`Rename.wide`)."""
    generic, _ = generic_name(name)
    layouts = [layout for layout in LAYOUTS if layout.model_class is type(model)]
    return any(rename.wide and rename.name == generic for layout in layouts for rename in layout.renames)


def tried() -> str:
    """All layouts with what they look like, for errors."""
    return "; ".join(f"{layout.name} ({layout.looks_like})" for layout in LAYOUTS)


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
        f"{name} with model_type {config.get('model_type')!r} and architectures {config.get('architectures')!r}"
        for name, config in configs.items()
    )
    return f"{source} is of no known format: it has {found}"
