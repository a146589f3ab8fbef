"""The bar of `encode`."""

from __future__ import annotations

import sys

import pytest
import tqdm.auto

import thalweg
from thalweg.embedder.progress_bar import progress_bar
from thalweg.engine.results import Progress


def test_it_counts_texts_and_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    thalweg.load().encode(["the river", "runs", "to the sea"], show_progress_bar=True)
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.splitlines()[-1].split("\r")[-1].startswith("Embedding: 100%")
    assert "3/3" in streams.err
    assert "tokens/s]" in streams.err


def test_it_moves_within_a_long_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("thalweg.embedder.progress_bar.time.perf_counter", lambda: next(clock))
    with progress_bar(1, shown=True) as report:
        assert report is not None
        for step in range(1, 4):
            report(Progress(tokens=1000 * step, documents=0, in_flight=1, steps=step))
    shown = capsys.readouterr().err
    assert shown.count("1,000 tokens/s") >= 3


def test_it_is_the_one_that_notebooks_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tqdm.auto` decides between a widget and text; rich drew an empty box."""
    bars = []

    class Bar(tqdm.auto.tqdm):
        def __init__(self, *arguments: object, **settings: object) -> None:
            super().__init__(*arguments, **settings)
            bars.append(self)

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    with progress_bar(2, shown=True) as report:
        assert report is not None
        report(Progress(tokens=5, documents=2, in_flight=0, steps=1))
    assert [(bar.n, bar.total, bar.unit) for bar in bars] == [(2, 2, "text")]


def test_nothing_is_imported_or_shown_unless_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    thalweg.load().encode(["the river"])
    assert capsys.readouterr().err == ""
