"""Which rows lie where in the parts, and what that means for the documents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

KEY_COLUMNS = ["key_file", "key_row", "key_last", "section"]
IntArray: TypeAlias = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Index:
    """The rows of all parts in the order of the output: by file, row and section.

    part, at: where a row lies; file, row: its document; complete: whether all of its document is there.
    About 50 bytes a row while it is built; vectors and texts stay on the disk.
    """

    part: IntArray
    at: IntArray
    file: IntArray
    row: IntArray
    complete: npt.NDArray[np.bool_]

    @classmethod
    def build(cls, batches: Iterable[Any]) -> Index:
        """From the parts, each a record batch with at least the columns `KEY_COLUMNS`."""
        columns: list[list[npt.NDArray[Any]]] = [[], [], [], [], [], []]
        for number, batch in enumerate(batches):
            n = batch.num_rows
            values = [np.full(n, number, np.int32), np.arange(n, dtype=np.int32)]
            # Copied: the parts are memory maps that come and go.
            values += [batch.column(name).to_numpy(zero_copy_only=False).copy() for name in KEY_COLUMNS]
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        if not columns[0]:
            columns = [[np.empty(0, np.int64)] for _ in columns]
        part, at, file, row, last, section = map(np.concatenate, columns)
        order = np.lexsort((section, row, file))
        part, at, file, row, last = part[order], at[order], file[order], row[order], last[order]
        return cls(part, at, file, row, _spread_last(file, row, last))

    def documents(self) -> IntArray:
        """(n,): where each document begins in the arrays."""
        return np.flatnonzero(_starts(self.file, self.row))


class Done:
    """What parts hold of every document; implements `thalweg.corpus.documents.Finished`."""

    def __init__(self, index: Index) -> None:
        starts = index.documents()
        sizes = np.diff(np.append(starts, len(index.row)))
        complete = index.complete[starts].astype(bool)
        self.n_documents = int(complete.sum())
        files, first = np.unique(index.file[starts[complete]], return_index=True)
        rows = np.split(index.row[starts[complete]], first[1:])
        self._rows: dict[int, IntArray] = dict(zip(files.tolist(), rows, strict=False))
        self._sections = {
            (int(index.file[start]), int(index.row[start])): int(size)
            for start, size in zip(starts[~complete], sizes[~complete], strict=True)
        }

    def has(self, file: int, row: int) -> bool:
        """Whether the document is complete."""
        rows = self._rows.get(file)
        if rows is None:
            return False
        at = int(np.searchsorted(rows, row))
        return at < len(rows) and int(rows[at]) == row

    def sections(self, file: int, row: int) -> int:
        """How many first sections of an incomplete document there are."""
        return self._sections.get((file, row), 0)


def _starts(file: npt.NDArray[Any], row: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where the sorted document numbers change."""
    changes = np.ones(len(row), bool)
    changes[1:] = (file[1:] != file[:-1]) | (row[1:] != row[:-1])
    return changes


def _spread_last(file: npt.NDArray[Any], row: npt.NDArray[Any], last: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """For every row whether its document has a last one. Sections are stored in order, so it is then complete."""
    starts = np.flatnonzero(_starts(file, row))
    if not len(starts):
        return np.empty(0, bool)
    return np.repeat(np.logical_or.reduceat(last, starts), np.diff(np.append(starts, len(row))))
