"""The formats of input files: a row of the table each. Suffixes, what folders give, help and errors follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from thalweg.errors import CorpusError
from thalweg.inputs.delimited_rows import read_csv, read_tsv
from thalweg.inputs.files import TEXT, InputFile
from thalweg.inputs.json_rows import read_json, read_jsonl, read_lines
from thalweg.inputs.parquet_rows import read_parquet
from thalweg.inputs.rows import Notes, Reader, Row, Select
from thalweg.inputs.streams import FileMeter, Meter, damage_reported

LINES = "lines"
GZ = ".gz"


@dataclass(frozen=True)
class Format:
    """One format.

    name: as a user says it; suffixes: of files that are taken for it, in lower case, each also with `GZ` after it;
    rows: who reads its rows, None where a file is one text.
    """

    name: str
    suffixes: tuple[str, ...]
    rows: Reader | None


FORMATS = (
    Format(TEXT, (".txt", ".md"), None),
    Format(LINES, (), read_lines),
    Format("jsonl", (".jsonl", ".ndjson", ".jsonlines"), read_jsonl),
    Format("json", (".json",), read_json),
    Format("csv", (".csv",), read_csv),
    Format("tsv", (".tsv", ".tab"), read_tsv),
    Format("parquet", (".parquet",), read_parquet),
)
"""All of them. A file with any other suffix is a text."""

NAMES = tuple(each.name for each in FORMATS)
SUFFIXES = tuple(suffix for each in FORMATS for suffix in each.suffixes)
TABLE_SUFFIXES = tuple(suffix for each in FORMATS if each.rows for suffix in each.suffixes)
TEXT_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix not in TABLE_SUFFIXES)

_BY_NAME = {each.name: each for each in FORMATS}
_BY_SUFFIX = {suffix: each for each in FORMATS for suffix in each.suffixes}


def patterns(suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """What takes files of these suffixes out of folders, packed ones too."""
    return tuple(f"*{suffix}{gz}" for suffix in suffixes for gz in ("", GZ))


def split_suffix(name: str) -> tuple[str, str, bool]:
    """(stem, suffix in lower case, whether packed) of a file name: "A.b.JSONL.gz" → ("A.b", ".jsonl", True)."""
    packed = name.lower().endswith(GZ)
    path = PurePath(name[: -len(GZ)] if packed else name)
    return path.name.removesuffix(path.suffix), path.suffix.lower(), packed


def kind_of(name: str, default: str = TEXT) -> str:
    """The name of the format that a file name says, `default` if it says none of those with rows."""
    found = _BY_SUFFIX.get(split_suffix(name)[1])
    return default if found is None or found.rows is None else found.name


def read_rows(
    file: InputFile, select: Select, meter: FileMeter | None = None, on_note: Notes = lambda note: None
) -> Iterator[Row]:
    """The rows of a file, read as they are asked for. A row that cannot be used says why and costs no other.

    Raises:
        CorpusError, OSError: what makes the rest of the file unreadable.
    """
    reader = _BY_NAME[file.kind].rows
    if reader is None:
        raise CorpusError(f"{file.path!r} holds no rows; files that do end in {', '.join(TABLE_SUFFIXES)}")
    with damage_reported():
        yield from reader(file, select, FileMeter(Meter(), 0) if meter is None else meter, on_note)
