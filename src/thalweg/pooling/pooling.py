"""From hidden vectors to one vector a document or section.

`last` takes the final hidden vector at the last token (EOS); `mean` sums the hidden vectors of all tokens as they
come by, so neither needs more than one vector a document.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from thalweg.pooling.vectors import FloatArray

Pooling: TypeAlias = Literal["last", "mean"]

POOLINGS: tuple[str, ...] = get_args(Pooling)


class RunningMean:
    """Mean of vectors that arrive as sums, accumulated in float64 so that ten million of them lose nothing."""

    def __init__(self, width: int) -> None:
        self._sum = np.zeros(width, dtype=np.float64)
        self._count = 0

    def add(self, total: npt.NDArray[np.floating], count: int) -> None:
        """Add the sum (d,) of `count` vectors."""
        self._sum += total
        self._count += count

    def take(self) -> FloatArray:
        """(d,) float32: the mean so far; starts anew."""
        mean = (self._sum / self._count).astype(np.float32)
        self._sum[:] = 0
        self._count = 0
        return mean
