"""The nearest rows to many questions in one pass over the vectors: exact, whatever the order of the arithmetic.

A matrix product gives all scores of a batch, in float32 and with a known bound of its error. What may be among the best
by that bound is computed again in float64, row by row, so that equal vectors have equal scores wherever they stand, and
the result is that of comparing every row exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thalweg.corpus.results import Stored
from thalweg.corpus.rows import Metadata
from thalweg.embedder.similarity import similarity
from thalweg.errors import CorpusError
from thalweg.pooling.vectors import FloatArray

QUESTIONS = 256
"""Questions whose scores are in memory at a time."""

_ROUNDING = 2.0**-24
_TINY = 1e-20
"""The square of a length below which float32 cannot be relied on."""

Numbers = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


class Place(NamedTuple):
    """Where a row is, and its score: larger is nearer."""

    score: float
    file: int
    number: int


def restored(stored: Stored, metadata: Metadata) -> FloatArray:
    """(n, width) stored vectors -> (n, dimension) float32: the middle of each int8 level, ±1 for each bit."""
    if metadata.precision == "float32":
        return np.asarray(stored, np.float32)
    if metadata.precision in ("binary", "ubinary"):
        packed = stored if metadata.precision == "ubinary" else (stored.astype(np.int16) + 128)
        bits = np.unpackbits(packed.astype(np.uint8), axis=1, count=metadata.dimension)
        return bits.astype(np.float32) * 2 - 1
    low, high = np.array(metadata.ranges, np.float32)
    levels = stored.astype(np.float32) + (128 if metadata.precision == "int8" else 0)
    return np.asarray(low + (levels + np.float32(0.5)) * (high - low) / 255, np.float32)


class Ranking:
    """The k best rows for each of q questions, or the best row of each of the k best documents.

    It holds at most q · k places, and the scores of a batch for `QUESTIONS` questions.

    Args:
        questions: (q, d) float32.
        similarity: as `EmbeddingConfig.similarity`.
    """

    def __init__(self, questions: FloatArray, k: int, similarity: str, *, documents: bool) -> None:
        self._questions = questions
        self._similarity = similarity
        kind = _Documents if documents else _Rows
        self._best = [kind(k) for _ in questions]

    def add(self, path: Any, file: int, numbers: Numbers, vectors: FloatArray, groups: Groups | None = None) -> None:
        """A batch, after those that stand before it.

        Args:
            path: of the file, for messages; file: its number.
            numbers: (n,) ascending, of the rows in the file.
            vectors: (n, d).
            groups: the documents of the rows, for the best of documents.

        Raises:
            CorpusError: numbers that are not finite, or too large to compare.
        """
        if not len(vectors):
            return
        lengths = _lengths(vectors)
        for first in range(0, len(self._questions), QUESTIONS):
            questions = self._questions[first : first + QUESTIONS]
            scores, error = self._scores(path, questions, vectors, lengths)
            for at, question in enumerate(questions):
                self._best[first + at].add(
                    scores[:, at] - error[:, at],
                    scores[:, at] + error[:, at],
                    lambda rows, question=question: self._exact(question, vectors[rows]),  # type: ignore[misc]
                    file,
                    numbers,
                    groups,
                )

    def places(self) -> list[list[Place]]:
        """The best of each question, nearest first; equal ones in the order of the files and their rows."""
        return [best.places() for best in self._best]

    def _scores(
        self, path: Any, questions: FloatArray, vectors: FloatArray, lengths: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """(n, q) scores, and what they may be wrong by."""
        bound = np.float32(4 * (vectors.shape[1] + 16) * _ROUNDING)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # looked for in what comes of it
            if self._similarity in ("cosine", "dot"):
                scores = vectors @ questions.T
                sizes = lengths[:, None] * np.linalg.norm(questions, axis=1)[None]
                finite = np.isfinite(scores).all() and np.isfinite(lengths).all()
                if self._similarity == "cosine":
                    scores = np.where(sizes > 0, scores / sizes, 0)
                    error = np.full_like(scores, bound)
                else:
                    error = bound * sizes
                unreliable = lengths < _TINY**0.5
                scores[unreliable], error[unreliable] = 0, np.inf
            else:
                scores = similarity(questions, vectors, self._similarity).T
                finite = np.isfinite(scores).all()
                error = bound * np.abs(scores) + np.float32(1e-30)
        if not finite:
            what = "too large to compare" if np.isfinite(vectors).all() else "not finite"
            raise CorpusError(f"{path} is damaged: its numbers are {what}; embed the corpus again")
        return scores, error

    def _exact(self, question: FloatArray, vectors: FloatArray) -> Scores:
        """(n,) scores in float64, each computed from its row alone."""
        a, b = question.astype(np.float64), vectors.astype(np.float64)
        if self._similarity == "euclidean":
            return -np.sqrt(((b - a) ** 2).sum(axis=1))
        if self._similarity == "manhattan":
            return -np.abs(b - a).sum(axis=1)
        scores = (b * a).sum(axis=1)
        if self._similarity == "cosine":
            sizes = np.sqrt((b * b).sum(axis=1)) * np.sqrt((a * a).sum())
            scores = np.divide(scores, sizes, out=np.zeros_like(scores), where=sizes > 0)
        return np.asarray(scores)


def _lengths(vectors: FloatArray) -> FloatArray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sqrt(np.einsum("ij,ij->i", vectors, vectors))


class Groups:
    """Which rows of a batch are of one document: those that agree in some columns.

    Args:
        columns: (n rows) Arrow table.
    """

    def __init__(self, columns: Any) -> None:
        self._columns = columns
        codes = np.zeros(columns.num_rows, np.int64)
        for column in columns.columns:
            encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
            codes = codes * max(1, len(encoded.dictionary)) + encoded.indices.to_numpy()
            codes = np.unique(codes, return_inverse=True)[1].reshape(-1)
        self.of_row = codes
        self._order = np.argsort(codes, kind="stable")
        self._starts = np.flatnonzero(np.diff(codes[self._order], prepend=-1))

    def largest(self, values: FloatArray) -> FloatArray:
        """(groups,) of (n,)."""
        return np.asarray(np.maximum.reduceat(values[self._order], self._starts))

    def documents(self, rows: Numbers) -> list[Hashable]:
        """What tells the document of each of some rows."""
        return [tuple(row.values()) for row in self._columns.take(pa.array(rows)).to_pylist()]


class _Rows:
    """The k best rows."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._scores = np.empty(0)
        self._files = np.empty(0, np.int64)
        self._numbers = np.empty(0, np.int64)

    def add(
        self,
        low: FloatArray,
        high: FloatArray,
        exact: Callable[[Numbers], Scores],
        file: int,
        numbers: Numbers,
        groups: Groups | None,
    ) -> None:
        least = _least(low, self._k, self._scores[-1] if len(self._scores) == self._k else -np.inf, high)
        rows = np.flatnonzero(high >= least)
        if not len(rows):
            return
        scores = np.concatenate([self._scores, exact(rows)])
        order = np.argsort(-scores, kind="stable")[: self._k]
        self._scores = scores[order]
        self._files = np.concatenate([self._files, np.full(len(rows), file)])[order]
        self._numbers = np.concatenate([self._numbers, numbers[rows]])[order]

    def places(self) -> list[Place]:
        return list(map(Place, self._scores.tolist(), self._files.tolist(), self._numbers.tolist()))


