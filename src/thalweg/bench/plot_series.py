"""Rows to the lines of a picture or table.

What there is follows from the rows alone: points that differ in nothing but their length are a line over lengths, in
nothing but V a sweep of V, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from thalweg.bench.machine import loaded
from thalweg.bench.point import NOT_RUN, OK, THALWEG, Point

Row = dict[str, Any]
Over = Literal["length", "vertical_chunk_size", "inner_chunk", "batch"]


@dataclass
class Line:
    """Points that differ in one thing only, ascending in it."""

    point: Point
    by_x: dict[int, Row] = field(default_factory=dict)

    @property
    def rows(self) -> list[tuple[int, Row]]:
        return sorted(self.by_x.items())

    @property
    def done(self) -> list[tuple[int, Row]]:
        return [(x, row) for x, row in self.rows if row["status"] == OK]

    @property
    def failed(self) -> tuple[int, Row] | None:
        """The first point that took too much."""
        return next(((x, row) for x, row in self.rows if row["status"] not in (OK, NOT_RUN)), None)

    @property
    def whole(self) -> Row | None:
        """The same run horizontally, for a sweep of V."""
        return next((row for _, row in self.rows if Point.from_json(row["point"]).vertical_chunk_size is None), None)


def lines(rows: Iterable[Row], over: Over, at_least: int = 2) -> list[Line]:
    """The lines over one field that have so many points, one of them measured; the latest row of a point counts."""
    found: dict[Any, Line] = {}
    for row in rows:
        point = Point.from_json(row["point"])
        x = getattr(point, over)
        if x is None and over == "vertical_chunk_size" and point.runner == THALWEG:
            x = point.length
        if x is not None:
            line = found.setdefault(point.without(over), Line(point))
            if row["status"] == OK or x not in line.by_x:
                line.by_x[x] = row
    return [line for line in found.values() if len(line.by_x) >= at_least and line.done]


def pictures(rows: Sequence[Row]) -> Iterator[tuple[str, Over, list[Line]]]:
    """Everything that the rows can be drawn or tabled as: a name, what it runs over, its lines."""
    for (batch, dtype, device), lot in _by(rows, lambda p: (p.batch, p.dtype, p.device)).items():
        drawn = _main(lines([row for row in lot if "inner_chunk" not in row["point"]], "length"))
        if drawn:
            yield _name("length", batch, dtype, device), "length", drawn
    ours = [row for row in rows if row["point"]["runner"] == THALWEG]
    for (length, batch, dtype, device), lot in _by(ours, lambda p: (p.length, p.batch, p.dtype, p.device)).items():
        fixed = [row for row in lot if "tokens_per_step" not in row["point"]]
        usual = [row for row in fixed if "inner_chunk" not in row["point"]]
        for name, over, group in (("chunk-v", "vertical_chunk_size", usual), ("chunk-q", "inner_chunk", fixed)):
            drawn = lines(group, over, 4)  # type: ignore[arg-type]
            if drawn:
                yield _name(f"{name}-{length}", batch, dtype, device), over, drawn  # type: ignore[misc]
    for (length, dtype, device), lot in _by(rows, lambda p: (p.length, p.dtype, p.device)).items():
        drawn = lines([row for row in lot if "inner_chunk" not in row["point"]], "batch")
        if drawn:
            yield _name(f"batch-{length}", 1, dtype, device), "batch", drawn


def _main(found: list[Line]) -> list[Line]:
    """Without what other studies happen to share: a V with less than half of the lengths of its model's other lines."""
    most: dict[str, int] = {}
    for line in found:
        most[line.point.name] = max(most.get(line.point.name, 0), len(line.by_x))
    return [
        line
        for line in found
        if line.point.runner != THALWEG or line.point.horizontal or 2 * len(line.by_x) >= most[line.point.name]
    ]


def _name(name: str, batch: int, dtype: str, device: str) -> str:
    words = [name, *([f"of-{batch}"] if batch > 1 else []), *([] if dtype == "float32" else [dtype])]
    return "-".join([*words, *([] if device == "cpu" else [device.replace(":", "")])])


def seconds(row: Row) -> float:
    """Time per text."""
    return float(row["seconds_per_text"]["median"])


def memory(row: Row) -> float:
    """Peak memory in GiB: of the device, where it has memory of its own."""
    found = row["memory"]
    return float(found.get("cuda_allocated", found["peak_rss"])) / 2**30


def single(row: Row) -> bool:
    """Whether there was one timed run only, so that nothing is known of the spread."""
    return len(row["seconds"]["all"]) == 1


def disturbed(row: Row) -> bool:
    """Whether other programs used the processor meanwhile."""
    return loaded(row.get("other_cores"), row.get("machine", {}).get("cores"))


def _by(rows: Iterable[Row], of: Callable[[Point], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(of(Point.from_json(row["point"])), []).append(row)
    return dict(sorted(groups.items()))
