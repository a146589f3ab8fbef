"""Which files a run reads: the arguments of the command line to a list of files in a fixed order."""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import NamedTuple

from thalweg.errors import CorpusError
from thalweg.inputs.files import STDIN, TEXT, InputFile, as_text, printable
from thalweg.inputs.formats import LINES, SUFFIXES, kind_of, split_suffix
from thalweg.inputs.globs import expand

HIDDEN = "hidden"
LINKED_FOLDER = "links to folders"
SPECIAL = "pipes, sockets or devices"
AGAIN = "the same file again"
OUTPUT = "outputs of thalweg"
NO_SUFFIX = "without suffix"


@dataclass(frozen=True)
class Unreadable:
    """A folder that could not be listed."""

    path: str
    error: OSError


class Found(NamedTuple):
    """Files to read, folders that could not be listed, and what was left out, by kind: a suffix, or one of `HIDDEN`,
    `LINKED_FOLDER`, `SPECIAL`, `AGAIN`, `OUTPUT` and `NO_SUFFIX`. What lies in folders that are left out counts as one.
    """

    files: list[InputFile]
    unreadable: list[Unreadable]
    left_out: Counter[str]


class Reading(NamedTuple):
    """What a user says of all files: format (None: by the suffix), encoding and delimiter (None: found out)."""

    format: str | None = None
    encoding: str | None = None
    delimiter: str | None = None


def discover(
    inputs: Sequence[str],
    *,
    globs: Sequence[str] = (),
    suffixes: tuple[str, ...] = SUFFIXES,
    reading: Reading = Reading(),  # noqa: B008 - immutable
    lines: bool = False,
    exclude: Iterable[Path] = (),
    is_output: Callable[[str], bool] = lambda path: False,
) -> Found:
    """All files that the arguments stand for, each once, in the order of the arguments and sorted within one.

    Args:
        inputs: files, folders (searched recursively, without hidden entries and links to folders), globs, or "-".
        globs: what to take out of folders; one with a slash is matched with the path below the folder, others with
            the name.
        suffixes: of what is taken out of folders if there are no `globs`, in whatever case they are written.
        reading: how to read them.
        lines: every line of a text file (or of stdin) is a document.
        exclude: files and folders that are never input, such as the output.
        is_output: whether a file or folder is an output of ours, which is no input unless a user names it.

    Raises:
        CorpusError: an argument that stands for nothing, or no files at all.
    """
    search = _Search(globs, suffixes, {os.path.realpath(path) for path in exclude}, is_output)
    single_root = len(inputs) == 1
    text = LINES if lines else TEXT
    files: dict[str, InputFile] = {}
    for argument in inputs:
        for path, id_, asked in search.expand(argument, single_root):
            key = path if path == STDIN else os.path.realpath(path)
            if key in files:
                search.left_out[path] = AGAIN
            elif search.is_excluded(key):
                search.left_out[path] = OUTPUT
            else:
                files[key] = _described(path, printable(id_), text, reading, asked)
    # What one argument leaves out another may name.
    left_out = Counter(
        kind for path, kind in search.left_out.items() if kind == AGAIN or os.path.realpath(path) not in files
    )
    if not files and not search.unreadable:
        told = ", ".join(f"{n} {kind}" for kind, n in left_out.most_common())
        raise CorpusError(
            f"no files in {', '.join(map(as_text, inputs))}"
            + (f", which has {as_text(told)}" if told else "")
            + f"; folders give {search.wanted} (--glob PATTERN takes others)"
        )
    return Found(list(files.values()), search.unreadable, left_out)


