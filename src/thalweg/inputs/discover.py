"""Which files a run reads: the arguments of the command line to a list of files in a fixed order."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath

from thalweg.errors import CorpusError
from thalweg.inputs.files import STDIN, TEXT, InputFile, printable
from thalweg.inputs.formats import LINES, SUFFIXES, kind_of, split_suffix


@dataclass(frozen=True)
class Unreadable:
    """A folder that could not be listed."""

    path: str
    error: OSError


def discover(
    inputs: Sequence[str],
    *,
    globs: Sequence[str] = (),
    suffixes: tuple[str, ...] = SUFFIXES,
    lines: bool = False,
    exclude: Iterable[Path] = (),
) -> tuple[list[InputFile], list[Unreadable]]:
    """All files that the arguments stand for, each once, in the order of the arguments and sorted within one.

    Args:
        inputs: files, folders (searched recursively, without hidden entries and links to folders), globs, or "-".
        globs: what to take out of folders; one with a slash is held against the path below the folder, others against
            the name.
        suffixes: of what is taken out of folders if there are no `globs`, in whatever case they are written.
        lines: every line of a text file (or of stdin) is a document.
        exclude: files and folders that are never input, such as the output.

    Raises:
        CorpusError: an argument that stands for nothing, or no files at all.
    """
    unreadable: list[Unreadable] = []
    excluded = {os.path.realpath(path) for path in exclude}
    single_root = len(inputs) == 1
    wanted = _Wanted(globs, suffixes)
    files: dict[str, InputFile] = {}
    for argument in inputs:
        for path, id_, asked in _expand(argument, wanted, single_root, unreadable):
            key = path if path == STDIN else os.path.realpath(path)
            if key not in files and excluded.isdisjoint([key, *map(str, PurePath(key).parents)]):
                files[key] = _describe(path, printable(id_), LINES if lines else TEXT, asked)
    if not files and not unreadable:
        raise CorpusError(f"no files in {', '.join(inputs)}; folders give {wanted} (--glob PATTERN takes others)")
    return list(files.values()), unreadable


class _Wanted:
    """What is taken out of folders."""

    def __init__(self, globs: Sequence[str], suffixes: tuple[str, ...]) -> None:
        self._globs = globs
        self._suffixes = suffixes

    def __call__(self, below: str) -> bool:
        path = PurePath(below)
        if not self._globs:
            return split_suffix(path.name)[1] in self._suffixes
        return any(fnmatch(path.as_posix() if "/" in pattern else path.name, pattern) for pattern in self._globs)

    def __str__(self) -> str:
        return ", ".join(self._globs or (f"*{suffix}" for suffix in self._suffixes))


def _expand(
    argument: str, wanted: _Wanted, single_root: bool, unreadable: list[Unreadable]
) -> Iterator[tuple[str, str, bool]]:
    """(path, id, whether it is named itself) of what an argument stands for. A name that exists is never a pattern."""
    if argument == STDIN:
        yield STDIN, STDIN, True
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
            yield match, PurePath(match).as_posix(), True
            continue
        for below in _walk(match, wanted, unreadable):
            path = os.path.join(match, below)
            yield path, PurePath(below if single_root else path).as_posix(), False


def _walk(root: str, wanted: _Wanted, unreadable: list[Unreadable]) -> list[str]:
    """Paths below a folder, sorted."""
    found = []
    errors: list[OSError] = []
    for folder, names, files in os.walk(root, onerror=errors.append):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            path = os.path.join(folder, name)
            below = os.path.relpath(path, root)
            if name.startswith(".") or not wanted(below):
                continue
            # A dangling link is kept, to be reported; a pipe or socket would block for ever.
            if os.path.isfile(path) or not os.path.exists(path):
                found.append(below)
    unreadable += [Unreadable(printable(str(error.filename or root)), error) for error in errors]
    return sorted(found, key=lambda below: PurePath(below).parts)


def _describe(path: str, id_: str, text: str, asked: bool) -> InputFile:
    if path == STDIN:
        return InputFile(path, id_, text, gz=False)
    name = os.path.basename(path)
    size, modified_ns = 0, 0
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            size, modified_ns = status.st_size, status.st_mtime_ns
    except OSError:
        pass  # it is gone already, or may not be read: opening it will tell
    return InputFile(path, id_, kind_of(name, text), split_suffix(name)[2], size, modified_ns, asked=asked)
