"""kill -9 in the middle of a run: the rest of it is what it would have been, to the last bit."""

from __future__ import annotations

import json
import os
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from ..corpus.tiny import write_model
from .processes import forkserver, start
from .training_data import write_pairs, write_sts

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")


@pytest.fixture(scope="module")
def forked() -> ForkServerContext:
    return forkserver()


ADAPTERS = [
    *("--recipe", "e5-mistral", "--set", "lora_dropout=0.2", "--set", "state_passing=0.5"),
    *("--set", "vertical_chunk_size=8", "--set", "max_length=24", "--set", "mini_batch_tokens=128"),
]
TAUGHT = ["--recipe", "distill", "--teacher", "thalweg:thalweg-small-en", "--set", "matryoshka=8"]


@pytest.mark.kill
@pytest.mark.parametrize(
    ("recipe", "kill_after"), [(ADAPTERS, [4, 7]), (TAUGHT, [6])], ids=["adapters", "all weights, with a teacher"]
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    forked: ForkServerContext, tmp_path: Path, recipe: list[str], kill_after: list[int]
) -> None:
    """Killed once so many steps are logged: in the first epoch or a later one, at a checkpoint or between two."""
    model = write_model(tmp_path / "base", pooling="last")
    data = [write_pairs(tmp_path / "a.jsonl", 24, negatives=1), write_pairs(tmp_path / "b.jsonl", 16, seed=1)]
    options = [*recipe, "--dev", write_sts(tmp_path / "dev.jsonl")]
    for setting in ("batch_size=8", "epochs=2", "warmup_steps=2", "learning_rate=3e-3", "save_every=2", "dev_every=3"):
        options += ["--set", setting]
    whole, out = tmp_path / "whole", tmp_path / "out"
    undisturbed = start(forked, [model, *data, "-o", whole, *options])
    undisturbed.join(200)
    assert undisturbed.exitcode == 0
    log = tmp_path / "out.run" / "log.jsonl"
    for n_steps in kill_after:
        run = start(forked, [model, *data, "-o", out, "--resume", *options])
        assert run.pid is not None
        while run.is_alive() and _steps(log) < n_steps:
            time.sleep(0.002)
        os.kill(run.pid, signal.SIGKILL)
        run.join()
        assert not out.exists()
        assert list(log.parent.glob("checkpoint-*"))
    last = start(forked, [model, *data, "-o", out, "--resume", *options])
    last.join(200)
    assert last.exitcode == 0
    assert _steps(whole / "log.jsonl") == 10
    assert (out / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not log.parent.exists()


def _steps(log: Path) -> int:
    """Of the last whole line with a loss."""
    lines = log.read_text().splitlines() if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if '"loss"' in line and line.endswith("}")), default=0)
