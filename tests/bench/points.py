"""Points small enough for a test."""

from __future__ import annotations

from typing import Any

from thalweg.bench.point import THALWEG, Point

TINY: dict[str, Any] = {"layers": 1, "vocabulary": 64, "threads": 1, "warmup": 0, "repeat": 2}


def tiny(length: int = 48, **changes: Any) -> Point:
    """One layer of a small shape."""
    return Point(**{"runner": THALWEG, "shape": "mamba2-130m", "length": length, **TINY, **changes})


def row(point: Point, seconds: float = 1.0, gib: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A row as a process would have left it."""
    times = {"median": seconds, "min": 0.9 * seconds, "max": 1.1 * seconds}
    return {
        "point": point.to_json(),
        "status": "ok",
        "seconds": {**times, "all": list(times.values())},
        "seconds_per_text": times,
        "tokens_per_s": {name: point.length / value for name, value in times.items()},
        "memory": {"rss_before": 1 << 20, "peak_rss": int(gib * 2**30)},
        "machine": {"cpu": "abacus", "threads": 1, "torch": "2", "capability": "none", "memory": 2**34},
        "wall_seconds": 3 * seconds + 2,
        **changes,
    }
