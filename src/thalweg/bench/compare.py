"""Two models, or one in two settings, on the user's own texts: vectors, speed and memory."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.assets import DEFAULT
from thalweg.bench.agreement import Agreement, agreement
from thalweg.bench.compare_worker import SETTINGS, Side, Task, work
from thalweg.bench.point import OK
from thalweg.bench.process import Limits, result_of
from thalweg.errors import InvalidInputError, MeasurementError


@dataclass(frozen=True)
class Comparison:
    """a, b: what each side's process found out (`compare_worker.embed`); rows: what the vectors stand for."""

    a: dict[str, Any]
    b: dict[str, Any]
    agreement: Agreement
    rows: list[dict[str, Any]]

    @property
    def unread(self) -> list[dict[str, str]]:
        """What at least one side could not read; it is left out of both."""
        return list({each["id"]: each for each in [*self.a["unread"], *self.b["unread"]]}.values())

    def to_json(self) -> dict[str, Any]:
        sides = {name: {k: v for k, v in side.items() if k != "rows"} for name, side in (("a", self.a), ("b", self.b))}
        farthest = [self.rows[i]["id"] for i in self.agreement.farthest]
        return {**sides, "agreement": {**self.agreement.to_json(), "farthest": farthest}}


def parse_settings(given: Iterable[str]) -> dict[str, Any]:
    """`dtype=bfloat16,vertical_chunk_size=256`, or one setting at a time, to a dict.

    Raises:
        InvalidInputError: an unknown setting, or a value of the wrong kind.
    """
    settings: dict[str, Any] = {}
    for pair in (pair for text in given for pair in re.split(r",(?=\w+=)", text)):
        name, equals, value = pair.partition("=")
        if not equals or name not in SETTINGS:
            raise InvalidInputError(f"{pair!r} is no setting; write NAME=VALUE with one of {', '.join(SETTINGS)}")
        if SETTINGS[name] is int and not (value.isdecimal() and int(value) > 0):
            raise InvalidInputError(f"{name} must be a whole number of at least 1, got {value!r}")
        settings[name] = SETTINGS[name](value)
    return settings


def compare(
    a: Side,
    b: Side,
    task: Task,
    limits: Limits,
    *,
    k: int = 10,
    on_side: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Embed the texts of `task` with both sides, each in a process of its own, and hold the vectors together.

    Raises:
        MeasurementError: a side that failed, or took more than the limits.
        InvalidInputError: nothing that both sides have a vector of.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="thalweg-compare-") as folder:
        for name, side in (("A", a), ("B", b)):
            on_side(name)
            path = Path(folder) / name
            task = replace(task, side=side)
            result = result_of(work, task.to_json(), limits, str(path))
            if result["status"] != OK:
                raise MeasurementError(f"{name} ({describe(side)}): {result['status']}: {result['message']}")
            vectors = np.fromfile(path, dtype=np.float32).reshape(len(result["rows"]), result["dimension"])
            found.append((result, vectors))
    (left, a_vectors), (right, b_vectors) = found
    a_rows, b_rows = _shared(left["rows"], right["rows"])
    both = agreement(a_vectors[a_rows], b_vectors[b_rows], k=k)
    return Comparison(left, right, both, [left["rows"][i] for i in a_rows])


def _shared(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Rows of both sides that stand for the same text.

    Raises:
        InvalidInputError: there is none, or sections do not begin at the same characters.
    """
    rows = {(row["document"], row["section"]): i for i, row in enumerate(b)}
    pairs = [(i, rows[key]) for i, row in enumerate(a) if (key := (row["document"], row["section"])) in rows]
    if not pairs:
        raise InvalidInputError("there is no text that both sides could embed")
    if any(a[i]["start"] != b[j]["start"] for i, j in pairs):
        raise InvalidInputError(
            "the two models cut sections at different characters, as their tokens differ; compare without sections"
        )
    return [i for i, _ in pairs], [j for _, j in pairs]


def describe(side: Side) -> str:
    """The side in words."""
    settings = ", ".join(f"{name}={value}" for name, value in side.settings.items())
    return (side.model or DEFAULT) + (f", {settings}" if settings else "")
