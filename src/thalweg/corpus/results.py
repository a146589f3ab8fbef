"""Reading an output that `embed` wrote, in any of its formats, in bounded memory. Nothing in it is trusted.

Vectors, the columns that are asked for and the rows that are wanted are read apart: a search looks at every vector, but
at the texts of its hits only.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from thalweg.corpus.rows import (
    COLUMNS,
    METADATA_KEY,
    Metadata,
    list_column,
    output_schema,
    vector_dtype,
    vector_width,
    vectors_of,
)
from thalweg.corpus.writers import check_output, ids_path, metadata_path
from thalweg.errors import CorpusError, ThalwegError

LINES = 1024
"""Lines of JSON, or rows with their texts, in memory at a time."""

_BYTES = 16 << 20
"""Bytes of the vectors of a batch, as float32."""

Stored: TypeAlias = npt.NDArray[Any]
"""(n, width) vectors as the precision stores them."""

Numbers: TypeAlias = npt.NDArray[np.int64]

VECTOR = "vector"
_KINDS = {name: str if pa.types.is_string(type_) else int for name, type_ in COLUMNS.items()}
_NEEDED = ("id", "section", "char_start", "char_end")


class Batch(NamedTuple):
    """Some rows, in order.

    numbers: (n,) of the rows in the file; vectors: (n, width); columns: those asked for, an Arrow table of n rows.
    """

    numbers: Numbers
    vectors: Stored
    columns: Any


Chosen: TypeAlias = Callable[[Any], Numbers]
"""A table -> the numbers of those of its rows that are wanted, ascending."""

_Reader: TypeAlias = Iterator[tuple[int, Batch | None]]
"""Batches with the number of rows that were looked at; None where none of them is wanted."""


def read_metadata(path: Path) -> Metadata:
    """What the output says about itself.

    Raises:
        CorpusError: not an output of thalweg.
    """
    check_output(path)
    if not path.is_file():
        raise CorpusError(f"there is no file {str(path)!r}; make it with: thalweg embed INPUT -o {path}")
    if path.suffix.lower() == ".parquet":
        with damage_reported(path), open(path, "rb") as stream:
            text = (pq.read_schema(stream).metadata or {}).get(METADATA_KEY)
    else:
        beside = metadata_path(path)
        text = beside.read_bytes() if beside.is_file() else None
    if text is None:
        raise CorpusError(f"{path} was not written by `thalweg embed`: nothing says which model its vectors are from")
    return Metadata.loads(text, str(path))


def read_batches(
    path: Path, metadata: Metadata, columns: Sequence[str] = (), chosen: Chosen | None = None
) -> Iterator[Batch]:
    """The rows of an output whose metadata has been read, in order.

    Args:
        columns: to read beside the vectors; of `read_schema`.
        chosen: which rows are wanted, by a table of `columns`; None: all.

    Raises:
        CorpusError: they are not what the metadata says, or damaged. Numbers that are not finite are not noticed here.
    """
    readers = {".parquet": _parquet, ".jsonl": _json_lines, ".npy": _npy}
    rows = 0
    with damage_reported(path):
        for n, batch in readers[path.suffix.lower()](path, metadata, columns, chosen):
            rows += n
            if batch is None:
                continue
            shape = (len(batch.numbers), vector_width(metadata))
            if batch.vectors.shape != shape or batch.vectors.dtype != vector_dtype(metadata.precision):
                raise CorpusError(
                    f"{path} is damaged: its vectors are {batch.vectors.dtype} of {batch.vectors.shape[1:]}, but its "
                    f"metadata says {metadata.precision} of {shape[1:]}; embed the corpus again"
                )
            if len(batch.numbers):
                yield batch
    if rows != metadata.rows:
        raise CorpusError(f"{path} is damaged: it has {rows:,} rows, not {metadata.rows:,}; embed the corpus again")


def read_schema(path: Path) -> pa.Schema:
    """The columns of an output, without the vectors."""
    with damage_reported(path):
        if path.suffix.lower() == ".parquet":
            with open(path, "rb") as stream:
                schema = pq.read_schema(stream)
            return pa.schema([field for field in schema if field.name != VECTOR])
        return _json_schema(path if path.suffix.lower() == ".jsonl" else ids_path(path))


def read_rows(path: Path, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Everything but the vectors of some rows, by their numbers.

    Raises:
        CorpusError: they are not there, or damaged.
    """
    wanted = sorted(set(numbers))
    with damage_reported(path):
        read = _rows_of_parquet if path.suffix.lower() == ".parquet" else _rows_of_lines
        return {number: _usable(path, row) for number, row in zip(wanted, read(path, wanted), strict=True)}


