"""The folder of a study: `results.jsonl`, one line a point, added to and never rewritten; `results.csv` from it.

A line is on the disk before the next point begins, so a study goes on after any kill with the first point that has no
line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from thalweg.bench.point import NOT_RUN, OK, OUT_OF_MEMORY, TIME_LIMIT, Point
from thalweg.errors import CorpusError, InvalidInputError
from thalweg.storage.durable import cure, in_words, write_durably
from thalweg.storage.lines import Lines, read_lines
from thalweg.storage.lock import hold

LINES, TABLE = "results.jsonl", "results.csv"

LIMITED = (OUT_OF_MEMORY, TIME_LIMIT, NOT_RUN)
"""What came of a limit."""

FINAL = (OK, *LIMITED)
"""What is not tried again; an error is, by the next run."""

LASTING = ("cpu", "cores", "capability", "gpu", "torch", "thalweg")
"""Parts of a row's machine that must be the same for figures to stand side by side."""


class Results:
    """The rows of a folder, by point. A context manager: one process at a time writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = hold(folder)
        try:
            self._by_key = {_key(row): row for row in read_rows(folder)}
            self._lines = Lines(folder / LINES)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.write_table()
        finally:
            self._lines.close()
            self._lock.release()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The latest of every point."""
        return list(self._by_key.values())

    def row(self, point: Point) -> dict[str, Any] | None:
        """What is known of a point, None if it has still to be run."""
        row = self.latest(point)
        return row if row is not None and row["status"] in FINAL else None

    def latest(self, point: Point) -> dict[str, Any] | None:
        """A point's row, an error as well."""
        return self._by_key.get(point.key)

    def forget_limits(self) -> None:
        """Have points run again that took too much, or were not run for that reason."""
        self._by_key = {key: row for key, row in self._by_key.items() if row["status"] not in LIMITED}

    def add(self, point: Point, result: dict[str, Any]) -> dict[str, Any]:
        """Append a row and have it on the disk.

        Raises:
            InvalidInputError: it is of another machine or another version than the rows before.
            CorpusError: it cannot be written.
        """
        row = {"point": point.to_json(), **result}
        self._check_machine(row)
        try:
            self._lines.append(row)
        except OSError as error:
            raise CorpusError(
                f"{in_words(error)}; what was measured before is kept: {cure(error)}, and the same command goes on"
            ) from error
        self._by_key[point.key] = row
        return row

    def _check_machine(self, row: dict[str, Any]) -> None:
        here: dict[str, Any] = row.get("machine", {})
        for earlier in self.rows:
            there: dict[str, Any] = earlier.get("machine", {})
            for name in LASTING:
                if name in here and name in there and here[name] != there[name]:
                    raise InvalidInputError(
                        f"{self.folder} holds results of {name} {there[name]!r}, but this is {here[name]!r}; figures "
                        "of two machines or versions do not stand side by side: use another --out"
                    )

    def write_table(self) -> None:
        """results.csv anew: a line for every point, nested fields with dots."""
        write_table(self.folder / TABLE, self.rows)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a folder, oldest first; of a point that was run again the latest."""
    try:
        return list({_key(row): row for _, row in read_lines(folder / LINES)}.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{folder / LINES} holds a line that is no point ({error!r}); take it out") from error


def write_table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows as CSV."""
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_durably(path, lambda stream: stream.write(text.getvalue().encode()))


def _key(row: dict[str, Any]) -> str:
    return Point.from_json(row["point"]).key


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            flat[prefix + name] = value
    return flat
