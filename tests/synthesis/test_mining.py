"""Mined negatives of a run, against a plain search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

import thalweg
from thalweg.synthesis.client import Endpoint as Address
from thalweg.synthesis.mining import Mining
from thalweg.synthesis.run import synthesize
from thalweg.synthesis.settings import Settings
from thalweg.training.data import load_training_data

from ..corpus.tiny import write_model
from .server import endpoint

NEAREST = 10


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of datasets, for each test its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> thalweg.Embedder:
    return thalweg.load(str(write_model(tmp_path_factory.mktemp("model") / "tiny", n_layers=1)))


def mined(folder: Path, mining: Callable[[], Mining | None]) -> dict[str, list[dict[str, Any]]]:
    counts = {"short-long": 3, "short-short": 30, "long-long": 1}
    with endpoint() as server:
        synthesize(
            Settings(counts, languages={"English": 1.0}),  # type: ignore[arg-type]
            Address(server.url, "model"),
            folder,
            mining=mining(),
        )
    files = {name: (folder / "data" / f"{name}.jsonl").read_text(encoding="utf-8") for name in counts}
    return {name: [json.loads(line) for line in content.splitlines()] for name, content in files.items()}


def test_a_run_mines_negatives_where_there_are_none(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    plain = mined(tmp_path / "out", lambda: None)
    assert [len(row["negatives"]) for row in plain["short-short"]] == [0] * 30
    rows = mined(tmp_path / "out", lambda: Mining(embedder))
    assert rows["short-long"] == plain["short-long"]
    nearest = embedder.similarity(
        embedder.encode([f"Instruct: {row['instruction']}\nQuery: {row['query']}" for row in plain["short-short"]]),
        embedder.encode_document([row["positive"] for row in plain["short-short"]]),
    )
    positives = [row["positive"] for row in plain["short-short"]]
    for i, (row, before) in enumerate(zip(rows["short-short"], plain["short-short"], strict=True)):
        (negative,) = row["negatives"]
        assert row.pop("mined") == 1
        assert {**row, "negatives": []} == before
        others = sorted((j for j in range(len(positives)) if j != i), key=lambda j: -nearest[i, j])
        assert negative in [positives[j] for j in others[:NEAREST]]
    (alone,) = rows["long-long"]
    assert (alone["negatives"], alone["mined"]) == ([], 0), "there is no other"
    more = mined(tmp_path / "out", lambda: Mining(embedder, frozenset({"short-long"})))
    for row, before in zip(more["short-long"], plain["short-long"], strict=True):
        assert row["negatives"][0] == before["negatives"][0]
        assert len(row["negatives"]) == 2


def test_training_reads_the_rows(embedder: thalweg.Embedder, tmp_path: Path) -> None:
    rows = mined(tmp_path / "out", lambda: Mining(embedder))
    data = load_training_data([str(tmp_path / "out" / "data")])
    assert {name: len(dataset) for name, dataset in data.datasets.items()} == {
        "long-long": 1,
        "short-long": 3,
        "short-short": 30,
    }
    for row, read in zip(rows["short-short"], data.datasets["short-short"], strict=True):
        assert read == {
            "anchor": f"Instruct: {row['instruction']}\nQuery: {row['query']}",
            "positive": row["positive"],
            "negative_1": row["negatives"][0],
        }


def test_what_is_mined_is_mined_once(
    embedder: thalweg.Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = mined(out, lambda: Mining(embedder))
    encoded: list[Any] = []
    monkeypatch.setattr(embedder, "encode", lambda *args, **options: encoded.append(args))
    assert mined(out, lambda: Mining(embedder)) == first
    assert not encoded