def read_table(path: Path, metadata: Metadata) -> Any:
    """Everything that was stored, as an Arrow table; its vectors in a fixed-size list, as the precision has them."""
    names, schema = read_schema(path).names, output_schema(metadata, with_text=True)
    tables = [
        batch.columns.append_column(schema.field(VECTOR), list_column(np.ascontiguousarray(batch.vectors)))
        for batch in read_batches(path, metadata, names)
    ]
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    return table.replace_schema_metadata({METADATA_KEY: metadata.dumps()})


def batch_rows(dimension: int) -> int:
    """Rows of a batch of vectors."""
    return max(1, min(1 << 16, _BYTES // (4 * dimension)))


def _parquet(path: Path, metadata: Metadata, columns: Sequence[str], chosen: Chosen | None) -> _Reader:
    with open(path, "rb") as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        kind = file.schema_arrow.field(VECTOR).type if names.count(VECTOR) == 1 else None
        if kind is None or not pa.types.is_fixed_size_list(kind):
            raise CorpusError(f"{path} is damaged: it has no column 'vector'; embed the corpus again")
        size = batch_rows(metadata.dimension)
        first = 0
        for group in range(file.num_row_groups):
            n = file.metadata.row_group(group).num_rows
            wanted, table = np.arange(n), None
            if columns:
                wanted, table = _wanted(file.iter_batches(size, row_groups=[group], columns=list(columns)), chosen)
            if not len(wanted):
                yield n, None
                first += n
                continue
            at = row = 0
            for batch in file.iter_batches(size, row_groups=[group], columns=[VECTOR]):
                vectors = vectors_of(batch.column(0))
                if len(vectors) != batch.num_rows:
                    raise CorpusError(f"{path} is damaged: a row has no vector; embed the corpus again")
                end = int(np.searchsorted(wanted, row + batch.num_rows))
                numbers = wanted[at:end]
                part = None if table is None else table.slice(at, end - at)
                if len(numbers) < len(vectors):
                    vectors = vectors[numbers - row]
                yield batch.num_rows, Batch(first + numbers, vectors, part)
                at, row = end, row + batch.num_rows
            first += n


def _wanted(batches: Iterator[Any], chosen: Chosen | None) -> tuple[Numbers, Any]:
    """The numbers of the rows that are wanted of a row group, and their columns."""
    numbers, tables, first = [], [], 0
    for batch in batches:
        table = pa.Table.from_batches([batch])
        kept = np.arange(table.num_rows) if chosen is None else chosen(table)
        numbers.append(first + kept)
        tables.append(table if len(kept) == table.num_rows else table.take(pa.array(kept)))
        first += batch.num_rows
    return np.concatenate(numbers), pa.concat_tables(tables)


def _rows_of_parquet(path: Path, numbers: list[int]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with open(path, "rb") as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
        columns = [name for name in file.schema_arrow.names if name != VECTOR]
        first = 0
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            here = numbers[bisect_left(numbers, first) : bisect_left(numbers, last)]
            for batch in file.iter_batches(LINES, row_groups=[group], columns=columns) if here else ():
                inside = [number - first for number in here if first <= number < first + batch.num_rows]
                if inside:
                    found += batch.take(pa.array(inside)).to_pylist()
                first += batch.num_rows
            first = last
    return found


def _usable(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a row that we know.

    Raises:
        CorpusError: one is missing, or holds something else.
    """
    for name, kind in _KINDS.items():
        value = row.get(name)
        if not isinstance(value, kind) and not (value is None and name not in _NEEDED):
            raise CorpusError(f"{path} is damaged: a row's {name} is {value!r:.60}; embed the corpus again")
    return row


def _json_lines(path: Path, metadata: Metadata, columns: Sequence[str], chosen: Chosen | None) -> _Reader:
    dtype = vector_dtype(metadata.precision)
    schema = _chosen_schema(path, columns)
    first = 0
    for rows in _line_batches(path):
        try:
            vectors = np.array([row.pop(VECTOR) for row in rows], dtype).reshape(len(rows), -1)
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise CorpusError(f"{path} is damaged: a row without a vector ({error!r})") from error
        yield len(rows), _kept(first, vectors, _as_table(rows, schema), chosen)
        first += len(rows)


def _npy(path: Path, metadata: Metadata, columns: Sequence[str], chosen: Chosen | None) -> _Reader:
    vectors = map_vectors(path)
    schema = _chosen_schema(ids_path(path), columns)
    size = batch_rows(metadata.dimension)
    with open(ids_path(path), "rb") as lines:
        for first in range(0, len(vectors), size):
            block = np.asarray(vectors[first : first + size])
            texts = list(islice(lines, len(block)))
            if len(texts) < len(block):
                raise CorpusError(f"{ids_path(path)} is damaged: it has fewer lines than {path} has vectors")
            table = _as_table([_object(text) for text in texts], schema) if columns else None
            yield len(block), _kept(first, block, table, chosen)


def map_vectors(path: Path) -> Stored:
    """(n, width): the vectors of a .npy file, which stay on the disk until they are looked at."""
    with damage_reported(path):
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        if vectors.ndim != 2:
            raise CorpusError(f"{path} is damaged: it holds an array of {vectors.ndim} axes, not of 2")
        return np.asarray(vectors)


def _kept(first: int, vectors: Stored, table: Any, chosen: Chosen | None) -> Batch | None:
    if chosen is None:
        return Batch(np.arange(first, first + len(vectors)), vectors, table)
    kept = chosen(table)
    return Batch(first + kept, vectors[kept], table.take(pa.array(kept))) if len(kept) else None


def _rows_of_lines(path: Path, numbers: list[int]) -> list[dict[str, Any]]:
    found = []
    with open(path if path.suffix.lower() == ".jsonl" else ids_path(path), "rb") as lines:
        at = 0
        for number in numbers:
            text = next(islice(lines, number - at, None))
            at = number + 1
            row = _object(text)
            row.pop(VECTOR, None)
            found.append(row)
    return found


def _line_batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    with open(path, "rb") as lines:
        while texts := list(islice(lines, LINES)):
            yield [_object(text) for text in texts]


def _json_schema(path: Path) -> pa.Schema:
    """The columns of the first row. A column that is not one of ours has the type that takes all its values."""
    names: list[str] = []
    others = pa.schema([])
    for rows in _line_batches(path):
        names = names or [name for name in rows[0] if name != VECTOR]
        unknown = [name for name in names if name not in COLUMNS]
        if not unknown:
            break
        types = pa.table({name: [row.get(name) for row in rows] for name in unknown}).schema
        others = pa.unify_schemas([others, types], promote_options="permissive")
    return pa.schema([(name, COLUMNS[name] if name in COLUMNS else others.field(name).type) for name in names])


def _chosen_schema(path: Path, columns: Sequence[str]) -> pa.Schema | None:
    if not columns:
        return None
    schema = _json_schema(path)
    return pa.schema([schema.field(name) for name in columns])


def _as_table(rows: list[dict[str, Any]], schema: pa.Schema | None) -> Any:
    if schema is None:
        return None
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)


def _object(text: bytes) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"a row is no object: {text[:40]!r}")
    return value


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """What the libraries raise for files that somebody has changed."""
    try:
        yield
    except ThalwegError:
        raise
    except (pa.ArrowException, ValueError, RecursionError, EOFError, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system; pyarrow raises some without a number for damaged files
        what = "a readable Parquet file" if path.suffix.lower() == ".parquet" else "what `thalweg embed` wrote"
        raise CorpusError(f"{path} is not {what}: {error}") from error
