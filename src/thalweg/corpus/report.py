"""What a run tells: how far it is, what went wrong, and what came of it."""

from __future__ import annotations

import json
import logging
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from thalweg.corpus.documents import ReadFailure, UnforeseenError
from thalweg.errors import CorpusError
from thalweg.inputs.files import as_text
from thalweg.inputs.streams import Meter
from thalweg.storage.durable import errors_named

SHOWN = 10
"""Failures, notes and ids kept in memory for the summary; the file has all failures."""

log = logging.getLogger("thalweg")


@dataclass
class Files:
    """What became of the input files.

    seen: all that were met; failed: could not be read to their end; empty: without text or rows; left_out: never read,
    by kind (`thalweg.inputs.discover`). All others were read.
    """

    seen: int = 0
    failed: int = 0
    empty: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def read(self) -> int:
        return self.seen - self.failed - self.empty - self.left_out.total()


@dataclass
class Status:
    """How far a run is. Changes while it goes on.

    documents: finished, failed and skipped ones not counted, earlier runs included; tokens: of this run;
    n_documents, n_bytes: of the whole input, None where they are not known; saved: documents of earlier runs;
    table_rows_failed: of the rows that `meter` has counted; notes: what had to be found out of input files, the first
    of n_notes; remade: saved parts that were damaged, and are made again.
    """

    n_documents: int | None
    n_bytes: int | None
    meter: Meter = field(default_factory=Meter)
    files: Files = field(default_factory=Files)
    documents: int = 0
    saved: int = 0
    failed: int = 0
    skipped: int = 0
    table_rows_failed: int = 0
    tokens: int = 0
    remade: tuple[str, ...] = ()
    writing: bool = False
    notes: list[str] = field(default_factory=list)
    n_notes: int = 0

    def note(self, told: str) -> None:
        """Keep what a reader found out."""
        self.n_notes += 1
        if len(self.notes) < SHOWN:
            self.notes.append(told)


class ReportedFailure(NamedTuple):
    """One failure in words."""

    id: str
    reason: str
    skipped: bool


@dataclass(frozen=True)
class Summary:
    """What came of a run.

    documents, rows, tokens: of the output; new_tokens, seconds: of this run; cut: documents that `max_length` cut;
    shown: the first failures; nothing_to_do: the output was complete before; files, table_rows, table_rows_failed,
    notes, n_notes: of the input, as in `Status`; repeated: documents with the id of an earlier one, and the first few
    of these ids; remade: saved parts that were damaged, and made again.
    """

    documents: int
    rows: int
    tokens: int
    failed: int
    skipped: int = 0
    cut: int = 0
    saved: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    shown: tuple[ReportedFailure, ...] = ()
    nothing_to_do: bool = False
    files: Files = field(default_factory=Files)
    table_rows: int = 0
    table_rows_failed: int = 0
    notes: tuple[str, ...] = ()
    n_notes: int = 0
    repeated: int = 0
    repeated_ids: tuple[str, ...] = ()
    remade: tuple[str, ...] = ()


class FailureLog(AbstractContextManager["FailureLog"]):
    """Writes every failure to a file, counts it, and keeps the first few.

    Args:
        path: JSON lines; made when the first failure comes.
        strict: raise for a failure instead of going on.
    """

    def __init__(self, path: Path, status: Status, *, strict: bool) -> None:
        self._stream = open(path, "w", encoding="utf-8")  # noqa: SIM115
        self._path = path
        self._status = status
        self._strict = strict
        self.shown: list[ReportedFailure] = []

    def add(self, failure: ReadFailure) -> None:
        """Raises:
        CorpusError: a failure, if strict.
        """
        told = ReportedFailure(as_text(failure.id), as_text(_reason(failure.error)), failure.skipped)
        if len(self.shown) < SHOWN:
            self.shown.append(told)
        if isinstance(failure.error, UnforeseenError):
            log.debug("%s", told.id, exc_info=failure.error)
        with errors_named(self._path):
            self._stream.write(json.dumps(told._asdict(), ensure_ascii=False) + "\n")
        self._count(failure)
        if self._strict and not failure.skipped:
            raise CorpusError(f"{told.id}: {told.reason} (--strict stops here)") from failure.error

    def __exit__(self, *exception: object) -> None:
        with errors_named(self._path):
            self._stream.close()
        if not self.shown:
            self._path.unlink()

    def _count(self, failure: ReadFailure) -> None:
        status = self._status
        status.skipped += failure.skipped
        status.failed += not failure.skipped
        if failure.concerns == "row":
            status.table_rows_failed += 1
        elif failure.concerns == "file":
            status.files.empty += failure.skipped
            status.files.failed += not failure.skipped


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
