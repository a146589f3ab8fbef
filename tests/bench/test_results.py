"""The folder of results: nothing is lost, nothing is mixed."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from thalweg.bench.results import LINES, TABLE, Results, read_rows
from thalweg.errors import CorpusError, InvalidInputError

from .points import row, tiny


def test_rows_survive(tmp_path: Path) -> None:
    with Results(tmp_path) as results:
        results.add(tiny(10), row(tiny(10)))
        results.add(tiny(20), {"status": "out of memory", "message": "too much"})
    with Results(tmp_path) as results:
        assert results.row(tiny(10)) is not None
        assert results.row(tiny(20)) is not None
        assert results.row(tiny(30)) is None
    with open(tmp_path / TABLE, newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["status"] for line in table] == ["ok", "out of memory"]
    assert float(table[0]["seconds.median"]) == 1.0
    assert table[0]["point.length"] == "10"


@pytest.mark.parametrize("kept", [0, 1, 40, -2, -1])
def test_a_torn_line_is_cut_off(tmp_path: Path, kept: int) -> None:
    """A crash in the middle of a line costs that line and no other."""
    with Results(tmp_path) as results:
        results.add(tiny(10), row(tiny(10)))
        whole = (tmp_path / LINES).read_bytes()
        results.add(tiny(20), row(tiny(20)))
    second = (tmp_path / LINES).read_bytes()[len(whole) :]
    (tmp_path / LINES).write_bytes(whole + second[:kept])
    with Results(tmp_path) as results:
        assert results.row(tiny(10)) is not None
        assert results.row(tiny(20)) is None
        results.add(tiny(20), row(tiny(20)))
    lines = (tmp_path / LINES).read_text().splitlines()
    assert [json.loads(line)["point"]["length"] for line in lines] == [10, 20]


@pytest.mark.parametrize("line", ["{", "3", "[]", "{}", '{"point": 3}', '{"point": {}}', "[" * 100_000, "\xff"])
def test_a_line_that_is_no_result_is_named(tmp_path: Path, line: str) -> None:
    with Results(tmp_path) as results:
        results.add(tiny(10), row(tiny(10)))
    with (tmp_path / LINES).open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    for read in (read_rows, Results):
        with pytest.raises((CorpusError, InvalidInputError), match=r"results.jsonl holds .* take (it|that line) out"):
            read(tmp_path)


def test_errors_are_tried_again(tmp_path: Path) -> None:
    with Results(tmp_path) as results:
        results.add(tiny(10), {"status": "error", "message": "a bug"})
        assert results.row(tiny(10)) is None
        results.add(tiny(10), row(tiny(10)))
        assert [each["status"] for each in results.rows] == ["ok"]
    (only,) = read_rows(tmp_path)
    assert only["status"] == "ok"


def test_limits_are_forgotten_on_request(tmp_path: Path) -> None:
    with Results(tmp_path) as results:
        results.add(tiny(10), row(tiny(10)))
        results.add(tiny(20), {"status": "time limit", "message": "too long"})
        results.add(tiny(30), {"status": "not run", "message": "time limit at 20 tokens"})
        assert results.row(tiny(30)) is not None
        results.forget_limits()
        assert [results.row(tiny(n)) is not None for n in (10, 20, 30)] == [True, False, False]


def test_another_time_limit_is_the_same_point(tmp_path: Path) -> None:
    with Results(tmp_path) as results:
        results.add(replace(tiny(10), budget=300.0), row(tiny(10)))
        assert results.row(replace(tiny(10), budget=5.0)) is not None


def test_one_writer(tmp_path: Path) -> None:
    with Results(tmp_path), pytest.raises(CorpusError, match="another run is writing"):
        Results(tmp_path)
    Results(tmp_path).__exit__()


def test_machines_are_not_mixed(tmp_path: Path) -> None:
    with Results(tmp_path) as results:
        results.add(tiny(10), row(tiny(10)))
        other = row(tiny(20), machine={"cpu": "slide rule", "threads": 8, "torch": "2"})
        with pytest.raises(InvalidInputError, match=r"cpu 'abacus', but this is 'slide rule'.*use another --out"):
            results.add(tiny(20), other)
        results.add(tiny(30), row(tiny(30), machine={"cpu": "abacus", "threads": 8, "torch": "2"}))
    assert [each["point"]["length"] for each in read_rows(tmp_path)] == [10, 30]