class _Search:
    """What is taken out of folders, and what was not: paths, and of which kind they are."""

    def __init__(
        self, globs: Sequence[str], suffixes: tuple[str, ...], excluded: set[str], is_output: Callable[[str], bool]
    ) -> None:
        self._globs = globs
        self._suffixes = suffixes
        self._excluded = excluded
        self._is_output = is_output
        self.unreadable: list[Unreadable] = []
        self.left_out: dict[str, str] = {}

    @property
    def wanted(self) -> str:
        return ", ".join(self._globs or (f"*{suffix}" for suffix in self._suffixes))

    def is_excluded(self, real: str) -> bool:
        return not self._excluded.isdisjoint([real, *map(str, PurePath(real).parents)])

    def expand(self, argument: str, single_root: bool) -> Iterator[tuple[str, str, bool]]:
        """(path, id, whether it is asked for) of what an argument stands for. A name that exists is never a pattern."""
        if argument == STDIN:
            yield STDIN, STDIN, True
            return
        named = os.path.lexists(argument)  # also a link to nowhere, which is then reported as what it is
        if named:
            matches = [argument]
        else:
            matches = expand(argument)
            if not matches:
                what = "matches nothing" if glob.has_magic(argument) else "does not exist"
                raise CorpusError(f"input {argument!r} {what}")
            single_root = False
        for match in matches:
            if os.path.isdir(match):
                for below in self._walk(match):
                    path = os.path.join(match, below)
                    yield path, PurePath(below if single_root else path).as_posix(), bool(self._globs)
            elif not named and self._is_output(match):
                self.left_out[match] = OUTPUT
            else:
                yield match, PurePath(match).as_posix(), True

    def _walk(self, root: str) -> list[str]:
        """Paths below a folder, sorted."""
        found = []
        errors: list[OSError] = []
        for folder, names, files in os.walk(root, onerror=errors.append):
            names[:] = [name for name in names if self._enters(os.path.join(folder, name))]
            found += [
                below for name in files if self._takes(below := os.path.relpath(os.path.join(folder, name), root), root)
            ]
        self.unreadable += [Unreadable(printable(str(error.filename or root)), error) for error in errors]
        return sorted(found, key=lambda below: PurePath(below).parts)

    def _enters(self, folder: str) -> bool:
        kind = None
        if os.path.basename(folder).startswith("."):
            kind = HIDDEN
        elif os.path.islink(folder):
            kind = LINKED_FOLDER
        elif self._is_output(folder) or self.is_excluded(os.path.realpath(folder)):
            kind = OUTPUT
        if kind is not None:
            self.left_out[folder] = kind
        return kind is None

    def _takes(self, below: str, root: str) -> bool:
        path = os.path.join(root, below)
        kind = self._left_out(path, below)
        if kind is not None:
            self.left_out[path] = kind
        return kind is None

    def _left_out(self, path: str, below: str) -> str | None:
        """Why a file is left out, None if it is taken."""
        name = os.path.basename(path)
        if name.startswith("."):
            return HIDDEN
        if os.path.exists(path) and not os.path.isfile(path):
            return SPECIAL  # which would block for ever. A dangling link is taken, to be reported
        if self._is_output(path):
            return OUTPUT
        suffix = split_suffix(name)[1]
        if not self._globs:
            taken = suffix in self._suffixes
        else:
            parts = PurePath(below)
            taken = any(fnmatch(parts.as_posix() if "/" in each else parts.name, each) for each in self._globs)
        return None if taken else as_text(suffix) or NO_SUFFIX


def _described(path: str, id_: str, text: str, reading: Reading, asked: bool) -> InputFile:
    size, modified_ns, packed = 0, 0, False
    kind = reading.format
    if path != STDIN:
        name = os.path.basename(path)
        kind, packed = kind or kind_of(name, text), split_suffix(name)[2]
        try:
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                size, modified_ns = status.st_size, status.st_mtime_ns
        except OSError:
            pass  # it is gone already, or may not be read: opening it will tell
    options = {"encoding": reading.encoding, "delimiter": reading.delimiter, "asked": asked}
    return InputFile(path, id_, kind or text, packed, size, modified_ns, **options)  # type: ignore[arg-type]
