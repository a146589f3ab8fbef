"""How long the rest of a study will take, from what its points have taken so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thalweg.bench.point import Point
from thalweg.bench.results import Results


class Estimate:
    """Seconds for each operation, per model and over all; a point's other seconds are those of its start."""

    def __init__(self, points: Sequence[Point], results: Results) -> None:
        self._seen: dict[str, list[float]] = {}  # model → operations, seconds
        self._starts: list[float] = []
        for point in points:
            row = results.row(point)
            if row is not None:
                self.learn(point, row)

    def learn(self, point: Point, row: dict[str, Any]) -> None:
        """Take in a row."""
        if "seconds" not in row or "wall_seconds" not in row:
            return
        for name in (_model(point), ""):
            seen = self._seen.setdefault(name, [0.0, 0.0])
            seen[0] += point.cost
            seen[1] += row["seconds"]["median"]
        self._starts.append(max(row["wall_seconds"] - sum(row["seconds"]["all"]), 0.0))

    def seconds(self, points: Sequence[Point]) -> float | None:
        """For these points; None before anything is known."""
        if "" not in self._seen:
            return None if points else 0.0
        start = sum(self._starts) / len(self._starts)
        return sum(start + self._passes(point) for point in points)

    def _passes(self, point: Point) -> float:
        operations, seconds = self._seen.get(_model(point), self._seen[""])
        once = point.cost * seconds / operations
        passes = point.repeat if point.budget is None else min(point.repeat, 1 + point.budget // max(once, 1e-9))
        return once * passes


def _model(point: Point) -> str:
    return f"{point.runner} {point.shape or point.model} {point.dtype}"
