"""Rows of CSV and TSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from thalweg.errors import CorpusError, InvalidInputError
from thalweg.inputs.files import InputFile
from thalweg.inputs.rows import TEXT_TYPE, Header, Notes, Row, Select, check_once
from thalweg.inputs.streams import MAX_ROW, FileMeter, opened_text, too_long

DELIMITERS = ",;\t|"
"""Delimiters of CSV, looked for in this order."""

_NAMED = {"tab": "\t", "\\t": "\t"}
_STATED = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)
"""A first line by which spreadsheets say what separates the columns."""


def check_delimiter(name: str) -> str:
    """The character that separates columns.

    Raises:
        InvalidInputError: not one character, or one that cannot separate columns.
    """
    character = _NAMED.get(name.lower(), name)
    if len(character) != 1 or character in '"\r\n\0 ':
        raise InvalidInputError(f"a delimiter is one character, such as ; or tab, not {name!r}")
    return character


def read_csv(file: InputFile, select: Select, meter: FileMeter, on_note: Notes) -> Iterator[Row]:
    """A row each record; a quoted field may hold line breaks."""
    return _read(file, select, meter, on_note, quoting=True)


def read_tsv(file: InputFile, select: Select, meter: FileMeter, on_note: Notes) -> Iterator[Row]:
    """A row each line; quotes are characters like any other, as in the format's registration with IANA."""
    return _read(file, select, meter, on_note, quoting=False)


class _TooLong(Exception):
    """A record has no end."""


class _Lines(Iterator[str]):
    """Lines, and those of the record that is being read, which must not grow without bound."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        self._next: str | None = None
        self._left = MAX_ROW
        self.record: list[str] = []
        self.number = 0

    def begin(self) -> None:
        """What comes is a new record."""
        self.record = []
        self._left = MAX_ROW

    def peek(self) -> str:
        """The next line, "" at the end."""
        if self._next is None:
            self._next = self._stream.readline(self._left + 1)
        return self._next

    def __next__(self) -> str:
        line = self.peek()
        self._next = None
        self._left -= len(line)
        if not line:
            raise StopIteration
        self.number += 1
        if self._left < 0:
            raise _TooLong
        self.record.append(line)
        return line


def _read(file: InputFile, select: Select, meter: FileMeter, on_note: Notes, *, quoting: bool) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # Python's own limit of 128 KiB a field would refuse long documents
    with (
        opened_text(file, meter, guess=True, on_note=on_note) as stream,
        # Bytes that are no UTF-8 pass as lone surrogates, so that they cost one row and not the rest of the file.
        io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        lines = _Lines(text)
        while lines.peek() and not lines.peek().strip("\r\n"):
            next(lines)
        if not quoting:
            delimiter = file.delimiter or "\t"
        elif stated := _STATED.fullmatch(lines.peek()):
            delimiter = file.delimiter or stated[1]
            next(lines)
        else:
            delimiter = file.delimiter or _recognised(lines.peek(), select)
        if lines.peek():
            if quoting and delimiter != "," and file.delimiter is None:
                on_note(f"columns are separated by {delimiter!r} (--delimiter says otherwise)")
            yield from _rows(lines, delimiter, select, quoting)


def _recognised(first: str, select: Select) -> str:
    """The delimiter by which the header has the columns that are needed, and most columns; the first if none has."""
    found: dict[str, int] = {}
    for delimiter in DELIMITERS:
        with suppress(CorpusError, csv.Error, StopIteration):
            names = next(csv.reader([first], delimiter=delimiter))
            select(_header(names))
            found[delimiter] = len(names)
    return max(found, key=lambda delimiter: found[delimiter], default=DELIMITERS[0])


def _header(names: Sequence[str]) -> Header:
    return Header(tuple(names), (TEXT_TYPE,) * len(names))


def _rows(lines: _Lines, delimiter: str, select: Select, quoting: bool) -> Iterator[Row]:
    """The records after a header.

    Raises:
        CorpusError: a header without the columns that are needed, or a record without end.
    """
    rules: dict[str, Any] = {"delimiter": delimiter, "quoting": csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE}
    reader = csv.reader(lines, **rules)
    header: list[str] | None = None
    columns: dict[str, int] = {}
    number = 0
    while True:
        lines.begin()
        try:
            values = next(reader, None)
        except _TooLong as error:
            first = lines.number - len(lines.record)
            reason = "; perhaps a quote that opens there is never closed" if quoting else ""
            raise CorpusError(f"line {first}: {too_long()}{reason}") from error
        if values is None:
            return
        if not values:
            continue
        first = lines.number - len(lines.record) + 1
        problem = _quotes(lines, values, rules) if quoting and any('"' in line for line in lines.record) else None
        if header is None:
            if problem is not None:
                raise CorpusError(f"line {first}: {problem}")
            header = values
            for name in select(_header(header)):
                check_once(header, name)
                columns[name] = header.index(name)
            continue
        problem = problem or _fields(values, header, columns, quoting)
        yield Row(number, first, problem or {name: values[at] for name, at in columns.items()})
        number += 1


def _fields(
    values: Sequence[str], header: Sequence[str], columns: Mapping[str, int], quoting: bool
) -> CorpusError | None:
    """What is wrong with the number of fields: a needed column is missing, or text stands in one without name."""
    if len(values) <= max(columns.values(), default=0):
        return CorpusError(f"{len(values)} of {len(header)} columns")
    if any(values[len(header) :]):
        cure = "; quote a text that holds the delimiter" if quoting else ""
        return CorpusError(f"{len(values)} columns, but the header names {len(header)}{cure}")
    return None


def _quotes(lines: _Lines, values: Sequence[str], rules: Mapping[str, Any]) -> CorpusError | None:
    """What is wrong with the quotes of a record, which csv mends in silence unless it is strict.

    Records are told apart by the reader that mends, so that a wrong quote does not spoil what comes after it.
    """
    try:
        next(csv.reader(lines.record, strict=True, **rules))
    except csv.Error as error:
        if "end of data" not in str(error):
            return CorpusError(f"not CSV: {error}; double a quote inside of a quoted text")
        n = max(1, len(list(io.StringIO(values[-1], newline=""))))
        return CorpusError(
            f"the quote that opens in line {lines.number - n + 1} is never closed, so the rest of the file is one row"
        )
    return None
