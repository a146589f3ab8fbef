"""BM25 beside the embedding models: words as they stand, no stemming and no stop words."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from mteb.models import ModelMeta
from rank_bm25 import BM25

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mteb.types import CorpusDatasetType, QueryDatasetType, RetrievalOutputType, TopRankedDocumentsType

K1, B = 1.2, 0.75
WORD = re.compile(r"\w+")


class _Lucene(BM25):  # type: ignore[misc]
    """With the inverse document frequency of Lucene, which is never negative."""

    def _calc_idf(self, nd: dict[str, int]) -> None:
        for word, n in nd.items():
            self.idf[word] = math.log(1 + (self.corpus_size - n + 0.5) / (n + 0.5))

    def scores(self, query: set[str]) -> np.ndarray[Any, Any]:
        """(documents,) float64. The words of a query count once."""
        lengths = K1 * (1 - B + B * np.array(self.doc_len) / self.avgdl)
        total = np.zeros(self.corpus_size)
        for word in query & self.idf.keys():
            frequency = np.array([document.get(word, 0) for document in self.doc_freqs])
            total += self.idf[word] * frequency * (K1 + 1) / (frequency + lengths)
        return total


class BM25Search:
    """BM25 for mteb's retrieval tasks; it makes no vectors, so other tasks are not for it."""

    mteb_model_meta = ModelMeta.create_empty(
        {
            "name": "thalweg/bm25",
            "revision": f"k1={K1}-b={B}",
            "model_type": ["sparse"],
            "max_tokens": float("inf"),
            "languages": None,
        }
    )

    def index(self, corpus: CorpusDatasetType, **_: Any) -> None:
        """Count the words of a corpus; its texts are read one at a time."""
        self._ids = list(corpus["id"])
        self._scorer = _Lucene(_documents(corpus))

    def search(
        self,
        queries: QueryDatasetType,
        *,
        top_k: int,
        top_ranked: TopRankedDocumentsType | None = None,
        **_: Any,
    ) -> RetrievalOutputType:
        """The best `top_k` documents of each query with their scores, or all of `top_ranked` where that is given."""
        position = {id_: i for i, id_ in enumerate(self._ids)}
        found = {}
        for row in queries:
            scores = self._scorer.scores(set(_words(row["text"])))
            if top_ranked is None:
                best = np.argsort(-scores, kind="stable")[:top_k]
            else:
                best = np.array([position[id_] for id_ in top_ranked[row["id"]]])
            found[row["id"]] = {self._ids[i]: float(scores[i]) for i in best}
        return found


def _documents(corpus: CorpusDatasetType) -> Iterator[list[str]]:
    for row in corpus:
        yield _words(f"{row.get('title') or ''} {row['text']}")


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())