class _Documents:
    """The best row of each of the k best documents."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._best: dict[Hashable, Place] = {}
        self._least = -np.inf

    def add(
        self,
        low: FloatArray,
        high: FloatArray,
        exact: Callable[[Numbers], Scores],
        file: int,
        numbers: Numbers,
        groups: Groups | None,
    ) -> None:
        assert groups is not None
        lowest = groups.largest(low)
        least = _least(lowest, self._k, self._least, high)
        rows = np.flatnonzero((high >= least) & (high >= lowest[groups.of_row]))
        if not len(rows):
            return
        scores, documents = exact(rows), groups.documents(rows)
        for at in np.argsort(-scores, kind="stable").tolist():
            document = file, documents[at]
            before = self._best.get(document)
            if before is None or scores[at] > before.score:
                self._best[document] = Place(float(scores[at]), file, int(numbers[rows[at]]))
        if len(self._best) >= self._k:
            kept = sorted(self._best.items(), key=lambda each: _rank(each[1]))[: self._k]
            self._best = dict(kept)
            self._least = kept[-1][1].score

    def places(self) -> list[Place]:
        return sorted(self._best.values(), key=_rank)


def _rank(place: Place) -> tuple[float, int, int]:
    return -place.score, place.file, place.number


def _least(low: FloatArray, k: int, before: float, high: FloatArray) -> float:
    """What a row must be able to reach: the k best so far, and k rows of this batch, are at least that good."""
    if len(low) <= k or (before > -np.inf and np.count_nonzero(high >= before) <= 4 * k):
        return before
    return max(before, float(np.partition(low, len(low) - k)[len(low) - k]))
