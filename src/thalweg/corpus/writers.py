"""The output of a run, put together from its parts: Parquet, JSONL or .npy, there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from thalweg.corpus.rows import Metadata, list_column, output_schema, vector_dtype, vector_width, vectors_of
from thalweg.errors import CorpusError
from thalweg.pooling.vectors import to_precision
from thalweg.storage.durable import move_durably, sync_file

Batches: TypeAlias = Iterable[Any]
"""Record batches with the output's columns, their vectors still float32 in the last one."""

FAILURES = "failures.jsonl"
"""In the work folder: what could not be read."""

_OUTPUT, _IDS, _METADATA = "output.tmp", "ids.tmp", "metadata.tmp"


def ids_path(out: Path) -> Path:
    """Beside a .npy file: one JSON line for each vector, with everything but the vector."""
    return out.with_name(f"{out.name}.ids.jsonl")


def metadata_path(out: Path) -> Path:
    """Beside a .jsonl or .npy file, which have no place for it inside."""
    return out.with_name(f"{out.name}.meta.json")


def failures_path(out: Path) -> Path:
    """Beside any output some of whose input could not be read: one JSON line for each failure."""
    return out.with_name(f"{out.name}.failures.jsonl")


def parts_path(out: Path) -> Path:
    """The work folder of a run that is not finished."""
    return out.with_name(f"{out.name}.parts")


def companions(out: Path) -> tuple[Path, ...]:
    """All that may stand beside an output."""
    return ids_path(out), metadata_path(out), failures_path(out), parts_path(out)


def check_output(out: Path) -> None:
    """Raises:
    CorpusError: a name whose suffix says no format, or a folder that does not exist.
    """
    if out.suffix not in _WRITERS:
        raise CorpusError(f"cannot tell the format of {str(out)!r}; it must end in {', '.join(_WRITERS)}")
    if not out.parent.is_dir():
        raise CorpusError(f"the folder {str(out.parent)!r} of the output does not exist; create it first")
    if out.is_dir():
        raise CorpusError(f"{str(out)!r} is a folder")


def write_output(out: Path, work: Path, metadata: Metadata, batches: Batches, *, with_text: bool) -> None:
    """Write an output in the format of its suffix.

    Args:
        out: replaced at once when everything is written; what stands beside it is replaced just before.
        work: a folder on the same file system for what is being written; a list of failures in it goes along.
        batches: in the order of the output; read once.
    """
    schema = output_schema(metadata, with_text=with_text)
    _WRITERS[out.suffix](work, metadata, (_quantized(batch, schema, metadata) for batch in batches), schema)
    failures_path(out).unlink(missing_ok=True)  # of an output that stood here before
    for name, target in (
        (FAILURES, failures_path(out)),
        (_METADATA, metadata_path(out)),
        (_IDS, ids_path(out)),
        (_OUTPUT, out),
    ):
        if (work / name).exists():
            sync_file(work / name)
            move_durably(work / name, target)


def _quantized(batch: Any, schema: pa.Schema, metadata: Metadata) -> Any:
    vectors = vectors_of(batch.column("vector"))
    ranges = None if metadata.ranges is None else np.array(metadata.ranges, np.float32)
    column = list_column(to_precision(vectors, metadata.precision, ranges))
    return pa.record_batch([*batch.columns[:-1], column], schema=schema)


def _write_parquet(work: Path, metadata: Metadata, batches: Batches, schema: pa.Schema) -> None:
    # A row group each batch, so that a reader needs no more memory than this writer.
    with pq.ParquetWriter(work / _OUTPUT, schema, compression="zstd", use_dictionary=["path"]) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_jsonl(work: Path, metadata: Metadata, batches: Batches, schema: pa.Schema) -> None:
    with open(work / _OUTPUT, "wb") as stream:
        for batch in batches:
            vectors = vectors_of(batch.column("vector"))
            for row, vector in zip(_without_vector(batch), vectors, strict=True):
                stream.write(_json_line({**row, "vector": _numbers(vector)}))
    (work / _METADATA).write_text(metadata.dumps(), encoding="utf-8")


def _write_npy(work: Path, metadata: Metadata, batches: Batches, schema: pa.Schema) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(vector_dtype(metadata.precision)),
        "fortran_order": False,
        "shape": (metadata.rows, vector_width(metadata)),
    }
    with open(work / _OUTPUT, "wb") as stream, open(work / _IDS, "wb") as ids:
        np.lib.format.write_array_header_1_0(stream, header)
        for batch in batches:
            stream.write(vectors_of(batch.column("vector")).tobytes())
            ids.writelines(map(_json_line, _without_vector(batch)))
    (work / _METADATA).write_text(metadata.dumps(), encoding="utf-8")


_WRITERS: dict[str, Callable[[Path, Metadata, Batches, pa.Schema], None]] = {
    ".parquet": _write_parquet,
    ".jsonl": _write_jsonl,
    ".npy": _write_npy,
}


def _without_vector(batch: Any) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], batch.select(batch.schema.names[:-1]).to_pylist())


def _numbers(vector: np.ndarray[Any, Any]) -> list[float] | list[int]:
    """The shortest decimals that give the same float32, instead of those that give the same float64."""
    if vector.dtype != np.float32:
        return cast(list[int], vector.tolist())
    return [float(number) for number in vector.astype("U")]


def _json_line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
