"""The rows of a run: what every vector is stored with, and what the whole output says about itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from thalweg.errors import CorpusError
from thalweg.pooling.vectors import FloatArray, Precision

METADATA_KEY = b"thalweg"
"""Key of the schema metadata of a Parquet file that `embed` wrote; its value is JSON."""

EXCERPT = 1000
"""Characters of a whole document that are stored as its text."""

KEY = "key"

COLUMNS = {
    KEY: pa.string(),  # unique, see `keys.py`
    "id": pa.string(),
    "path": pa.string(),
    "row": pa.int64(),  # null where the whole file is the document
    "section": pa.int32(),
    "char_start": pa.int64(),
    "char_end": pa.int64(),
    "n_tokens": pa.int64(),
    "text": pa.string(),
}
"""What stands beside the vector, in this order; `text` can be left out."""

KEYS = {"key_file": pa.int32(), "key_row": pa.int64(), "key_last": pa.bool_(), "key_cut": pa.bool_()}
"""What parts hold besides: where a row belongs, whether its document ends with it, and whether it was cut short."""


VECTOR_TYPES: dict[str, type] = {
    "float32": np.float32,
    "int8": np.int8,
    "uint8": np.uint8,
    "binary": np.int8,
    "ubinary": np.uint8,
}
"""Arrow types of the stored numbers, by precision."""


class Row(NamedTuple):
    """One vector before it is written: the columns of `KEYS`, those of `COLUMNS` but its key, and the vector (d,)
    float32."""

    key_file: int
    key_row: int
    key_last: bool
    key_cut: bool
    id: str
    path: str
    row: int | None
    section: int
    char_start: int
    char_end: int
    n_tokens: int
    text: str
    vector: FloatArray


@dataclass(frozen=True)
class Metadata:
    """What an output says about itself, so that `search` needs nothing else.

    Args:
        model: name or absolute folder; None, in files of earlier versions, for the model that thalweg ships.
        revision: of a model on the hub; of the one that thalweg ships, the version of thalweg.
        fingerprint: identifies its weights.
        dimension: numbers of a vector before its precision was reduced.
        normalized: whether vectors have length 1.
        similarity: how the model's vectors are compared.
        prompt: text put before every document, "" for none.
        section_size: tokens of a section; None: one vector a document, or sections of another unit (see `run`).
        ranges: int8 and uint8: (2, dimension) minima and maxima of the whole run, else None.
        rows, documents, tokens, failed: counts; failed documents are not in the output.
        run: settings and inputs by which a repeated run is recognised.
    """

    model: str | None
    revision: str | None
    fingerprint: str
    dimension: int
    precision: Precision
    normalized: bool
    similarity: str
    prompt: str
    section_size: int | None
    version: str
    rows: int
    documents: int
    tokens: int
    failed: int
    ranges: list[list[float]] | None
    run: dict[str, Any]

    def dumps(self) -> str:
        """As JSON, in ASCII: names of folders may hold bytes that are no UTF-8."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str | bytes, source: str) -> Metadata:
        """The metadata of an output; newer versions may have added fields, which are ignored.

        Raises:
            CorpusError: not metadata that thalweg wrote.
        """
        try:
            values = json.loads(text)
            found = {name: _checked(name, values[name]) for name in cls.__dataclass_fields__}
            metadata = cls(**found)
            _check_together(metadata)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorpusError(
                f"{source}: its thalweg metadata cannot be read ({error}); embed the corpus again"
            ) from error
        return metadata


_TYPES: dict[str, tuple[type, ...]] = {
    "model": (str, type(None)),
    "revision": (str, type(None)),
    "normalized": (bool,),
    "section_size": (int, type(None)),
    "ranges": (list, type(None)),
    "run": (dict,),
    **dict.fromkeys(("dimension", "rows", "documents", "tokens", "failed"), (int,)),
    **dict.fromkeys(("fingerprint", "precision", "similarity", "prompt", "version"), (str,)),
}


def _checked(name: str, value: Any) -> Any:
    if not isinstance(value, _TYPES[name]) or (isinstance(value, bool) and name != "normalized"):
        raise TypeError(f"{name} is {value!r:.60}")
    if isinstance(value, int) and not 0 <= value < 2**53:
        raise ValueError(f"{name} is {value!r:.60}")
    return value


def _check_together(metadata: Metadata) -> None:
    if metadata.precision not in VECTOR_TYPES:
        raise ValueError(f"precision is {metadata.precision!r:.60}; it must be one of {', '.join(VECTOR_TYPES)}")
    if metadata.dimension < 1:
        raise ValueError(f"dimension is {metadata.dimension}")
    if metadata.precision in ("int8", "uint8"):
        ranges = np.array(metadata.ranges, np.float32)
        if ranges.shape != (2, metadata.dimension) or not np.isfinite(ranges).all():
            raise ValueError(f"ranges are not (2, {metadata.dimension}) finite numbers")


def part_schema(dimension: int, *, with_text: bool) -> pa.Schema:
    """Schema of parts: keys, columns and float32 vectors."""
    columns = [(name, type_) for name, type_ in _columns(with_text) if name != KEY]
    return pa.schema([*KEYS.items(), *columns, ("vector", pa.list_(pa.float32(), dimension))])


def output_schema(metadata: Metadata, *, with_text: bool) -> pa.Schema:
    """Schema of the output: columns, and vectors as the precision stores them."""
    vector = _vector_type(vector_dtype(metadata.precision), vector_width(metadata))
    return pa.schema(
        [*_columns(with_text), pa.field("vector", vector, nullable=False)], metadata={METADATA_KEY: metadata.dumps()}
    )


def vector_dtype(precision: Precision) -> np.dtype[Any]:
    """Dtype of the stored numbers."""
    return np.dtype(VECTOR_TYPES[precision])


def vector_width(metadata: Metadata) -> int:
    """Stored numbers of a vector: binary packs 8 dimensions in one."""
    return -(-metadata.dimension // 8) if metadata.precision in ("binary", "ubinary") else metadata.dimension


def vectors_of(column: Any) -> np.ndarray[Any, Any]:
    """(n, width): the vectors of a fixed-size list array, without a copy where Arrow allows."""
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(-1, column.type.list_size)


def list_column(vectors: np.ndarray[Any, Any]) -> Any:
    """(n, width) -> a fixed-size list array."""
    return pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.reshape(-1)), type=_vector_type(vectors.dtype, vectors.shape[1])
    )


def _vector_type(dtype: np.dtype[Any], width: int) -> Any:
    """Numbers that cannot be null are read from Parquet in half the time."""
    return pa.list_(pa.field("element", pa.from_numpy_dtype(dtype), nullable=False), width)


def _columns(with_text: bool) -> list[tuple[str, Any]]:
    return [(name, type_) for name, type_ in COLUMNS.items() if with_text or name != "text"]
