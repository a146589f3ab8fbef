"""Rows of JSON lines, checked; every error is a CorpusError that names the file."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from pathlib import Path
from typing import Any

from thalweg.errors import CorpusError

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".jsonl.gz")


def row_files(folder: Path) -> list[Path]:
    """Those of a folder, sorted."""
    return sorted(path for path in folder.glob("*") if path.name.endswith(SUFFIXES))


def row_file(folder: Path, name: str) -> Path:
    """`name` in a folder, plain or gzipped."""
    for suffix in SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise CorpusError(f"{folder} has neither {' nor '.join(name + suffix for suffix in SUFFIXES)}")


def stem(path: Path) -> str:
    """A file's name without what says how it is stored."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def digest(*paths: Path) -> str:
    """16 hexadecimal digits of the contents."""
    whole = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            raise CorpusError(f"{path} is missing")
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:16]


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, at least one, each an object."""
    rows: list[Row] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    rows.append(_row(line, f"{path}, line {number}"))
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorpusError(f"{path} is not JSON lines: {error}") from error
    if not rows:
        raise CorpusError(f"{path} is empty")
    return rows


def _row(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{place} is not JSON lines: {error}") from error
    if not isinstance(row, dict):
        raise CorpusError(f'{place} is not JSON lines: a row is an object such as {{"text": "…"}}, not {row!r:.60}')
    return row


def text_of(row: Row, key: str, path: Path) -> str:
    """A field that has to be a text."""
    value = row.get(key)
    if not isinstance(value, str):
        raise CorpusError(f"{path}: {key!r} must be a text, but a row has {value!r:.80}")
    return value


def id_of(row: Row, path: Path) -> str:
    """The id of a document or query."""
    return text_of(row, "id", path)


def number_of(row: Row, key: str, path: Path) -> float:
    """A field that has to be a number, or a text that is one."""
    try:
        number = float(row[key])
    except (KeyError, TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise CorpusError(f"{path}: {key!r} must be a number, but a row has {row.get(key)!r:.80}")
    return number
