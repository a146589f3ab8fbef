"""Rows of data files, checked; every error is a CorpusError that names the file."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from thalweg.errors import CorpusError
from thalweg.inputs import formats
from thalweg.inputs.files import TEXT, InputFile
from thalweg.inputs.formats import GZ, TABLE_SUFFIXES
from thalweg.inputs.streams import check_text

Row: TypeAlias = Mapping[str, Any]


def row_files(folder: Path) -> list[Path]:
    """Those of a folder, sorted."""
    return sorted(path for path in folder.glob("*") if formats.kind_of(path.name) != TEXT)


def row_file(folder: Path, name: str) -> Path:
    """`name` in a folder, in any format that has rows.

    Raises:
        CorpusError: there is none.
    """
    found = find_row_file(folder, name)
    if found is None:
        raise CorpusError(f"{folder} has no {name}{TABLE_SUFFIXES[0]}, nor one of {', '.join(TABLE_SUFFIXES[1:])}")
    return found


def find_row_file(folder: Path, name: str) -> Path | None:
    """`name` in a folder, in any format that has rows, None if there is none."""
    paths = (folder / f"{name}{suffix}{gz}" for suffix in TABLE_SUFFIXES for gz in ("", GZ))
    return next((path for path in paths if path.is_file()), None)


def stem(path: Path) -> str:
    """A file's name without what says how it is stored."""
    return formats.split_suffix(path.name)[0]


def digest(*paths: Path) -> str:
    """16 hexadecimal digits of the contents."""
    whole = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            raise CorpusError(f"{path} is missing")
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:16]


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, at least one.

    Raises:
        CorpusError: a row that cannot be read, or none.
    """
    _, _, packed = formats.split_suffix(path.name)
    file = InputFile(str(path), path.name, formats.kind_of(path.name, "jsonl"), packed)
    rows = []
    try:
        for row in formats.read_rows(file, lambda header: header.names):
            if isinstance(row.values, CorpusError):
                place = f"row {row.number + 1}" if row.line is None else f"line {row.line}"
                raise CorpusError(f"{place}: {row.values}")
            rows.append(row.values)
    except CorpusError as error:
        raise CorpusError(f"{path}: {error}") from error
    if not rows:
        raise CorpusError(f"{path} is empty")
    return rows


def text_of(row: Row, key: str, path: Path) -> str:
    """A field that has to be a text."""
    value = row.get(key)
    if not isinstance(value, str):
        raise CorpusError(f"{path}: {key!r} must be a text, but a row has {value!r:.80}")
    try:
        return check_text(value)
    except CorpusError as error:
        raise CorpusError(f"{path}: {key!r}: {error}") from error


def id_of(row: Row, key: str, path: Path) -> str:
    """A field that has to be an id: a text, or a number, which is the same as the text of its digits."""
    value = row.get(key)
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else text_of(row, key, path)


def unique_ids(rows: Sequence[Row], path: Path) -> None:
    """Raises:
    CorpusError: an id comes more than once, so that one of its texts would be lost.
    """
    repeated = [id_ for id_, n in Counter(row["id"] for row in rows).items() if n > 1]
    if repeated:
        raise CorpusError(f"{path}: {len(repeated):,} ids come more than once, such as {repeated[0]!r}")


def number_of(row: Row, key: str, path: Path) -> float:
    """A field that has to be a number, or a text that is one."""
    try:
        number = float(row[key])
    except (KeyError, TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise CorpusError(f"{path}: {key!r} must be a number, but a row has {row.get(key)!r:.80}")
    return number
