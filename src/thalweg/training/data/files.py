"""Rows of JSONL and Parquet files, read as they are asked for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, TypeAlias

from thalweg.corpus.inputs import InputFile, discover
from thalweg.corpus.streams import FileMeter, Meter, damage_reported, opened
from thalweg.errors import CorpusError
from thalweg.training.data.rows import Place

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""Of the files that are read; `.json` holds JSON lines, as it does on the hub."""

Needed: TypeAlias = Callable[[tuple[str, ...]], Sequence[str] | str]
"""Names of the columns of a table to those that are needed; a str says what is missing."""

_BATCH = 256
_SHARD = re.compile(r"-\d{4,}-of-\d{4,}$")


def find_files(place: str) -> list[InputFile]:
    """The data files that a file, a folder (searched recursively) or a glob stands for, in a fixed order.

    Raises:
        CorpusError: there are none, or one that is named is in another format.
    """
    files, unreadable = discover([place], patterns=[f"*{suffix}" for suffix in SUFFIXES])
    if unreadable:
        raise CorpusError(f"{unreadable[0].path} cannot be read: {unreadable[0].error.strerror}")
    return [_as_rows(file) for file in files]


def group_files(files: Sequence[InputFile], root: Path | None = None) -> dict[str, list[InputFile]]:
    """Files by the name of the data set that they are: theirs below `root`, without suffix and number of a shard."""
    groups: dict[str, list[InputFile]] = {}
    for file in files:
        below = os.path.basename(file.path) if root is None else os.path.relpath(file.path, root)
        groups.setdefault(_stem(PurePath(below).as_posix()), []).append(file)
    return groups


def read_rows(file: InputFile, needed: Needed) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The rows of a file with their places. Of Parquet only the columns that are `needed` are read.

    Raises:
        CorpusError: what is no row, or makes the file unreadable.
    """
    with damage_reported():
        yield from _read_parquet(file, needed) if file.kind == "parquet" else _read_jsonl(file)


def _as_rows(file: InputFile) -> InputFile:
    if file.path.lower().removesuffix(".gz").endswith(".json"):
        return replace(file, kind="jsonl")
    if file.kind == "jsonl" or (file.kind == "parquet" and not file.gz):
        return file
    raise CorpusError(f"{file.path!r} is not among the formats that are read ({', '.join(SUFFIXES)}); convert it")


def _stem(path: str) -> str:
    suffix = max((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), key=len, default="")
    return _SHARD.sub("", path[: len(path) - len(suffix)])


def _read_jsonl(file: InputFile) -> Iterator[tuple[Place, dict[str, Any]]]:
    with opened(file, FileMeter(Meter(), file.size)) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            place = Place(file.path, "line", number)
            yield place, _parsed(line, place)


def _parsed(line: bytes, place: Place) -> dict[str, Any]:
    shown = f"{line[:60]!r}"
    try:
        value = json.loads(line.decode("utf-8-sig" if place.number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at offset {error.start} of the line"
        raise CorpusError(f"{place.file}, line {place.number}: not UTF-8: {byte}; convert the file") from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            f"{place.file}, line {place.number}: {shown} is not JSON ({error}); write one JSON object a line"
        ) from error
    if not isinstance(value, dict):
        raise CorpusError(f'{place.file}, line {place.number}: {shown} is not an object; write {{"query": …}} a line')
    return value


def _read_parquet(file: InputFile, needed: Needed) -> Iterator[tuple[Place, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file.path) as table:
            columns = needed(tuple(table.schema_arrow.names))
            if isinstance(columns, str):
                raise CorpusError(f"{file.path}: {columns}")
            for batch in table.iter_batches(_BATCH, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield Place(file.path, "row", number), row
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise CorpusError(f"{file.path} is not a readable Parquet file: {error}") from error
