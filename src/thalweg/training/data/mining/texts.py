"""The different queries and documents of a run, and which documents are no negatives of which rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thalweg.training.data.build import row_hash
from thalweg.training.data.mining.neighbours import IntArray
from thalweg.training.data.mining.passages import Passages

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = 2048
"""Read at a time."""


class Texts:
    """Which different queries and documents there are; only numbers and hashes are in memory.

    query_rows (q,): for each different query, its first row; query_of_row (rows,): the query of each row. Likewise for
    documents, whose rows are those of the data set and then those of the corpus.
    """

    def __init__(self, rows: Dataset, passages: Passages) -> None:
        self._rows, self._passages = rows, passages
        keys = np.empty((len(rows), 3), np.uint64)
        for i, (query, positive, task) in enumerate(_batched(rows, "anchor", "positive", "instruction")):
            keys[i] = row_hash(task, query), row_hash(query), row_hash(positive)
        self.query_rows, self.query_of_row = _distinct(keys[:, 0])
        documents = np.concatenate([keys[:, 2], passages.hashes])
        self.document_rows, self.document_of_row = _distinct(documents)
        self._forbid(keys[:, 1], documents)

    def _forbid(self, queries: npt.NDArray[np.uint64], documents: npt.NDArray[np.uint64]) -> None:
        """Documents that are positives of a query in any row, or are the query itself: lists one after the other."""
        _, text_of_row = _distinct(queries)
        sorter = np.argsort(documents[self.document_rows])
        at = np.searchsorted(documents[self.document_rows], queries, sorter=sorter)
        same = sorter[np.minimum(at, len(sorter) - 1)]
        is_same = documents[self.document_rows][same] == queries
        pairs = np.unique(
            np.concatenate(
                [
                    np.stack([text_of_row, self.document_of_row[: len(queries)]], axis=1),
                    np.stack([text_of_row[is_same], same[is_same]], axis=1),
                ]
            ),
            axis=0,
        )
        self._text_of_row, self._forbidden = text_of_row, pairs[:, 1]
        self._starts = np.searchsorted(pairs[:, 0], np.arange(text_of_row.max(initial=-1) + 2))

    def masked(self, begin: int, end: int) -> tuple[IntArray, IntArray]:
        """(row - begin, document) of what must not be found for these rows."""
        texts = self._text_of_row[begin:end]
        lists = [self._forbidden[self._starts[text] : self._starts[text + 1]] for text in texts]
        return np.repeat(np.arange(len(lists)), [len(each) for each in lists]), np.concatenate(lists)

    def queries(self, begin: int, end: int, before: Callable[[str], str]) -> list[str]:
        """Queries begin to end, each after what stands `before` it for its instruction."""
        rows = self._rows[self.query_rows[begin:end]]
        return [before(task) + text for task, text in zip(rows["instruction"], rows["anchor"], strict=True)]

    def documents(self, documents: IntArray) -> list[str]:
        """Their texts, in this order."""
        rows = self.document_rows[documents]
        ours = rows < len(self._rows)
        found: list[str] = [""] * len(rows)
        texts = self._rows[rows[ours]]["positive"] if ours.any() else []
        for at, text in zip(np.flatnonzero(ours), texts, strict=True):
            found[at] = text
        others = self._passages.texts(rows[~ours] - len(self._rows))
        for at, text in zip(np.flatnonzero(~ours), others, strict=True):
            found[at] = text
        return found


def _distinct(hashes: npt.NDArray[np.uint64]) -> tuple[IntArray, IntArray]:
    """First places of different values, ascending; and for each place, the number of its value in that order."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse.reshape(-1)]


def _batched(rows: Dataset, *names: str) -> Iterator[tuple[str, ...]]:
    for begin in range(0, len(rows), ROWS):
        batch = rows[begin : begin + ROWS]
        yield from zip(*(batch[name] for name in names), strict=True)
