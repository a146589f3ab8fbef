"""The progress line."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from thalweg.cli import progress
from thalweg.cli.progress import describe, duration, progress_line, resident_bytes
from thalweg.corpus import Status


def status() -> Status:
    status = Status(n_documents=10, n_bytes=1000, documents=4, failed=1, skipped=2, tokens=5000)
    status.meter.read, status.meter.passed = 300, 400
    return status


def test_the_line_says_what_is_done_and_what_is_left() -> None:
    words = describe(status(), seconds=10.0)
    assert words.startswith("4 of 10 documents · 1 failed, 2 skipped · 5,000 tokens, 500/s · 0:10 left · ")
    assert words.endswith(" GiB")


def test_what_is_not_known_is_left_out() -> None:
    assert describe(Status(None, None, documents=1, tokens=50), 1.0).startswith("1 document · 50 tokens, 50/s · ")
    assert describe(Status(None, None, writing=True), 1.0) == "writing the output"


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 3599.6, 3661)] == ["0:00", "1:01", "1:00:00", "1:01:01"]


def test_memory_is_that_of_this_process() -> None:
    memory = resident_bytes()
    assert memory is not None
    assert 2**26 < memory < 2**36


def test_a_terminal_gets_a_line_that_is_redrawn() -> None:
    stream = io.StringIO()
    with progress_line(Console(file=stream, force_terminal=True, width=150), shown=True) as follow:
        follow(status())
        follow(Status(None, None, documents=77))
    assert "77 documents" in stream.getvalue()


@pytest.mark.parametrize(("every", "lines"), [(0.0, 2), (60.0, 0)])
def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, every: float, lines: int) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY", every)
    stream = io.StringIO()
    with progress_line(Console(file=stream, soft_wrap=True), shown=True) as follow:
        follow(status())
        follow(status())
    assert len(stream.getvalue().splitlines()) == lines


def test_quiet_means_quiet() -> None:
    stream = io.StringIO()
    with progress_line(Console(file=stream, force_terminal=True), shown=False) as follow:
        follow(status())
    assert stream.getvalue() == ""
