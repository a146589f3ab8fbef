"""Points in processes of their own: results, failures, limits, and what happens when the parent dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from thalweg.bench.process import Limits, result_of
from thalweg.bench.results import LINES, Results, read_rows
from thalweg.bench.runner import Status, run_point, run_study

from .points import tiny

ROOMY = Limits(memory=8 << 30, seconds=100)


@pytest.mark.subprocess
def test_a_study(tmp_path: Path) -> None:
    """One that works, one that cannot; then again: only what failed by error is run."""
    points = [tiny(32, vertical_chunk_size=16), tiny(8, shape=None, model="/no/such/folder", layers=None)]
    seen: list[Status] = []
    with Results(tmp_path) as results:
        rows = run_study(points, results, ROOMY, on_status=seen.append)
        assert [row["status"] for row in rows] == ["ok", "error"]
    assert [row["status"] for row in read_rows(tmp_path)] == ["ok", "error"]
    assert "/no/such/folder" in read_rows(tmp_path)[1]["message"]
    assert [(status.done, status.row is not None) for status in seen] == [(0, False), (1, True), (1, False), (2, True)]
    assert seen[0].left is None
    assert seen[-1].left == 0
    before = (tmp_path / LINES).read_bytes()
    with Results(tmp_path) as results:
        run_study(points[:1], results, ROOMY)
    assert (tmp_path / LINES).read_bytes() == before


@pytest.mark.subprocess
@pytest.mark.kill
def test_limits() -> None:
    """A point that takes too much is ended, and that is its result."""
    point = tiny(200_000, vertical_chunk_size=64, repeat=50)
    late = run_point(point, Limits(memory=8 << 30, seconds=1))
    assert (late["status"], "limit of 1 seconds" in late["message"]) == ("time limit", True)
    large = run_point(point, Limits(memory=60 << 20, seconds=60))
    assert (large["status"], "0.1 GiB" in large["message"]) == ("out of memory", True)
    assert large["memory"]["peak_rss"] > 60 << 20


@pytest.mark.subprocess
@pytest.mark.kill
@pytest.mark.parametrize(("go_beyond", "expected"), [(False, "not run"), (True, "out of memory")])
def test_longer_texts_are_not_tried(tmp_path: Path, go_beyond: bool, expected: str) -> None:
    small = Limits(memory=60 << 20, seconds=60)
    with Results(tmp_path) as results:
        rows = run_study([tiny(32), tiny(64), tiny(64, vertical_chunk_size=8)], results, small, go_beyond=go_beyond)
    assert [row["status"] for row in rows] == ["out of memory", expected, "out of memory"]
    if not go_beyond:
        assert rows[1]["message"] == "out of memory at 32 tokens"


@pytest.mark.subprocess
def test_a_process_that_dies() -> None:
    """No result, no traceback that is lost: the last line says why."""
    result = result_of(dying, {"last": "no bits left"}, ROOMY)
    assert (result["status"], result["message"]) == ("error", "no bits left")


def dying(task: dict[str, str]) -> dict[str, str]:
    sys.exit(task["last"])


@pytest.mark.subprocess
def test_a_process_is_where_its_parent_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Now, not when the first one was started."""
    result_of(place, {}, ROOMY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THALWEG_TEST", "here")
    assert result_of(place, {"added": 1}, ROOMY, "more") == {"place": [str(tmp_path), "here", "more"], "added": 1}


def place(task: dict[str, int], *more: str) -> dict[str, object]:
    return {"place": [os.getcwd(), os.environ.get("THALWEG_TEST"), *more], **task}


STUDY = """
import json, sys
from pathlib import Path
from thalweg.bench.point import Point
from thalweg.bench.process import Limits
from thalweg.bench.results import Results
from thalweg.bench.runner import run_study
points = [Point.from_json(each) for each in json.loads(sys.argv[1])]
with Results(Path(sys.argv[2])) as results:
    run_study(points, results, Limits(8 << 30, 100))
"""


@pytest.mark.kill
@pytest.mark.subprocess
def test_kill_and_resume(tmp_path: Path) -> None:
    """kill -9 in the middle of the second point: the child goes too, the first result stays, the rest is run later."""
    points = [tiny(16), tiny(500_000, vertical_chunk_size=64), tiny(24)]
    arguments = json.dumps([point.to_json() for point in points])
    run = subprocess.Popen([sys.executable, "-c", STUDY, arguments, str(tmp_path)])
    deadline = time.monotonic() + 60
    children: list[psutil.Process] = []
    while time.monotonic() < deadline and not (len(read_rows(tmp_path)) == 1 and children):
        children = psutil.Process(run.pid).children(recursive=True) if len(read_rows(tmp_path)) == 1 else []
        children = children if any(each.ppid() != run.pid for each in children) else []
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert children
    _, left = psutil.wait_procs(children, timeout=20)
    assert not left, "the point's process, or the one it was forked from, outlived the study"
    assert [row["point"]["length"] for row in read_rows(tmp_path)] == [16]
    first = (tmp_path / LINES).read_bytes()
    points[1] = tiny(20)
    with Results(tmp_path) as results:
        rows = run_study(points, results, ROOMY)
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert (tmp_path / LINES).read_bytes().startswith(first)
