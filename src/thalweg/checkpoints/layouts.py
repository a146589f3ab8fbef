"""The table of all checkpoint formats, and which of them a folder is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from thalweg.checkpoints import mamba2
from thalweg.checkpoints.fields import read_json_object
from thalweg.checkpoints.layout import Layout
from thalweg.errors import CheckpointError, InvalidInputError

LAYOUTS: tuple[Layout, ...] = (*mamba2.LAYOUTS,)
"""In order of preference: a repository that holds two formats at once is read as the first."""


def detect(folder: Path) -> tuple[Layout, dict[str, Any]]:
    """The layout of a folder and its parsed config file.

    Only the config is looked at: `auto_map` and a `model_type` of the repository's own do not matter, and no code of
    the repository is run. The names and shapes of the tensors are checked by `load_weights`.

    Raises:
        CheckpointError: no config file, or none of the known formats.
    """
    configs = {
        name: read_json_object(folder / name)
        for name in dict.fromkeys(layout.config_file for layout in LAYOUTS)
        if (folder / name).is_file()
    }
    for layout in LAYOUTS:
        config = configs.get(layout.config_file)
        if config is not None and layout.recognises(config):
            return layout, config
    raise CheckpointError(f"{_seen(folder, configs)}. Layouts tried: {tried()}")


def layout_to_write(model: nn.Module) -> Layout:
    """The layout that `save_checkpoint` writes for a model."""
    for layout in LAYOUTS:
        if layout.write_config is not None and type(model) is layout.model_class:
            return layout
    raise InvalidInputError(f"no checkpoint layout to save a {type(model).__name__}; known: {tried()}")


def tried() -> str:
    """All layouts with what they look like, for errors."""
    return "; ".join(f"{layout.name} ({layout.looks_like})" for layout in LAYOUTS)


def _seen(folder: Path, configs: dict[str, dict[str, Any]]) -> str:
    if not configs:
        return f"{folder} is not a checkpoint: it has neither a config.json nor a params.json"
    found = "; ".join(
        f"{name} with model_type {config.get('model_type')!r} and architectures {config.get('architectures')!r}"
        for name, config in configs.items()
    )
    return f"{folder} is of no known format: it has {found}"
