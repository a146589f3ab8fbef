"""Nearest rows of an output to a query: exact, over all of it, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thalweg.corpus.results import Stored, open_results
from thalweg.corpus.rows import Metadata
from thalweg.embedder.embedder import Embedder
from thalweg.errors import CorpusError, InvalidInputError
from thalweg.pooling.vectors import FloatArray, finish


class Hit(NamedTuple):
    """One row found: its score (larger is nearer) and everything that was stored with its vector."""

    score: float
    row: dict[str, Any]


def search(path: Path, metadata: Metadata, embedder: Embedder, query: str, k: int, **prompt: str | None) -> list[Hit]:
    """The `k` rows nearest to a query, nearest first; equal ones in their order.

    The query stays float32 whatever the precision of the rows: int8 and uint8 are set back to numbers, binary to ±1.

    Args:
        path: an output of `embed_corpus`; metadata: from `read_metadata`.
        embedder: the model that the vectors are from.
        prompt: `prompt` or `prompt_name` as for `Embedder.encode_query`.

    Raises:
        CorpusError: the vectors are another model's.
    """
    if k < 1:
        raise InvalidInputError(f"k must be at least 1, got {k}")
    if embedder.fingerprint != metadata.fingerprint:
        raise CorpusError(
            f"{path} holds vectors of {metadata.model or 'the shipped model'} (fingerprint {metadata.fingerprint}), "
            f"but {embedder.name} has fingerprint {embedder.fingerprint}: pass the right --model, or embed again"
        )
    results = open_results(path, metadata)
    vector = _query_vector(embedder, metadata, query, **prompt)
    scores = np.empty(0, np.float32)
    numbers = np.empty(0, np.int64)
    at = 0
    for stored in results.vectors():
        found = embedder.similarity(vector, restored(stored, metadata))[0]
        scores = np.concatenate([scores, found])
        numbers = np.concatenate([numbers, np.arange(at, at + len(found))])
        best = np.argsort(-scores, kind="stable")[:k]
        scores, numbers = scores[best], numbers[best]
        at += len(found)
    rows = results.rows(numbers.tolist())
    return [Hit(float(score), row) for score, row in zip(scores, rows, strict=True)]


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


def _query_vector(
    embedder: Embedder, metadata: Metadata, query: str, *, prompt: str | None, prompt_name: str | None
) -> FloatArray:
    vector = embedder.encode_query([query], normalize_embeddings=False, prompt=prompt, prompt_name=prompt_name)
    # Cut and scaled as the documents were.
    return finish(vector, normalize=metadata.normalized, truncate_dim=metadata.dimension)
