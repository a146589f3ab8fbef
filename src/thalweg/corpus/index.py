"""Which rows lie where in the parts, and what that means for the documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

KEY_COLUMNS = ["key_file", "key_row", "key_last", "section"]
IntArray: TypeAlias = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Index:
    """The rows of all parts in the order of the output: by file, row and section.

    part, at: where a row lies; file, row, section: what it is of; size: bytes of its text; complete: whether all of its
    document is there. About 60 bytes a row while it is built; vectors and texts stay on the disk.
    """

    part: IntArray
    at: IntArray
    file: IntArray
    row: IntArray
    section: IntArray
    size: IntArray
    complete: npt.NDArray[np.bool_]

    @classmethod
    def build(cls, batches: Iterable[tuple[Any, IntArray]]) -> Index:
        """From the parts, each a record batch with at least the columns `KEY_COLUMNS`, and the bytes of each text."""
        columns: list[list[npt.NDArray[Any]]] = [[], [], [], [], [], [], []]
        for number, (batch, sizes) in enumerate(batches):
            n = batch.num_rows
            values = [np.full(n, number, np.int32), np.arange(n, dtype=np.int32), sizes]
            # Copied: the parts are memory maps that come and go.
            values += [batch.column(name).to_numpy(zero_copy_only=False).copy() for name in KEY_COLUMNS]
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        if not columns[0]:
            columns = [[np.empty(0, np.int64)] for _ in columns]
        part, at, size, file, row, last, section = map(np.concatenate, columns)
        order = np.lexsort((section, row, file))
        part, at, size, file, row = part[order], at[order], size[order], file[order], row[order]
        last, section = last[order], section[order]
        return cls(part, at, file, row, section, size, _complete(file, row, last, section))

    def documents(self) -> IntArray:
        """(n,): where each document begins in the arrays."""
        return np.flatnonzero(_starts(self.file, self.row))

    def slices(self, rows: int, size: int) -> Iterator[IntArray]:
        """The numbers of the rows of complete documents, in order, as many at a time as bounds of their number and of
        the bytes of their texts allow, but at least one."""
        wanted = np.flatnonzero(self.complete)
        ends = np.cumsum(self.size[wanted], dtype=np.int64)
        begin, before = 0, 0
        while begin < len(wanted):
            end = min(begin + rows, max(begin + 1, int(np.searchsorted(ends, before + size, side="right"))))
            yield wanted[begin:end]
            begin, before = end, int(ends[end - 1])


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
        self._incomplete = {
            (int(index.file[start]), int(index.row[start])): frozenset(index.section[start : start + size].tolist())
            for start, size in zip(starts[~complete], sizes[~complete], strict=True)
        }

    def has(self, file: int, row: int) -> bool:
        """Whether the document is complete."""
        rows = self._rows.get(file)
        if rows is None:
            return False
        at = int(np.searchsorted(rows, row))
        return at < len(rows) and int(rows[at]) == row

    def sections(self, file: int, row: int) -> frozenset[int]:
        """The sections of an incomplete document that are there."""
        return self._incomplete.get((file, row), frozenset())


def _starts(file: npt.NDArray[Any], row: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where the sorted document numbers change."""
    changes = np.ones(len(row), bool)
    changes[1:] = (file[1:] != file[:-1]) | (row[1:] != row[:-1])
    return changes


def _complete(
    file: npt.NDArray[Any], row: npt.NDArray[Any], last: npt.NDArray[Any], section: npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
    """For every row whether its document has a last one and all before it."""
    starts = np.flatnonzero(_starts(file, row))
    if not len(starts):
        return np.empty(0, bool)
    sizes = np.diff(np.append(starts, len(row)))
    no_gap = np.logical_and.reduceat(section == np.arange(len(row)) - np.repeat(starts, sizes), starts)
    return np.repeat(no_gap & last[starts + sizes - 1].astype(bool), sizes)
