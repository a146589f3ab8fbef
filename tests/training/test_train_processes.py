"""Two processes that train together do what one does with the same batches."""

from __future__ import annotations

import json
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from ..corpus.tiny import write_model
from .processes import forkserver, start, together
from .training_data import write_pairs


@pytest.fixture(scope="module")
def forked() -> ForkServerContext:
    return forkserver()


@pytest.mark.parametrize(
    "recipe",
    [
        ["--recipe", "e5-mistral", "--set", "mini_batch_tokens=64", "--set", "matryoshka=8"],
        ["--recipe", "distill", "--teacher", "thalweg:thalweg-small-en"],
    ],
    ids=["adapters, gradient cache", "all weights, teacher"],
)
def test_two_processes_have_the_gradients_of_one(forked: ForkServerContext, tmp_path: Path, recipe: list[str]) -> None:
    """Negatives and similarities are those of the whole batch, wherever its texts are; texts of different lengths, so
    that the processes have different numbers of mini-batches."""
    model = write_model(tmp_path / "base", pooling="last")
    data = [write_pairs(tmp_path / "a.jsonl", 24, negatives=1), write_pairs(tmp_path / "b.jsonl", 16, seed=1, words=20)]
    options = [*recipe, "--set", "batch_size=8", "--set", "warmup_steps=1", "--set", "max_steps=2"]
    gradients = {}
    for name, environments in (("one", [{}]), ("two", together(2))):
        path = tmp_path / f"{name}.pt"
        arguments = [model, *data, "-o", tmp_path / name, "-q", *options]
        processes = [start(forked, arguments, environment=each, gradients=path) for each in environments]
        for process in processes:
            process.join(200)
            assert process.exitcode == 0
        gradients[name] = torch.load(path)
    scale = torch.stack([one.norm() for one in gradients["one"].values()]).norm()
    assert scale > 0.01
    for name, one in gradients["one"].items():
        assert (one - gradients["two"][name]).norm() <= 1e-5 * scale, name
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for one, two in zip(*logs, strict=True):
        assert one["tokens"] == two["tokens"]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert logs[1][0]["loss"] == pytest.approx(logs[0][0]["loss"], rel=1e-5)
