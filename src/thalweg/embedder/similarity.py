"""How alike vectors are, by the measure that a model was trained for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from thalweg.errors import InvalidInputError
from thalweg.pooling.vectors import FloatArray, finish


def similarity(a: Any, b: Any, kind: str) -> FloatArray:
    """See `Embedder.similarity`. kind: "cosine", "dot", "euclidean" or "manhattan"."""
    a, b = (_matrix(v) for v in (a, b))
    if a.shape[1] != b.shape[1]:
        raise InvalidInputError(
            f"vectors of {a.shape[1]} and {b.shape[1]} dimensions cannot be compared; they must come from the same "
            "model with the same truncate_dim"
        )
    if kind == "cosine":
        a, b = finish(a, normalize=True), finish(b, normalize=True)
    if kind in ("cosine", "dot"):
        return np.asarray(a @ b.T)
    order = 2 if kind == "euclidean" else 1
    return np.stack([-np.linalg.norm(row - b, ord=order, axis=1) for row in a]).astype(np.float32)


def _matrix(vectors: Any) -> FloatArray:
    """Vectors (n, d) or one (d,), as an array (n, d) of float32."""
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.detach().cpu()
    try:
        matrix = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"vectors must be numbers (n, d), got {vectors!r:.80}") from error
    if matrix.ndim != 2:
        raise InvalidInputError(f"vectors must be (n, d) or (d,), got {matrix.shape}")
    return matrix
