"""Reading an output that `embed` wrote, in any of its formats, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from thalweg.corpus.rows import COLUMNS, METADATA_KEY, Metadata, vector_dtype, vectors_of
from thalweg.corpus.writers import check_output, ids_path, metadata_path
from thalweg.errors import CorpusError

_BATCH = 1024

Stored: TypeAlias = npt.NDArray[Any]
"""(n, width) vectors as the precision stores them."""


class Results(Protocol):
    """The rows of an output, numbered from 0."""

    def vectors(self) -> Iterator[Stored]:
        """All vectors in order, some at a time."""

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Everything but the vectors of the named rows, in that order."""


def read_metadata(path: Path) -> Metadata:
    """What the output says about itself.

    Raises:
        CorpusError: not an output of thalweg.
    """
    check_output(path)
    if not path.is_file():
        raise CorpusError(f"there is no file {str(path)!r}; make it with: thalweg embed INPUT -o {path}")
    if path.suffix == ".parquet":
        text = (_schema(path).metadata or {}).get(METADATA_KEY)
    else:
        beside = metadata_path(path)
        text = beside.read_bytes() if beside.is_file() else None
    if text is None:
        raise CorpusError(f"{path} was not written by `thalweg embed`: nothing says which model its vectors are from")
    return Metadata.loads(text, str(path))


def open_results(path: Path, metadata: Metadata) -> Results:
    """The rows of an output whose metadata has been read."""
    readers: dict[str, Callable[[Path, Metadata], Results]] = {".parquet": _Parquet, ".jsonl": _JsonLines, ".npy": _Npy}
    return readers[path.suffix](path, metadata)


class _Parquet:
    def __init__(self, path: Path, metadata: Metadata) -> None:
        self._path = path

    def vectors(self) -> Iterator[Stored]:
        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(_BATCH, columns=["vector"]):
                yield vectors_of(batch.column(0))

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        with pq.ParquetFile(self._path) as file:
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            found = []
            for number in numbers:
                group = int(np.searchsorted(starts, number, side="right")) - 1
                table = file.read_row_group(group, columns=columns)
                found += table.slice(number - int(starts[group]), 1).to_pylist()
        return found


class _JsonLines:
    def __init__(self, path: Path, metadata: Metadata) -> None:
        self._path = path
        self._dtype = vector_dtype(metadata.precision)

    def vectors(self) -> Iterator[Stored]:
        with open(self._path, encoding="utf-8") as lines:
            while batch := [json.loads(line)["vector"] for line in islice(lines, _BATCH)]:
                yield np.array(batch, self._dtype)

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        return _json_rows(self._path, numbers)


class _Npy:
    def __init__(self, path: Path, metadata: Metadata) -> None:
        self._path = path

    def vectors(self) -> Iterator[Stored]:
        vectors = np.load(self._path, mmap_mode="r")
        for start in range(0, len(vectors), _BATCH):
            yield np.asarray(vectors[start : start + _BATCH])

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        return _json_rows(ids_path(self._path), numbers)


def _json_rows(path: Path, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The lines of those numbers, without vectors."""
    found = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if number in numbers:
                found[number] = {name: value for name, value in json.loads(line).items() if name != "vector"}
    return [found[number] for number in numbers]


def _schema(path: Path) -> Any:
    try:
        return pq.read_schema(path)
    except pa.ArrowException as error:
        raise CorpusError(f"{path} is not a readable Parquet file: {error}") from error
