"""The nearest documents to queries: exact, by matrix products of blocks, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thalweg.pooling.vectors import FloatArray
from thalweg.training.data.mining.vectors import Block

IntArray = npt.NDArray[np.int64]


class Neighbours(NamedTuple):
    """(m, k): documents, nearest first, and their scores. Where there are fewer than k: -1 and -inf."""

    documents: IntArray
    scores: FloatArray


def nearest(queries: FloatArray, blocks: Iterable[Block], k: int, masked: tuple[IntArray, IntArray]) -> Neighbours:
    """The k documents of the largest products with each query; of equal ones any, but the same in each run.

    Args:
        queries: (m, d) float32; blocks: of the documents (n, d), in their order.
        masked: (pairs,) numbers of queries and (pairs,) numbers of documents that must not be found for them.
    """
    m = len(queries)
    best = Neighbours(np.full((m, k), -1, np.int64), np.full((m, k), -np.inf, np.float32))
    order = np.argsort(masked[1], kind="stable")
    masked_queries, masked_documents = masked[0][order], masked[1][order]
    for begin, vectors in blocks:
        scores = queries @ vectors.T
        first, last = np.searchsorted(masked_documents, [begin, begin + len(vectors)])
        scores[masked_queries[first:last], masked_documents[first:last] - begin] = -np.inf
        columns = _largest(scores, k)
        documents = np.concatenate([best.documents, columns + begin], axis=1)
        scores = np.concatenate([best.scores, np.take_along_axis(scores, columns, axis=1)], axis=1)
        columns = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best = Neighbours(np.take_along_axis(documents, columns, axis=1), np.take_along_axis(scores, columns, axis=1))
    return Neighbours(np.where(np.isneginf(best.scores), -1, best.documents), best.scores)


def _largest(scores: FloatArray, k: int) -> IntArray:
    """(m, at most k): columns of the largest values of each row, in no order."""
    if scores.shape[1] <= k:
        return np.broadcast_to(np.arange(scores.shape[1], dtype=np.int64), scores.shape)
    return np.argpartition(-scores, k - 1, axis=1)[:, :k].astype(np.int64)
