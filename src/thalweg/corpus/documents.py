"""The documents of a run, one after the other, read only as far as they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from thalweg.corpus.records import Columns, read_records
from thalweg.errors import CorpusError, ThalwegError
from thalweg.inputs.files import TEXT, InputFile, printable
from thalweg.inputs.formats import TEXT_SUFFIXES, kind_of, split_suffix
from thalweg.inputs.rows import Notes
from thalweg.inputs.streams import FileMeter, Meter, damage_reported, opened_text, text_pieces


@dataclass(frozen=True)
class Document:
    """One document.

    file, row: its place in the run (row 0 for a whole file); text: all of it, or its pieces, which raise
    `ThalwegError`s and `OSError`s only; close: lets go of the file.
    """

    file: int
    row: int
    id: str
    path: str
    is_row: bool
    text: str | Iterator[str]
    close: Callable[[], None]


@dataclass(frozen=True)
class ReadFailure:
    """A row, a file or the rest of it, or a folder that could not be read; `skipped`: an empty file, which is no
    failure."""

    id: str
    error: Exception
    skipped: bool = False
    concerns: Literal["row", "file", "folder"] = "file"


@dataclass(frozen=True)
class LeftOut:
    """A file that turned out not to be meant."""

    kind: str


class UnforeseenError(CorpusError):
    """A reader raised what nobody has thought of. That is a bug, but it costs a file and not the run."""

    def __init__(self, error: Exception) -> None:
        super().__init__(
            f"{type(error).__name__}: {error}; this is a bug of thalweg, please report it (--debug shows where it is)"
        )


class Finished(Protocol):
    """Which documents an earlier run has finished."""

    def has(self, file: int, row: int) -> bool:
        """Whether nothing of the document is left to do."""


def read_documents(
    files: Iterable[InputFile],
    columns: Columns,
    finished: Finished,
    meter: Meter,
    on_note: Notes = lambda note: None,
) -> Iterator[Document | ReadFailure | LeftOut]:
    """The documents that are not finished, in order, and what stands in their place where one cannot be read.

    on_note: told what had to be found out of a file, such as its encoding.
    """
    for number, file in enumerate(files):
        share = FileMeter(meter, file.size)
        if file.is_table:
            yield from _rows(number, file, columns, finished, share, on_note)
        elif finished.has(number, 0):
            share.skip()
        else:
            yield _whole(number, file, share, on_note)


def _whole(number: int, file: InputFile, meter: FileMeter, on_note: Notes) -> Document | ReadFailure:
    """The file as one document, opened and read just far enough to know that it is text."""
    pieces = _pieces(file, meter)
    try:
        first = next(pieces, None)
    except (ThalwegError, OSError) as error:
        return ReadFailure(file.id, error)
    if first is None:
        return ReadFailure(file.id, CorpusError("an empty file"), skipped=True)
    if kind_of(file.path) == TEXT and split_suffix(file.path)[1] not in TEXT_SUFFIXES and _is_object(first):
        on_note(f"{file.id}: read as one text, but it looks like JSON lines (--format jsonl)")
    return Document(number, 0, file.id, printable(file.path), False, _joined(first, pieces), pieces.close)


def _pieces(file: InputFile, meter: FileMeter) -> Generator[str, None, None]:
    try:
        with _unforeseen_reported(), damage_reported(), opened_text(file, meter) as stream:
            yield from text_pieces(stream)
    finally:
        meter.finish()


def _joined(first: str, pieces: Iterator[str]) -> Iterator[str]:
    yield first
    yield from pieces


def _rows(
    number: int, file: InputFile, columns: Columns, finished: Finished, meter: FileMeter, on_note: Notes
) -> Iterator[Document | ReadFailure | LeftOut]:
    row = -1
    # In a folder a .json file may be anything: one that does not begin with a row that has a text was not meant.
    doubtful = file.kind == "json" and not file.asked
    try:
        with _unforeseen_reported():
            for row, text, name in read_records(file, columns, meter, lambda note: on_note(f"{file.id}: {note}")):
                if doubtful and isinstance(text, CorpusError):
                    raise text
                doubtful = False
                meter.add_row()
                id_ = f"{file.id}:{row}" if name is None else name
                if isinstance(text, CorpusError):
                    yield ReadFailure(id_, text, concerns="row")
                elif not finished.has(number, row):
                    yield Document(number, row, id_, printable(file.path), True, text, _nothing)
        if row < 0:
            yield ReadFailure(file.id, CorpusError("a file without rows"), skipped=True)
    except (ThalwegError, OSError) as error:
        if doubtful and type(error) is CorpusError:
            yield LeftOut(split_suffix(file.path)[1])
        else:
            yield ReadFailure(file.id, _lost(row, error) if row >= 0 else error)
    finally:
        meter.finish()


def _is_object(text: str) -> bool:
    """Whether the first line of a text is a JSON object."""
    line = text.lstrip("\ufeff \t\r\n").partition("\n")[0]
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


@contextmanager
def _unforeseen_reported() -> Iterator[None]:
    try:
        yield
    except (ThalwegError, OSError):
        raise
    except Exception as error:
        raise UnforeseenError(error) from error


def _lost(row: int, error: Exception) -> CorpusError:
    return CorpusError(f"the rows after {row} are lost: {error}")


def _nothing() -> None:
    """Rows hold no file open."""
