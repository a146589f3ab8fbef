"""What a row is, whatever the format, and how the columns that are needed are told to the readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from thalweg.errors import CorpusError
from thalweg.inputs.files import InputFile
from thalweg.inputs.streams import FileMeter


class Row(NamedTuple):
    """One row of a file.

    number: from 0, counting rows that cannot be used; line: where it begins in the file, from 1, None for a format
    without lines; values: by column, or why there are none.
    """

    number: int
    line: int | None
    values: Mapping[str, Any] | CorpusError


TEXT_TYPE, NULL_TYPE = "text", "null"


class Header(NamedTuple):
    """The columns of a table that names them once: their names, and what they hold: `TEXT_TYPE`, `NULL_TYPE` where all
    is missing, or the name of a type."""

    names: tuple[str, ...]
    types: tuple[str, ...]


Select: TypeAlias = Callable[[Header], Sequence[str]]
"""Chooses the columns that are needed of a table that names them once, or raises a `CorpusError`. Rows of JSON name
their columns themselves and come with all of them."""

Notes: TypeAlias = Callable[[str], object]
"""Told what a reader had to find out by itself."""

Reader: TypeAlias = Callable[[InputFile, Select, FileMeter, Notes], Iterator[Row]]
"""Gives the rows of a file as they are asked for. Raises a `CorpusError` or an `OSError` for what makes the rest of the
file unreadable."""


class Repeated(dict[str, Any]):
    """A JSON object some of whose keys come more than once."""

    repeated: frozenset[str] = frozenset()


def check_once(names: Sequence[str], column: str) -> None:
    """Raises:
    CorpusError: more than one column has the name, so it does not say which is meant.
    """
    if (n := names.count(column)) > 1:
        raise CorpusError(f"{n} columns are called {column!r}; rename all but one")


def check_values_once(values: Mapping[str, Any], column: str) -> None:
    """Raises:
    CorpusError: a row of JSON has the key more than once.
    """
    if isinstance(values, Repeated) and column in values.repeated:
        raise CorpusError(f"the key {column!r} comes more than once")
