"""How far two sets of vectors of the same texts agree: by themselves, and in which texts they take for neighbours."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg.errors import InvalidInputError

Floats = npt.NDArray[np.float32]

SAME_COSINE, SAME_NEIGHBOURS = 0.999, 0.99
"""From these on, vectors of the two sides may stand in one index: the least cosine, and the neighbours across."""

SAME_RANKING = 0.95
"""From here on the two sides find the same, each with its own index."""


@dataclass(frozen=True)
class Agreement:
    """n vectors; of the neighbours the k nearest by cosine, over `queries` of the texts.

    cosine: mean, least, and percentiles of a text's cosine between the two sides, None where their widths differ;
    farthest: the texts of the least cosines, as row numbers; largest_difference: of two numbers of unit vectors;
    overlap: share of neighbours that both sides name; nearest: share of texts with the same nearest one;
    spearman: mean rank correlation of a text's similarities to all others;
    across: as overlap, where a text of B looks among the vectors of A, None where the widths differ.
    """

    n: int
    k: int
    queries: int
    cosine: dict[str, float] | None
    farthest: list[int]
    largest_difference: float | None
    overlap: float | None
    nearest: float | None
    spearman: float | None
    across: float | None

    @property
    def verdict(self) -> str:
        """What follows for a user with vectors of A who thinks of B, in one sentence."""
        alike = self.cosine is not None and self.cosine["min"] >= SAME_COSINE
        if alike and (self.across is None or self.across >= SAME_NEIGHBOURS):
            return "the same vectors for practical purposes: A's may stay in an index that B goes on with"
        if self.overlap is None:
            return "not the same vectors; more texts would show whether they find the same neighbours"
        if self.overlap >= SAME_RANKING:
            return "not the same vectors, but nearly the same neighbours: change, and embed everything anew with B"
        return "they find different neighbours: judge by a task of your own before you change"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def agreement(a: Floats, b: Floats, *, k: int = 10, most_queries: int = 1000, seed: int = 0) -> Agreement:
    """Compare a (n, d) with b (n, e): row i of both is the same text.

    Raises:
        InvalidInputError: no rows, or not the same number of them.
    """
    if len(a) != len(b) or len(a) == 0:
        raise InvalidInputError(f"two vectors of each of n >= 1 texts are needed, got {len(a)} and {len(b)}")
    a, b = _unit(a), _unit(b)
    n, alike = len(a), a.shape[1] == b.shape[1]
    cosine = np.einsum("nd,nd->n", a, b) if alike else None
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(n)[:most_queries]) if n > 1 else np.arange(0)
    k = min(k, n - 1)
    found = [_ranked(a, b, int(i), k, alike) for i in chosen]
    return Agreement(
        n=n,
        k=k,
        queries=len(chosen),
        cosine=None if cosine is None else _described(cosine),
        farthest=[] if cosine is None else np.argsort(cosine, kind="stable")[:3].tolist(),
        largest_difference=float(np.abs(a - b).max()) if alike else None,
        overlap=_mean([each[0] for each in found]),
        nearest=_mean([each[1] for each in found]),
        spearman=_mean([each[2] for each in found]) if n > 2 else None,
        across=_mean([each[3] for each in found]) if alike else None,
    )


def _ranked(a: Floats, b: Floats, i: int, k: int, alike: bool) -> tuple[float, float, float, float]:
    """How A and B agree on text i: shared neighbours, the same nearest one, rank correlation, neighbours across."""
    by_a, by_b = np.delete(a @ a[i], i), np.delete(b @ b[i], i)
    near_a, near_b = _nearest(by_a, k), _nearest(by_b, k)
    across = len(np.intersect1d(near_a, _nearest(np.delete(a @ b[i], i), k))) / k if alike else 0.0
    shared = len(np.intersect1d(near_a, near_b)) / k
    return shared, float(near_a[0] == near_b[0]), _spearman(by_a, by_b), across


def _nearest(similarities: Floats, k: int) -> npt.NDArray[np.intp]:
    return np.argsort(-similarities, kind="stable")[:k]


def _spearman(x: Floats, y: Floats) -> float:
    """Rank correlation; ties, which vectors of different texts hardly have, take the order they come in."""
    a, b = (np.argsort(np.argsort(each, kind="stable"), kind="stable").astype(np.float64) for each in (x, y))
    return float(np.corrcoef(a, b)[0, 1]) if len(x) > 1 else 1.0


def _described(cosine: Floats) -> dict[str, float]:
    points = {"p1": 1, "p5": 5, "p50": 50}
    percentiles = {name: float(np.percentile(cosine, at)) for name, at in points.items()}
    return {"mean": float(cosine.mean()), "min": float(cosine.min()), **percentiles}


def _unit(vectors: Floats) -> Floats:
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
