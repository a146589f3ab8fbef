"""kill -9 at random moments: the resumed run equals the undisturbed one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from ..corpus.corpora import assert_same_output, write_corpus
from ..corpus.tiny import write_model

KILLS = 10

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")


def command(arguments: list[str]) -> None:
    """`thalweg` as the body of a process."""
    import torch

    from thalweg.cli.app import app

    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    app(arguments)


@pytest.fixture(scope="module")
def forked() -> multiprocessing.context.ForkServerContext:
    """Processes that need not import torch each time; in all else they are like any other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["thalweg.corpus", "thalweg.cli.app", __name__])
    return context


def start(context: multiprocessing.context.ForkServerContext, arguments: list[object]) -> BaseProcess:
    process = context.Process(target=command, args=([str(argument) for argument in arguments],))
    process.start()
    return process


@pytest.mark.kill
@pytest.mark.parametrize(
    ("long_words", "chosen"),
    # 200,000 and 40,000 tokens
    [(140_000, ["--sections", 100]), (30_000, []), (30_000, ["--state-every", 3000])],
    ids=["sections", "whole", "states"],
)
def test_a_run_killed_ten_times_equals_an_undisturbed_one(
    forked: multiprocessing.context.ForkServerContext, tmp_path: Path, long_words: int, chosen: list[object]
) -> None:
    model = write_model(tmp_path / "model", n_layers=1)
    docs = write_corpus(tmp_path / "docs", long_words=long_words, broken_words=15_000)
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    options = ["--model", model, "--save-every", 0.1, *chosen]
    began = time.monotonic()
    undisturbed = start(forked, ["embed", docs, "-o", whole, *options])
    undisturbed.join(100)
    seconds = time.monotonic() - began
    assert undisturbed.exitcode == 3
    rng = random.Random(7)
    kills = saved = 0
    while True:
        # On a machine that changes its speed all ten may come before anything is saved.
        enough = kills >= KILLS and (saved > 0 or kills >= 6 * KILLS)
        run = start(forked, ["embed", docs, "-o", out, "--resume", *options])
        if not enough:
            # Any moment of a run, the last ones included, when the output is put together and the work folder removed.
            run.join(rng.uniform(0, seconds))
        else:
            run.join(100)
        if run.is_alive():
            assert run.pid is not None
            os.kill(run.pid, signal.SIGKILL)
            run.join()
            kills += 1
            saved += bool(list(tmp_path.glob("out.parquet.parts/part-*")))
            continue
        assert run.exitcode == 3
        assert_same_output(whole, out)
        assert not list(tmp_path.glob("out.parquet.parts"))
        if enough:
            break
        out.unlink()
    assert saved > 0, "some of the killed runs had saved rows"
