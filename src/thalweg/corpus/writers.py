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
from thalweg.storage.durable import errors_named, move_durably, sync_file

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
    if out.suffix.lower() not in _WRITERS:
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

    Raises:
        CorpusError: not as many rows were written as the metadata says, so nothing was replaced.
    """
    schema = output_schema(metadata, with_text=with_text)
    quantized = (_quantized(batch, schema, metadata) for batch in batches)
    try:
        with errors_named(out):
            written = _WRITERS[out.suffix.lower()](work, metadata, quantized, schema)
    except BaseException:
        for name in (_OUTPUT, _IDS, _METADATA):
            (work / name).unlink(missing_ok=True)  # half of them helps nobody, least of all on a full disk
        raise
    if written != metadata.rows:
        raise CorpusError(
            f"{written:,} of {metadata.rows:,} rows were written, so {out} is left as it was and {work} is kept; "
            "this is a bug of thalweg, please report it"
        )
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


def _write_parquet(work: Path, metadata: Metadata, batches: Batches, schema: pa.Schema) -> int:
    # A row group each batch, so that a reader needs no more memory than this writer.
    # By Python's file, as pyarrow takes no name that is not UTF-8. Vectors hardly get smaller by compression, which a
    # search would have to undo every time.
    compression = {name: "zstd" for name in schema.names if name != "vector"} | {"vector.list.element": "none"}
    options: dict[str, Any] = {"compression": compression, "use_dictionary": ["path"], "write_page_checksum": True}
    with open(work / _OUTPUT, "wb") as stream, pq.ParquetWriter(stream, schema, **options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    with open(work / _OUTPUT, "rb") as written:
        return int(pq.read_metadata(written).num_rows)


def _write_jsonl(work: Path, metadata: Metadata, batches: Batches, schema: pa.Schema) -> int:
    rows = 0
    with open(work / _OUTPUT, "wb") as stream:
        for batch in batches:
            vectors = vectors_of(batch.column("vector"))
            for row, vector in zip(_without_vector(batch), vectors, strict=True):
                stream.write(json_line({**row, "vector": numbers(vector)}))
                rows += 1
    (work / _METADATA).write_text(metadata.dumps(), encoding="utf-8")
    return rows


def _write_npy(work: Path, metadata: Metadata, batches: Batches, schema: pa.Schema) -> int:
    header = {
        "descr": np.lib.format.dtype_to_descr(vector_dtype(metadata.precision)),
        "fortran_order": False,
        "shape": (metadata.rows, vector_width(metadata)),
    }
    rows = 0
    with open(work / _OUTPUT, "wb") as stream, open(work / _IDS, "wb") as ids:
        np.lib.format.write_array_header_1_0(stream, header)
        for batch in batches:
            stream.write(vectors_of(batch.column("vector")).tobytes())
            ids.writelines(map(json_line, _without_vector(batch)))
            rows += batch.num_rows
    (work / _METADATA).write_text(metadata.dumps(), encoding="utf-8")
    return rows


_WRITERS: dict[str, Callable[[Path, Metadata, Batches, pa.Schema], int]] = {
    ".parquet": _write_parquet,
    ".jsonl": _write_jsonl,
    ".npy": _write_npy,
}


OUTPUT_SUFFIXES = tuple(_WRITERS)


def _without_vector(batch: Any) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], batch.select(batch.schema.names[:-1]).to_pylist())


def numbers(vector: np.ndarray[Any, Any]) -> list[float] | list[int]:
    """The shortest decimals that give the same float32, instead of those that give the same float64."""
    if vector.dtype != np.float32:
        return cast(list[int], vector.tolist())
    return [float(number) for number in vector.astype("U")]


def json_line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
