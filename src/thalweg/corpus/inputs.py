"""Which files a run reads: the arguments of the command line to a list of files in a fixed order."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Literal, TypeAlias

from thalweg.errors import CorpusError

Kind: TypeAlias = Literal["text", "lines", "jsonl", "csv", "tsv", "parquet"]

TABLES: dict[str, Kind] = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
"""Files with one document a row. Every other file is text."""

DEFAULT_PATTERNS = tuple(f"*{suffix}{gz}" for suffix in (".txt", ".md", *TABLES) for gz in ("", ".gz"))
"""What is taken out of folders; a file that is named itself is always read."""

STDIN = "-"


@dataclass(frozen=True)
class InputFile:
    """One file to read.

    path: as it can be opened, "-" for stdin; id: what its documents are called; size, modified_ns: as they were when
    the run began (0 for what has none).
    """

    path: str
    id: str
    kind: Kind
    gz: bool
    size: int = 0
    modified_ns: int = 0

    @property
    def is_table(self) -> bool:
        return self.kind != "text"


@dataclass(frozen=True)
class Unreadable:
    """A folder that could not be listed."""

    path: str
    error: OSError


def discover(
    inputs: Sequence[str],
    *,
    patterns: Sequence[str] = (),
    lines: bool = False,
    exclude: Iterable[Path] = (),
) -> tuple[list[InputFile], list[Unreadable]]:
    """All files that the arguments stand for, each once, in the order of the arguments and sorted within one.

    Args:
        inputs: files, folders (searched recursively, without hidden entries and links to folders), globs, or "-".
        patterns: what to take out of folders instead of `DEFAULT_PATTERNS`; one with a slash is held against the path
            below the folder, others against the name.
        lines: every line of a text file (or of stdin) is a document.
        exclude: files and folders that are never input, such as the output.

    Raises:
        CorpusError: an argument that stands for nothing, or no files at all.
    """
    unreadable: list[Unreadable] = []
    excluded = {path.resolve() for path in exclude}
    single_root = len(inputs) == 1
    files: dict[Path, InputFile] = {}
    for argument in inputs:
        for path, id_ in _expand(argument, patterns or DEFAULT_PATTERNS, single_root, unreadable):
            key = Path(path) if path == STDIN else Path(path).resolve()
            if key not in files and excluded.isdisjoint([key, *key.parents]):
                files[key] = _describe(path, printable(id_), lines)
    if not files and not unreadable:
        taken = ", ".join(patterns) if patterns else "*.txt, *.md, *.jsonl, *.csv, *.tsv, *.parquet, each also with .gz"
        raise CorpusError(f"no files in {', '.join(inputs)}; folders give {taken} (--glob PATTERN takes others)")
    return list(files.values()), unreadable


def printable(path: str) -> str:
    r"""A file name as text that can be stored and shown: bytes that are no UTF-8 become `\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _expand(
    argument: str, patterns: Sequence[str], single_root: bool, unreadable: list[Unreadable]
) -> Iterator[tuple[str, str]]:
    """(path, id) of what one argument stands for. A name that exists is never taken as a pattern."""
    if argument == STDIN:
        yield STDIN, STDIN
        return
    if os.path.exists(argument):
        matches = [argument]
    else:
        matches = sorted(glob.glob(argument, recursive=True))
        if not matches:
            what = "matches nothing" if glob.has_magic(argument) else "does not exist"
            raise CorpusError(f"input {argument!r} {what}")
        single_root = False
    for match in matches:
        if not os.path.isdir(match):
            yield match, PurePath(match).as_posix()
            continue
        for below in _walk(match, patterns, unreadable):
            path = os.path.join(match, below)
            yield path, PurePath(below if single_root else path).as_posix()


def _walk(root: str, patterns: Sequence[str], unreadable: list[Unreadable]) -> list[str]:
    """Paths below a folder, sorted."""
    found = []
    errors: list[OSError] = []
    for folder, names, files in os.walk(root, onerror=errors.append):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            path = os.path.join(folder, name)
            below = os.path.relpath(path, root)
            if name.startswith(".") or not _matches(below, patterns):
                continue
            # A dangling link is kept, to be reported; a pipe or socket would block for ever.
            if os.path.isfile(path) or not os.path.exists(path):
                found.append(below)
    unreadable += [Unreadable(printable(str(error.filename or root)), error) for error in errors]
    return sorted(found, key=lambda below: PurePath(below).parts)


def _matches(below: str, patterns: Sequence[str]) -> bool:
    path = PurePath(below)
    return any(fnmatch(path.as_posix() if "/" in pattern else path.name, pattern) for pattern in patterns)


def _describe(path: str, id_: str, lines: bool) -> InputFile:
    text: Kind = "lines" if lines else "text"
    if path == STDIN:
        return InputFile(path, id_, text, gz=False)
    name = path.lower()
    gz = name.endswith(".gz")
    kind = TABLES.get(PurePath(name.removesuffix(".gz")).suffix, text)
    size, modified_ns = 0, 0
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            size, modified_ns = status.st_size, status.st_mtime_ns
    except OSError:
        pass  # it is gone already, or may not be read: opening it will tell
    return InputFile(path, id_, kind, gz, size, modified_ns)
