"""Nearest rows of an output to a query: exact, over all of it, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thalweg.corpus.results import Batch, Stored, read_batches
from thalweg.corpus.rows import Metadata
from thalweg.embedder.embedder import Embedder
from thalweg.errors import CorpusError, InvalidInputError
from thalweg.pooling.vectors import FloatArray, finish


class Hit(NamedTuple):
    """One row found: its score (larger is nearer) and everything that was stored with its vector."""

    score: float
    row: dict[str, Any]


def search(path: Path, metadata: Metadata, embedder: Embedder, query: str, k: int, **prompt: str | None) -> list[Hit]:
    """The `k` rows nearest to a query, nearest first; equal ones in their order, and none that has no text.

    The query stays float32 whatever the precision of the rows: int8 and uint8 are set back to numbers, binary to ±1.

    Args:
        path: an output of `embed_corpus`; metadata: from `read_metadata`.
        embedder: the model that the vectors are from.
        prompt: `prompt` or `prompt_name` as for `Embedder.encode_query`.

    Raises:
        CorpusError: the vectors are another model's, or the file is damaged.
    """
    if k < 1:
        raise InvalidInputError(f"k must be at least 1, got {k}")
    if embedder.fingerprint != metadata.fingerprint:
        raise CorpusError(
            f"{path} holds vectors of {metadata.model or 'the shipped model'} (fingerprint {metadata.fingerprint}), "
            f"but {embedder.name} has fingerprint {embedder.fingerprint}: pass the right --model, or embed again"
        )
    if metadata.dimension > embedder.dimension:
        raise CorpusError(
            f"{path} is damaged: its metadata says {metadata.dimension} dimensions, but {embedder.name} has "
            f"{embedder.dimension}; embed the corpus again"
        )
    vector = _query_vector(embedder, metadata, query, **prompt)
    best: list[Hit] = []
    for batch in read_batches(path, metadata):
        with np.errstate(over="ignore", invalid="ignore"):  # looked for in what comes of it
            scores = embedder.similarity(vector, restored(batch.vectors, metadata))[0]
        if not np.isfinite(scores).all():
            raise CorpusError(f"{path} is damaged: its numbers are too large to compare; embed the corpus again")
        best = _merged(best, batch, scores, k)
    return best


def _merged(best: list[Hit], batch: Batch, scores: FloatArray, k: int) -> list[Hit]:
    """The k best of those before and of a batch, without rows that have no text."""
    found = list(best)
    for number in np.argsort(-scores, kind="stable").tolist():
        score = float(scores[number])
        if len(best) == k and score <= best[-1].score:
            break  # nothing that follows can be among the k
        (row,) = batch.rows([number])
        if not _blank(row):
            found.append(Hit(score, row))
            if len(found) - len(best) == k:
                break
    return sorted(found, key=lambda hit: -hit.score)[:k]


def _blank(row: Mapping[str, Any]) -> bool:
    """Whether there is nothing to read in a row: white space, or nothing at all.

    Without a stored text it is known of empty ones only; of a long document only the beginning is stored.
    """
    n_characters = row["char_end"] - row["char_start"]
    text = row.get("text")
    return n_characters == 0 or (text is not None and len(text) >= n_characters and not text.strip())


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
    embedder: Embedder, metadata: Metadata, query: str, *, prompt: str | None = None, prompt_name: str | None = None
) -> FloatArray:
    vector = embedder.encode_query([query], normalize_embeddings=False, prompt=prompt, prompt_name=prompt_name)
    # Cut and scaled as the documents were.
    return finish(vector, normalize=metadata.normalized, truncate_dim=metadata.dimension)
