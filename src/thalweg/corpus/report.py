"""What a run tells: how far it is, what went wrong, and what came of it."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from thalweg.corpus.documents import ReadFailure
from thalweg.errors import CorpusError
from thalweg.inputs.streams import Meter

SHOWN = 10
"""Failures kept in memory for the summary; the file has them all."""


@dataclass
class Status:
    """How far a run is. Changes while it goes on.

    documents: finished, failed and skipped ones not counted, earlier runs included; tokens: of this run;
    n_documents, n_bytes: of the whole input, None where they are not known; saved: documents of earlier runs.
    """

    n_documents: int | None
    n_bytes: int | None
    meter: Meter = field(default_factory=Meter)
    documents: int = 0
    saved: int = 0
    failed: int = 0
    skipped: int = 0
    tokens: int = 0
    writing: bool = False


class ReportedFailure(NamedTuple):
    """One failure in words."""

    id: str
    reason: str
    skipped: bool


@dataclass(frozen=True)
class Summary:
    """What came of a run.

    documents, rows, tokens: of the output; new_tokens, seconds: of this run; cut: documents that `max_length` cut;
    shown: the first failures; nothing_to_do: the output was complete before.
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
        told = ReportedFailure(failure.id, _reason(failure.error), failure.skipped)
        if len(self.shown) < SHOWN:
            self.shown.append(told)
        self._stream.write(json.dumps(told._asdict(), ensure_ascii=False) + "\n")
        self._status.skipped += failure.skipped
        self._status.failed += not failure.skipped
        if self._strict and not failure.skipped:
            raise CorpusError(f"{told.id}: {told.reason} (--strict stops here)") from failure.error

    def __exit__(self, *exception: object) -> None:
        self._stream.close()
        if not self.shown:
            self._path.unlink()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
