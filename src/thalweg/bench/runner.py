"""Points to results: each in a process of its own, watched from outside.

A point that takes too much memory or time is ended, and that is its result; the longer texts of the same line are then
not tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from thalweg.bench.estimate import Estimate
from thalweg.bench.point import NOT_RUN, OUT_OF_MEMORY, TIME_LIMIT, Point
from thalweg.bench.process import Limits, result_of
from thalweg.bench.results import Results
from thalweg.bench.worker import work


@dataclass(frozen=True)
class Status:
    """How far a study has come. left: seconds, None before anything is known."""

    done: int
    total: int
    left: float | None
    point: Point | None
    row: dict[str, Any] | None = None


def run_study(
    points: Sequence[Point],
    results: Results,
    limits: Limits,
    *,
    go_beyond: bool = False,
    on_status: Callable[[Status], None] = lambda status: None,
) -> list[dict[str, Any]]:
    """Run the points that have no result yet, in order; the rows of all of them.

    Args:
        go_beyond: try longer texts although a shorter one of the same line took too much.
        on_status: called before and after every point.

    Raises:
        InvalidInputError: the folder holds results of another machine.
        MissingExtraError: psutil is not installed.
    """
    waiting = [point for point in points if results.row(point) is None]
    estimate = Estimate(points, results)
    for position, point in enumerate(waiting):
        done = len(points) - len(waiting) + position
        left = estimate.seconds(waiting[position:])
        on_status(Status(done, len(points), left, point))
        failed = None if go_beyond else _failed_before(point, results.rows)
        if failed is not None:
            added = results.add(point, {"status": NOT_RUN, "message": failed})
        else:
            added = results.add(point, run_point(point, limits))
            estimate.learn(point, added)
        on_status(Status(done + 1, len(points), estimate.seconds(waiting[position + 1 :]), point, added))
    return [row for point in points if (row := results.latest(point)) is not None]


def run_point(point: Point, limits: Limits) -> dict[str, Any]:
    """One point in its own process: its result, whatever becomes of it."""
    began = time.perf_counter()
    result = result_of(work, point.to_json(), limits)
    return {**result, "wall_seconds": time.perf_counter() - began, "at": time.strftime("%Y-%m-%dT%H:%M:%S")}


def _failed_before(point: Point, rows: Iterable[dict[str, Any]]) -> str | None:
    """Why a point need not be tried: a shorter text, or a smaller batch, alike in all else, took too much."""
    for row in rows:
        other = Point.from_json(row["point"])
        if row["status"] in (OUT_OF_MEMORY, TIME_LIMIT) and _less(other, point):
            size = f"{other.batch} × {other.length:,} tokens" if other.batch > 1 else f"{other.length:,} tokens"
            return f"{row['status']} at {size}"
    return None


def _less(a: Point, b: Point) -> bool:
    return a.length <= b.length and a.batch <= b.batch and replace(a, length=b.length, batch=b.batch) == b
