"""Rows of Parquet, of which only the columns that are needed are read."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from thalweg.errors import CorpusError
from thalweg.inputs.files import STDIN, InputFile
from thalweg.inputs.rows import NULL_TYPE, TEXT_TYPE, Header, Notes, Row, Select, check_once
from thalweg.inputs.streams import FileMeter, opened

_BATCH_ROWS, _BATCH_BYTES = 256, 64 << 20
"""Read at a time, as far as the sizes that the file states tell."""


def read_parquet(file: InputFile, select: Select, meter: FileMeter, on_note: Notes) -> Iterator[Row]:
    """A row each row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as copy:
        try:
            if file.gz or file.path == STDIN:  # Parquet is read from its end
                with opened(file, meter) as stream:
                    _copy(stream, copy)
                yield from _rows(pq, copy, select, meter, 0)
            else:
                with open(file.path, "rb") as source:  # by Python, as pyarrow takes no name that is not UTF-8
                    yield from _rows(pq, source, select, meter, file.size)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the system; pyarrow raises some without a number for damaged files
            raise CorpusError(f"not a readable Parquet file: {error}") from error


def _copy(stream: BinaryIO, copy: IO[bytes]) -> None:
    try:
        shutil.copyfileobj(stream, copy)
        copy.seek(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise CorpusError(
            f"there is no room in {tempfile.gettempdir()} to unpack it; unpack it yourself, or set TMPDIR"
        ) from error


def _rows(pq: Any, source: BinaryIO, select: Select, meter: FileMeter, size: int) -> Iterator[Row]:
    with pq.ParquetFile(source) as table:
        schema = table.schema_arrow
        names = [str(name) for name in schema.names]
        columns = list(select(Header(tuple(names), tuple(_type(field.type) for field in schema))))
        for name in columns:
            check_once(names, name)
        number, n_rows = 0, table.metadata.num_rows
        for batch in table.iter_batches(_batch_rows(table.metadata), columns=columns):
            meter.add(size * batch.num_rows // max(n_rows, 1))
            values = [_values(batch.column(name)) for name in columns]
            for row in zip(*values, strict=True):
                damaged = next((at for at, value in enumerate(row) if isinstance(value, _Damaged)), None)
                if damaged is None:
                    yield Row(number, None, dict(zip(columns, row, strict=True)))
                else:
                    yield Row(number, None, CorpusError(f"column {columns[damaged]!r}: {row[damaged].reason}"))
                number += 1


def _batch_rows(metadata: Any) -> int:
    """As many rows as are small enough together."""
    sizes = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    largest = max((group.total_byte_size / max(group.num_rows, 1) for group in sizes), default=0)
    return int(max(1, min(_BATCH_ROWS, _BATCH_BYTES / max(largest, 1))))


def _type(type_: Any) -> str:
    import pyarrow as pa

    value = type_.value_type if pa.types.is_dictionary(type_) else type_
    if pa.types.is_null(value):
        return NULL_TYPE
    is_view = getattr(pa.types, "is_string_view", lambda _: False)
    return TEXT_TYPE if pa.types.is_string(value) or pa.types.is_large_string(value) or is_view(value) else str(type_)


class _Damaged:
    """A value that is none."""

    def __init__(self, error: Exception) -> None:
        if isinstance(error, UnicodeDecodeError):
            byte = error.object[error.start]
            self.reason = f"not UTF-8: byte 0x{byte:02x} at offset {error.start} of the text"
        else:
            self.reason = f"a value that cannot be read: {error}"


def _values(column: Any) -> list[Any]:
    """All values of a column; where one cannot be read, it alone is lost."""
    try:
        return list(column.to_pylist())
    except Exception:  # UnicodeDecodeError, and what pyarrow raises for values that Python has not
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except Exception as error:
        return _Damaged(error)
