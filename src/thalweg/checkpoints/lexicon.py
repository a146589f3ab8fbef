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
SMALLEST_CONSTANT, LARGEST_CONSTANT = 1e-6, 1e6

MAX_DIMENSIONS = 2**15
"""More columns than int16 can number are none that a code could be in."""


def read_lexicon(folder: Path) -> tuple[Lexicon, int]:
    """Name of the module's folder, and the width D of the vectors that it is put beside.

    Raises:
        CheckpointError: a file that is missing or says what cannot be.
    """
    config = Fields(read_json_object(folder / "config.json"), str(folder / "config.json"))
    d_lexicon, width = config.integer("d_lexicon", maximum=MAX_DIMENSIONS), config.integer("in_features")
    constants = [config.number(name, minimum=SMALLEST_CONSTANT, maximum=LARGEST_CONSTANT) for name in CONSTANTS]
    path = folder / "model.safetensors"
    try:
        tensors = safetensors.numpy.load_file(path)
    except Exception as error:  # a header may name dtypes that NumPy lacks, which is an error of any kind
        raise CheckpointError(f"{path}: not the codes of a lexicon: {error!s:.300}") from error
    missing = {"columns", "values"} - tensors.keys()
    if missing:
        raise CheckpointError(f"{path}: not the codes of a lexicon: it has no {' and no '.join(sorted(missing))}")
    columns, values = tensors["columns"], tensors["values"]
    if columns.dtype != np.int16 or values.dtype not in (np.float16, np.float32):
        raise CheckpointError(
            f"{path}: columns and values are {columns.dtype} and {values.dtype}, not int16 and float16"
        )
    if not np.isfinite(values).all():
        raise CheckpointError(f"{path}: values must be finite")
    try:
        lexicon = Lexicon(columns.astype(np.int32), values.astype(np.float32), d_lexicon, *constants)
    except InvalidInputError as error:
        raise CheckpointError(f"{path}: not the codes of a lexicon: {error}") from error
    return lexicon, width


def write_lexicon(folder: Path, lexicon: Lexicon, d_model: int) -> None:
    """Into the module's folder, which is made; `d_model` is the width of the token vectors.

    Raises:
        InvalidInputError: more dimensions than the file's columns can number.
    """
    if lexicon.d_lexicon > MAX_DIMENSIONS:
        raise InvalidInputError(f"a lexicon can be saved up to d_lexicon={MAX_DIMENSIONS:,}, not {lexicon.d_lexicon:,}")
    folder.mkdir(exist_ok=True)
    constants = {name: getattr(lexicon, name) for name in CONSTANTS}
    write_json(folder / "config.json", {"in_features": d_model, "d_lexicon": lexicon.d_lexicon, **constants})
    tensors = {"columns": lexicon.columns.astype(np.int16), "values": lexicon.values.astype(np.float16)}
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(tensors))  # with the modes of other files
