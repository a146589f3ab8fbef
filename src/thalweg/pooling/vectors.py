"""What is done to pooled vectors: cut, normalised, and rounded to another precision."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from thalweg.errors import InvalidInputError

Precision: TypeAlias = Literal["float32", "int8", "uint8", "binary", "ubinary"]
FloatArray: TypeAlias = npt.NDArray[np.float32]

PRECISIONS: tuple[str, ...] = get_args(Precision)


def finish(vectors: FloatArray, *, normalize: bool, truncate_dim: int | None = None) -> FloatArray:
    """(n, d) pooled vectors -> (n, min(d, truncate_dim)) float32: cut first, then L2-normalised, as peers do."""
    if truncate_dim is not None:
        if not 1 <= truncate_dim <= vectors.shape[1]:
            raise InvalidInputError(f"truncate_dim must be in 1..{vectors.shape[1]}, got {truncate_dim}")
        vectors = vectors[:, :truncate_dim]
    if normalize:
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(norms, 1e-12)
    return np.ascontiguousarray(vectors, dtype=np.float32)


def to_precision(
    vectors: FloatArray, precision: Precision, ranges: FloatArray | None = None
) -> npt.NDArray[np.generic]:
    """(n, d) float32 to another precision, by sentence-transformers' definitions.

    float32: unchanged. binary / ubinary: the signs (> 0), packed 8 a byte, (n, ceil(d / 8)) int8 (offset by -128) or
    uint8. int8 / uint8: each dimension's range cut in 255 steps, (n, d); the range is `ranges` (2, d: minima, maxima)
    or, where None, that of `vectors` itself.
    """
    if precision == "float32":
        return vectors
    if precision in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=1)
        return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    if precision not in ("int8", "uint8"):
        raise InvalidInputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if ranges is None:
        if len(vectors) == 1:
            raise InvalidInputError(f"{precision} needs the range of each dimension: pass several texts, or ranges=")
        ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)]) if len(vectors) else np.zeros((2, 1), np.float32)
    low, high = ranges.astype(np.float32)
    steps = (high - low) / 255
    steps = np.where(steps == 0, 1, steps)
    levels = np.clip(np.floor((vectors - low) / steps), 0, 255)
    return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)
