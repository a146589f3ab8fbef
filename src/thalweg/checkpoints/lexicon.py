"""The files of a folder's lexicon, laid out as a module of sentence-transformers.

2_Lexicon/config.json           in_features D, d_lexicon K, strength, threshold, exponent
2_Lexicon/model.safetensors     columns int16 (V, Z), values float16 (V, Z)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from thalweg.checkpoints.fields import Fields, read_json_object, write_json
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.pooling.lexicon import Lexicon

CONSTANTS = ("strength", "threshold", "exponent")


def read_lexicon(folder: Path) -> tuple[Lexicon, int]:
    """Of the module's folder; and the width D of the vectors that it is put beside.

    Raises:
        CheckpointError: a file that is missing or says what cannot be.
    """
    config = Fields(read_json_object(folder / "config.json"), str(folder / "config.json"))
    path = folder / "model.safetensors"
    try:
        tensors = safetensors.numpy.load_file(path)
        lexicon = Lexicon(
            tensors["columns"].astype(np.int32),
            tensors["values"].astype(np.float32),
            config.integer("d_lexicon"),
            *(config.number(name) for name in CONSTANTS),
        )
    except (OSError, KeyError, safetensors.SafetensorError, InvalidInputError) as error:
        raise CheckpointError(f"{path}: not the codes of a lexicon: {error}") from error
    return lexicon, config.integer("in_features")


def write_lexicon(folder: Path, lexicon: Lexicon, d_model: int) -> None:
    """Into the module's folder, which is made; `d_model` is the width of the token vectors."""
    folder.mkdir(exist_ok=True)
    constants = {name: getattr(lexicon, name) for name in CONSTANTS}
    write_json(folder / "config.json", {"in_features": d_model, "d_lexicon": lexicon.d_lexicon, **constants})
    tensors = {"columns": lexicon.columns.astype(np.int16), "values": lexicon.values.astype(np.float16)}
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(tensors))  # with the modes of other files
