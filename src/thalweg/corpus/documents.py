"""The documents of a run, one after the other, read only as far as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from thalweg.corpus.records import Columns, read_records
from thalweg.errors import CorpusError
from thalweg.inputs.files import InputFile, printable
from thalweg.inputs.rows import Notes
from thalweg.inputs.streams import FileMeter, Meter, damage_reported, opened_text, text_pieces


@dataclass(frozen=True)
class Document:
    """One document.

    file, row: its place in the run (row 0 for a whole file); text: all of it, or its pieces; close: lets go of the
    file.
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
    """A document, or the rest of a file, that could not be read; `skipped`: an empty file, which is no failure."""

    id: str
    error: Exception
    skipped: bool = False


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
) -> Iterator[Document | ReadFailure]:
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
            yield _whole(number, file, share)


def _whole(number: int, file: InputFile, meter: FileMeter) -> Document | ReadFailure:
    """The file as one document, opened and read just far enough to know that it is text."""
    pieces = _pieces(file, meter)
    try:
        first = next(pieces, None)
    except (CorpusError, OSError) as error:
        return ReadFailure(file.id, error)
    if first is None:
        return ReadFailure(file.id, CorpusError("an empty file"), skipped=True)
    return Document(number, 0, file.id, printable(file.path), False, _joined(first, pieces), pieces.close)


def _pieces(file: InputFile, meter: FileMeter) -> Generator[str, None, None]:
    try:
        with damage_reported(), opened_text(file, meter) as stream:
            yield from text_pieces(stream)
    finally:
        meter.finish()


def _joined(first: str, pieces: Iterator[str]) -> Iterator[str]:
    yield first
    yield from pieces


def _rows(
    number: int, file: InputFile, columns: Columns, finished: Finished, meter: FileMeter, on_note: Notes
) -> Iterator[Document | ReadFailure]:
    row = -1
    try:
        for row, text, name in read_records(file, columns, meter, lambda note: on_note(f"{file.id}: {note}")):
            id_ = f"{file.id}:{row}" if name is None else name
            if isinstance(text, CorpusError):
                yield ReadFailure(id_, text)
            elif not finished.has(number, row):
                yield Document(number, row, id_, printable(file.path), True, text, _nothing)
        if row < 0:
            yield ReadFailure(file.id, CorpusError("a file without rows"), skipped=True)
    except (CorpusError, OSError) as error:
        yield ReadFailure(file.id, _lost(row, error) if row >= 0 else error)
    finally:
        meter.finish()


def _lost(row: int, error: Exception) -> CorpusError:
    return CorpusError(f"the rows after {row} are lost: {error}")


def _nothing() -> None:
    """Rows hold no file open."""
