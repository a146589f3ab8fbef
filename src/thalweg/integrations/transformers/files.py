"""What a model of `modeling.py` writes besides what transformers writes for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from thalweg.checkpoints.auto_map import write_auto_map
from thalweg.checkpoints.fields import read_json_object
from thalweg.checkpoints.format import Format
from thalweg.errors import InvalidInputError


def stored_tensors(format: Format, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a model under the names and in the shapes of its format."""
    stored = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            raise InvalidInputError(
                f"state_dict holds {name!r}, which is no parameter of this model; adapters are saved by peft, or are "
                "merged first"
            )
        tensor_map, new = format.stored_name(name.removeprefix(prefix))
        stored[new] = tensor_map.save(tensor)
    return stored


def write_config(folder: Path, format: Format, config: Any) -> None:
    """Put every key that describes the model into config.json: transformers leaves out what equals its defaults."""
    assert format.write_config is not None
    path = folder / "config.json"
    written = format.write_config(config)
    content = {**read_json_object(path), **written}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_auto_map(folder)
