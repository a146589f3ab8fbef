"""Pooling by streamed sums, and the precisions as sentence-transformers defines them."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

from thalweg.errors import InvalidInputError
from thalweg.pooling.pooling import RunningMean
from thalweg.pooling.vectors import Precision, finish, to_precision

VECTORS = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32)


def test_ten_million_vectors_lose_nothing() -> None:
    mean = RunningMean(1)
    for _ in range(1000):
        mean.add(np.array([1000.1], dtype=np.float32), 10_000)
    assert mean.mean()[0] == np.float32(np.float64(np.float32(1000.1)) * 1000 / 10_000_000)


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("vectors", [VECTORS, VECTORS[:0], np.ones((3, 16), np.float32)], ids=["some", "none", "flat"])
def test_precisions_are_those_of_sentence_transformers(precision: Precision, vectors: np.ndarray) -> None:
    got, want = to_precision(vectors, precision), quantize_embeddings(vectors, precision=precision)
    assert got.dtype == want.dtype
    if len(vectors):
        np.testing.assert_array_equal(got, want)


def test_one_vector_has_no_range() -> None:
    with pytest.raises(InvalidInputError, match="pass several texts, or ranges="):
        to_precision(VECTORS[:1], "int8")
    ranges = np.stack([VECTORS.min(0), VECTORS.max(0)])
    np.testing.assert_array_equal(to_precision(VECTORS[:1], "int8", ranges), to_precision(VECTORS, "int8")[:1])


def test_a_zero_vector_stays_zero() -> None:
    assert finish(np.zeros((1, 4), np.float32), normalize=True).tolist() == [[0, 0, 0, 0]]


def test_unknown_precision() -> None:
    with pytest.raises(InvalidInputError, match=r"precision must be one of .*, got 'int4'"):
        to_precision(VECTORS, "int4")  # type: ignore[arg-type]
