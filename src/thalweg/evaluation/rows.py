"""Rows of JSON lines, checked; every error is a CorpusError that names the file."""

from __future__ import annotations

import gzip
import hashlib
import json
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
    """All rows of a file, at least one."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise CorpusError(f"{path} is not JSON lines: {error}") from error
    if not rows:
        raise CorpusError(f"{path} is empty")
    return rows


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
        return float(row[key])
    except (KeyError, TypeError, ValueError) as error:
        raise CorpusError(f"{path}: {key!r} must be a number, but a row has {row.get(key)!r:.80}") from error
