"""Rows of input files to the texts that are embedded: which column holds them, and which the ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from thalweg.errors import CorpusError
from thalweg.inputs.files import InputFile
from thalweg.inputs.formats import LINES, read_rows
from thalweg.inputs.json_rows import LINE
from thalweg.inputs.rows import NULL_TYPE, TEXT_TYPE, Header, Notes, Row, check_values_once
from thalweg.inputs.streams import FileMeter, check_text

TEXT_COLUMNS = ("text", "content", "body", "document", "passage", "sentence")
"""Where the text is looked for, in this order, unless a column is named."""


class Columns(NamedTuple):
    """The columns asked for; None: the first of `TEXT_COLUMNS`, and ids made of path and row."""

    text: str | None = None
    id: str | None = None

    def choose(self, available: Sequence[str]) -> tuple[str, str | None]:
        """(text column, id column) of a table.

        Raises:
            CorpusError: a column that the table does not have, listing those it has.
        """
        has = f"it has: {', '.join(available) or 'none'}"
        text = self.text or next((name for name in TEXT_COLUMNS if name in available), None)
        if text is None:
            raise CorpusError(f"no text column (looked for {', '.join(TEXT_COLUMNS)}); {has}; name one: --text-column")
        for column in (text, self.id):
            if column is not None and column not in available:
                raise CorpusError(f"no column {column!r}; {has}")
        return text, self.id

    def select(self, header: Header) -> list[str]:
        """The columns to read of a table that names them once.

        Raises:
            CorpusError: as `choose`; or the one for texts holds something else.
        """
        text, id_ = self.choose(header.names)
        holds = header.types[header.names.index(text)]
        if holds not in (TEXT_TYPE, NULL_TYPE):
            raise CorpusError(f"column {text!r} holds {holds}, not text")
        return [text] if id_ in (None, text) else [text, str(id_)]


class Record(NamedTuple):
    """One row: its number from 0, its text or why there is none, and its id where a column holds ids."""

    row: int
    text: str | CorpusError
    id: str | None = None


def read_records(file: InputFile, columns: Columns, meter: FileMeter, on_note: Notes) -> Iterator[Record]:
    """The rows of a file, read as they are asked for. A row without a readable text is a `Record` with an error.

    Raises:
        CorpusError, OSError: what makes the rest of the file unreadable.
    """
    asked = Columns(LINE) if file.kind == LINES else columns
    for row in read_rows(file, columns.select, meter, on_note):
        record = _usable(row, asked)
        if isinstance(record, CorpusError):
            place = "" if row.line is None or file.kind == LINES else f"line {row.line}: "
            record = Record(row.number, CorpusError(f"{place}{record}"))
        yield record


def _usable(row: Row, columns: Columns) -> Record | CorpusError:
    if isinstance(row.values, CorpusError):
        return row.values
    try:
        return _record(row.number, row.values, columns)
    except CorpusError as error:
        return error


def _record(row: int, values: Mapping[str, Any], columns: Columns) -> Record:
    text, id_ = columns.choose(list(values))
    for column in (text, id_):
        if column is not None:
            check_values_once(values, column)
    return Record(row, _text(values[text], text), None if id_ is None else _id(values[id_]))


def _text(value: Any, column: str) -> str:
    """A missing text (null) is an empty one: the row keeps its vector, so that rows and vectors stay aligned."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(f"column {column!r} holds {type(value).__name__}, not text")
    return check_text(value)


def _id(value: Any) -> str | None:
    return None if value is None else check_text(str(value))
