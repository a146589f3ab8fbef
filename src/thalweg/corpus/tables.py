"""Files with one document a row: JSONL, CSV, Parquet, and text files taken line by line."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from thalweg.corpus.inputs import InputFile, Kind
from thalweg.corpus.streams import FileMeter, check_text, damage_reported, opened
from thalweg.errors import CorpusError

TEXT_COLUMNS = ("text", "content", "body", "document", "passage", "sentence")
"""Where the text is looked for, in this order, unless a column is named."""

_PARQUET_BATCH = 64
_LARGEST_FIELD = 2**31 - 1  # Python's own limit of 128 KiB a CSV field would refuse long documents


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


class Record(NamedTuple):
    """One row: its number from 0, its text or why there is none, and its id where a column holds ids."""

    row: int
    text: str | CorpusError
    id: str | None = None


def read_table(file: InputFile, columns: Columns, meter: FileMeter) -> Iterator[Record]:
    """The rows of a file, read as they are asked for. A row without a readable text is a `Record` with an error.

    Raises:
        CorpusError, OSError: what makes the rest of the file unreadable.
    """
    with damage_reported():
        if file.kind == "parquet":
            yield from _read_parquet(file, columns, meter)
            return
        with opened(file, meter) as stream:
            yield from _READERS[file.kind](stream, columns)


def _read_lines(stream: BinaryIO, columns: Columns) -> Iterator[Record]:
    for row, line in enumerate(stream):
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            yield Record(row, _decoded(line, row))
        except CorpusError as error:
            yield Record(row, error)


def _read_jsonl(stream: BinaryIO, columns: Columns) -> Iterator[Record]:
    row = 0
    for number, line in enumerate(stream):
        if not line.strip():
            continue
        try:
            yield _json_record(row, _decoded(line, number), columns)
        except CorpusError as error:
            yield Record(row, CorpusError(f"line {number + 1}: {error}"))
        row += 1


def _json_record(row: int, line: str, columns: Columns) -> Record:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorpusError(f"a JSON object was expected, not {type(value).__name__}")
    text, id_ = columns.choose(list(value))
    return Record(row, _text(value[text], text), None if id_ is None else _id(value[id_]))


def _read_csv(stream: BinaryIO, columns: Columns) -> Iterator[Record]:
    return _read_delimited(stream, columns, ",")


def _read_tsv(stream: BinaryIO, columns: Columns) -> Iterator[Record]:
    return _read_delimited(stream, columns, "\t")


def _read_delimited(stream: BinaryIO, columns: Columns, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(_LARGEST_FIELD)
    # Bytes that are no UTF-8 pass as lone surrogates, so that they cost one row and not the rest of the file.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, delimiter=delimiter)
    header = next(rows, None)
    if header is None:
        return
    text_at, id_at = (None if name is None else header.index(name) for name in columns.choose(header))
    assert text_at is not None
    needed = max(text_at, id_at or 0)
    for row, values in enumerate(filter(None, rows)):
        if len(values) <= needed:
            yield Record(row, CorpusError(f"line {rows.line_num}: {len(values)} of {len(header)} columns"))
            continue
        try:
            yield Record(row, check_text(values[text_at]), None if id_at is None else _id(values[id_at]))
        except CorpusError as error:
            yield Record(row, CorpusError(f"line {rows.line_num}: {error}"))


def _read_parquet(file: InputFile, columns: Columns, meter: FileMeter) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source: Any = file.path
    try:
        with tempfile.TemporaryFile() as unpacked:
            if file.gz:  # Parquet is read from its end, which gzip cannot do
                with opened(file, meter) as stream:
                    shutil.copyfileobj(stream, unpacked)
                source = unpacked
            with pq.ParquetFile(source) as table:
                yield from _parquet_rows(table, columns, meter, file.size)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise CorpusError(f"not a readable Parquet file: {error}") from error


def _parquet_rows(table: Any, columns: Columns, meter: FileMeter, size: int) -> Iterator[Record]:
    schema = table.schema_arrow
    text, id_ = columns.choose(schema.names)
    if not _holds_text(schema.field(text).type):
        raise CorpusError(f"column {text!r} holds {schema.field(text).type}, not text")
    row, n_rows = 0, table.metadata.num_rows
    for batch in table.iter_batches(_PARQUET_BATCH, columns=[text] if id_ is None else [text, id_]):
        meter.add(size * batch.num_rows // n_rows)
        ids = [None] * batch.num_rows if id_ is None else map(_id, batch.column(id_).to_pylist())
        for value, name in zip(batch.column(text).to_pylist(), ids, strict=True):
            yield Record(row, value or "", name)
            row += 1


def _holds_text(type_: Any) -> bool:
    import pyarrow as pa

    value = type_.value_type if pa.types.is_dictionary(type_) else type_
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value))


def _decoded(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 0 else "utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise CorpusError(f"not UTF-8: byte 0x{byte:02x} at offset {error.start} of the line") from error


def _text(value: Any, column: str) -> str:
    """A missing text (null) is an empty one: the row keeps its vector, so that rows and vectors stay aligned."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(f"column {column!r} holds {type(value).__name__}, not text")
    return check_text(value)


def _id(value: Any) -> str | None:
    return None if value is None else check_text(str(value))


_READERS: dict[Kind, Callable[[BinaryIO, Columns], Iterator[Record]]] = {
    "lines": _read_lines,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
}
