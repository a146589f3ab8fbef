"""Reading an output that `embed` wrote, in any of its formats, in bounded memory. Nothing in it is trusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from thalweg.corpus.rows import COLUMNS, METADATA_KEY, Metadata, vector_dtype, vector_width, vectors_of
from thalweg.corpus.writers import check_output, ids_path, metadata_path
from thalweg.errors import CorpusError

_BATCH = 1024

Stored: TypeAlias = npt.NDArray[Any]
"""(n, width) vectors as the precision stores them."""


Rows: TypeAlias = Callable[[Sequence[int]], list[dict[str, Any]]]

_KINDS = {name: str if pa.types.is_string(type_) else int for name, type_ in COLUMNS.items()}
_NEEDED = ("id", "section", "char_start", "char_end")


class Batch(NamedTuple):
    """Some rows: their vectors, and what gives the rest of those that are wanted, by their numbers in the batch."""

    vectors: Stored
    rows: Rows


def read_metadata(path: Path) -> Metadata:
    """What the output says about itself.

    Raises:
        CorpusError: not an output of thalweg.
    """
    check_output(path)
    if not path.is_file():
        raise CorpusError(f"there is no file {str(path)!r}; make it with: thalweg embed INPUT -o {path}")
    if path.suffix.lower() == ".parquet":
        with _damage_reported(path), open(path, "rb") as stream:
            text = (pq.read_schema(stream).metadata or {}).get(METADATA_KEY)
    else:
        beside = metadata_path(path)
        text = beside.read_bytes() if beside.is_file() else None
    if text is None:
        raise CorpusError(f"{path} was not written by `thalweg embed`: nothing says which model its vectors are from")
    return Metadata.loads(text, str(path))


def read_batches(path: Path, metadata: Metadata) -> Iterator[Batch]:
    """All rows of an output whose metadata has been read, in order.

    Raises:
        CorpusError: they are not what the metadata says, or damaged.
    """
    readers = {".parquet": _parquet, ".jsonl": _json_lines, ".npy": _npy}
    rows = 0
    with _damage_reported(path):
        for batch in readers[path.suffix.lower()](path, metadata):
            shape = (len(batch.vectors), vector_width(metadata))
            if batch.vectors.shape != shape or batch.vectors.dtype != vector_dtype(metadata.precision):
                raise CorpusError(
                    f"{path} is damaged: its vectors are {batch.vectors.dtype} of {batch.vectors.shape[1:]}, but its "
                    f"metadata says {metadata.precision} of {shape[1:]}; embed the corpus again"
                )
            if batch.vectors.dtype == np.float32 and not np.isfinite(batch.vectors).all():
                raise CorpusError(f"{path} is damaged: it holds numbers that are not finite; embed the corpus again")
            rows += len(batch.vectors)
            yield Batch(batch.vectors, _checked(path, batch.rows))
    if rows != metadata.rows:
        raise CorpusError(f"{path} is damaged: it has {rows:,} rows, not {metadata.rows:,}; embed the corpus again")


def _checked(path: Path, rows: Rows) -> Rows:
    def checked(numbers: Sequence[int]) -> list[dict[str, Any]]:
        with _damage_reported(path):
            return [_usable(path, row) for row in rows(numbers)]

    return checked


def _parquet(path: Path, metadata: Metadata) -> Iterator[Batch]:
    with open(path, "rb") as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        kind = file.schema_arrow.field("vector").type if names.count("vector") == 1 else None
        if kind is None or not pa.types.is_fixed_size_list(kind):
            raise CorpusError(f"{path} is damaged: it has no column 'vector'; embed the corpus again")
        columns = [name for name in COLUMNS if name in names]
        for group in range(file.num_row_groups):
            table = _Lazy(file, group, columns)
            at = 0
            for batch in file.iter_batches(_BATCH, row_groups=[group], columns=["vector"]):
                yield Batch(vectors_of(batch.column(0)), _counted_from(at, table.rows))
                at += batch.num_rows


def _usable(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a row that we know.

    Raises:
        CorpusError: one is missing, or holds something else.
    """
    for name, kind in _KINDS.items():
        value = row.get(name)
        if not isinstance(value, kind) and not (value is None and name not in _NEEDED):
            raise CorpusError(f"{path} is damaged: a row's {name} is {value!r:.60}; embed the corpus again")
    return {name: row[name] for name in COLUMNS if name in row}


class _Lazy:
    """The columns of a row group beside the vectors, read when a row of it is wanted."""

    def __init__(self, file: Any, group: int, columns: list[str]) -> None:
        self._file, self._group, self._columns = file, group, columns
        self._table: Any = None

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        if self._table is None:
            self._table = self._file.read_row_group(self._group, columns=self._columns)
        return [self._table.slice(number, 1).to_pylist()[0] for number in numbers]


def _counted_from(first: int, rows: Rows) -> Rows:
    return lambda numbers: rows([first + number for number in numbers])


def _json_lines(path: Path, metadata: Metadata) -> Iterator[Batch]:
    dtype = vector_dtype(metadata.precision)
    with open(path, encoding="utf-8") as lines:
        while texts := list(islice(lines, _BATCH)):
            values = [_object(text) for text in texts]
            try:
                vectors = np.array([value.pop("vector") for value in values], dtype)
            except (KeyError, ValueError, TypeError, OverflowError) as error:
                raise CorpusError(f"{path} is damaged: a row without a vector ({error!r})") from error
            yield Batch(vectors.reshape(len(values), -1), _taken_from(values))


def _npy(path: Path, metadata: Metadata) -> Iterator[Batch]:
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    if vectors.ndim != 2:
        raise CorpusError(f"{path} is damaged: it holds an array of {vectors.ndim} axes, not of 2")
    with open(ids_path(path), encoding="utf-8") as lines:
        for start in range(0, len(vectors), _BATCH):
            block = np.asarray(vectors[start : start + _BATCH])
            texts = list(islice(lines, len(block)))
            if len(texts) < len(block):
                raise CorpusError(f"{ids_path(path)} is damaged: it has fewer lines than {path} has vectors")
            yield Batch(block, _parsed_from(texts))


def _taken_from(values: list[dict[str, Any]]) -> Rows:
    return lambda numbers: [values[number] for number in numbers]


def _parsed_from(texts: list[str]) -> Rows:
    return lambda numbers: [_object(texts[number]) for number in numbers]


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"a row is no object: {text[:40]!r}")
    return value


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """What the libraries raise for files that somebody has changed."""
    try:
        yield
    except CorpusError:
        raise
    except (pa.ArrowException, ValueError, RecursionError, EOFError, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system; pyarrow raises some without a number for damaged files
        what = "a readable Parquet file" if path.suffix.lower() == ".parquet" else "what `thalweg embed` wrote"
        raise CorpusError(f"{path} is not {what}: {error}") from error
