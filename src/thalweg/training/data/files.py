"""Rows to train on out of files of any format that has rows, read as they are asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeAlias

from thalweg.errors import CorpusError
from thalweg.inputs import formats
from thalweg.inputs.discover import discover
from thalweg.inputs.files import TEXT, InputFile
from thalweg.inputs.formats import TABLE_SUFFIXES
from thalweg.inputs.rows import Header
from thalweg.training.data.rows import Place

Needed: TypeAlias = Callable[[tuple[str, ...]], Sequence[str] | str]
"""Names of the columns of a table to those that are needed; a str says what is missing."""

_SHARD = re.compile(r"-\d{4,}-of-\d{4,}$")


def find_files(place: str) -> list[InputFile]:
    """The data files that a file, a folder (searched recursively) or a glob stands for, in a fixed order.

    Raises:
        CorpusError: there are none, or one that is named is in another format.
    """
    found = discover([place], suffixes=TABLE_SUFFIXES)
    if found.unreadable:
        raise CorpusError(f"{found.unreadable[0].path} cannot be read: {found.unreadable[0].error.strerror}")
    for file in found.files:
        if file.kind == TEXT:
            known = ", ".join(TABLE_SUFFIXES)
            raise CorpusError(f"{file.path!r} is not among the formats that are read ({known}); convert it")
    return found.files


def is_data_file(name: str) -> bool:
    """Whether a file name says a format that has rows."""
    return formats.kind_of(name) != TEXT


def group_files(files: Sequence[InputFile], root: Path | None = None) -> dict[str, list[InputFile]]:
    """Files by the name of the data set that they are: theirs below `root`, without suffix and number of a shard."""
    groups: dict[str, list[InputFile]] = {}
    for file in files:
        below = PurePath(os.path.basename(file.path) if root is None else os.path.relpath(file.path, root))
        stem = below.with_name(formats.split_suffix(below.name)[0])
        groups.setdefault(_SHARD.sub("", stem.as_posix()), []).append(file)
    return groups


def read_rows(file: InputFile, needed: Needed) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """The rows of a file with their places. Of a table with a header only the columns that are `needed` are read.

    Raises:
        CorpusError: what is no row, or makes the file unreadable.
    """

    def select(header: Header) -> Sequence[str]:
        columns = needed(header.names)
        if isinstance(columns, str):
            raise CorpusError(columns)
        return columns

    rows = formats.read_rows(file, select)
    while True:
        try:
            row = next(rows, None)
        except CorpusError as error:
            raise CorpusError(f"{file.path}: {error}") from error
        if row is None:
            return
        place = Place(file.path, "row", row.number + 1) if row.line is None else Place(file.path, "line", row.line)
        if isinstance(row.values, CorpusError):
            raise CorpusError(f"{place.file}, {place.unit} {place.number}: {row.values}") from row.values
        yield place, row.values
