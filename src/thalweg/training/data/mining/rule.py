"""Which of the nearest texts are negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from thalweg.errors import InvalidInputError
from thalweg.pooling.vectors import FloatArray
from thalweg.training.data.mining.neighbours import Neighbours


@dataclass(frozen=True)
class Rule:
    """Which of the nearest texts are negatives. Ranks count from 0, the positives of the query left out.

    n: negatives of a row; range_min, range_max: ranks from which they are taken, the last not included; margin: what a
    negative's score must be below the positive's by; relative_margin: the same, as a share of the positive's score;
    strategy: "random" draws among them, "top" takes the nearest; seed: of the draws.

    The default is that of the paper's synthetic data: a random one of the 10 nearest.
    """

    n: int = 1
    range_min: int = 0
    range_max: int = 10
    margin: float | None = None
    relative_margin: float | None = None
    strategy: Literal["random", "top"] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InvalidInputError(f"n must be at least 1, got {self.n}")
        if not 0 <= self.range_min <= self.range_max - self.n:
            raise InvalidInputError(
                f"ranks {self.range_min} to {self.range_max} have no room for {self.n} negatives: range_min must be at "
                "least 0, and range_max at least range_min + n"
            )
        for name in ("margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InvalidInputError(f"{name} must be a finite number, got {value}")
        if self.strategy not in ("random", "top"):
            raise InvalidInputError(f"strategy must be 'random' or 'top', got {self.strategy!r}")


def choose(found: Neighbours, positive_scores: FloatArray, rule: Rule, draw: np.random.Generator) -> Neighbours:
    """(m, n) negatives among the nearest (m, range_max), nearest first; -1 and -inf where there are no more.

    Args:
        positive_scores: (m,) of each row's own positive.
    """
    limit = np.full(len(positive_scores), np.inf, np.float32)
    if rule.margin is not None:
        limit = np.minimum(limit, positive_scores - rule.margin)
    if rule.relative_margin is not None:
        limit = np.minimum(limit, positive_scores - np.abs(positive_scores) * rule.relative_margin)
    passes = (found.documents >= 0) & (found.scores <= limit[:, None])
    passes[:, : rule.range_min] = False
    # The first n in the order of a draw, or of the ranks; what does not pass comes last.
    order = draw.random(passes.shape) if rule.strategy == "random" else np.arange(passes.shape[1]) / passes.shape[1]
    columns = np.sort(np.argsort(np.where(passes, order, 2.0), axis=1, kind="stable")[:, : rule.n], axis=1)
    taken = np.take_along_axis(passes, columns, axis=1)
    documents = np.where(taken, np.take_along_axis(found.documents, columns, axis=1), -1)
    scores = np.where(taken, np.take_along_axis(found.scores, columns, axis=1), -np.inf)
    first = np.argsort(~taken, axis=1, kind="stable")
    return Neighbours(
        np.take_along_axis(documents, first, axis=1), np.take_along_axis(scores, first, axis=1).astype(np.float32)
    )
