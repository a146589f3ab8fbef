"""`thalweg mine`: what it writes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from .conftest import Command


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_pairs(path: Path, n: int) -> Path:
    rows = [{"query": f"swan number {i}", "positive": f"the river at bridge {i}", "negative": "x"} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    return path


@pytest.mark.parametrize("library", ["thalweg", "sentence-transformers"])
def test_mining(thalweg_command: Command, model_folder: Path, tmp_path: Path, library: str) -> None:
    if library == "sentence-transformers":
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
        model = tmp_path / "static"
        SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu").save(str(model))
    else:
        model = model_folder
    out = tmp_path / "triples.jsonl"
    data = write_pairs(tmp_path / "pairs.jsonl", 12)
    arguments = ["mine", data, "-o", out, "--model", model, "--library", library, "-n", 2]
    result = thalweg_command(*arguments)
    assert result.exit_code == 0, result.output
    assert "1 duplicate row left out" in result.stderr
    assert "13 negatives that rows had before replaced" in result.stderr
    assert f"12 rows, 24 negatives out of 12 texts for 12 queries → {out}" in result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    positives = {row["positive"] for row in rows}
    assert len(rows) == 12
    for row in rows:
        assert len(set(row["negatives"])) == 2
        assert set(row["negatives"]) < positives - {row["positive"]}
    again = thalweg_command(*arguments)
    assert (again.exit_code, f"{out} exists; replace it with --overwrite" in again.stderr) == (1, True)
    assert thalweg_command(*arguments, "--overwrite", "--quiet").output == ""


def test_errors_in_one_line(thalweg_command: Command, model_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"query": 3, "positive": "p"}\n')
    result = thalweg_command("mine", data, "-o", tmp_path / "out.jsonl", "--model", model_folder)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {data}, line 1, column 'query': 3 is a number, but a text is needed")
    assert result.stderr.count("\n") == 1
    result = thalweg_command("mine", data, "-o", tmp_path / "out.csv", "--model", tmp_path / "no-model")
    assert "must end in .parquet or .jsonl" in result.stderr


@pytest.mark.parametrize("library", ["thalweg", "sentence-transformers"])
def test_models_and_devices_that_cannot_be_had(thalweg_command: Command, tmp_path: Path, library: str) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl", 3)
    (tmp_path / "empty").mkdir()
    for options, message in (
        (["--model", tmp_path / "empty"], str(tmp_path / "empty")),
        (["--model", ""], "''"),
        (["--model", "default", "--device", "gpu"], "device 'gpu' cannot be used: it must be cpu, cuda"),
        (["--model", "default", "--device", "mps"], "device 'mps' cannot be used: it takes a Mac"),
    ):
        arguments = ["mine", data, "-o", tmp_path / "out.jsonl", "--library", library, *options]
        result = thalweg_command(*arguments)
        assert result.exit_code == 1, result.output
        assert message in result.stderr
        assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "options",
    [
        ["--resume", "--overwrite"],
        ["-n", "5", "--range-max", "4"],
        ["-n", "0"],
        ["--strategy", "best"],
        ["--library", "sentence-transformers"],
        ["--margin", "nan"],
        ["--relative-margin", "inf"],
        ["--seed", "-1"],
        ["--range-max", "9" * 20],
        ["-n", "9" * 20, "--range-max", "9" * 21],
    ],
)
def test_wrong_usage(thalweg_command: Command, tmp_path: Path, options: list[str]) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl", 3)
    result = thalweg_command("mine", data, "-o", tmp_path / "out.jsonl", *options)
    assert result.exit_code == 2
    assert not (tmp_path / "out.jsonl").exists()
