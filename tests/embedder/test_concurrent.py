"""Calls at the same time: one engine, everybody's own vectors, and none waits for another's long text."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg
from tests.corpus.tiny import make_text, write_model
from thalweg.embedder.cancelling import Stopped, stoppable
from thalweg.engine.results import Progress


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> thalweg.Embedder:
    return thalweg.load(write_model(tmp_path_factory.mktemp("concurrent")))


def test_threads_get_their_own_vectors(model: thalweg.Embedder) -> None:
    texts = [[make_text(1 + (7 * i + j) % 400) for j in range(1 + i % 9)] for i in range(24)]
    wanted = [model.encode(few) for few in texts]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(model.encode, texts), wanted, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_query_does_not_wait_for_a_long_text(model: thalweg.Embedder) -> None:
    """While another thread embeds a long text the query is there after a few of its steps, not after all of them."""
    steps = []
    begun = threading.Event()

    def follow(progress: Progress) -> None:
        steps.append(progress.steps)
        begun.set()

    def long() -> None:
        list(model.encode_stream([make_text(60_000)], progress=follow))

    thread = threading.Thread(target=long)
    thread.start()
    assert begun.wait(60)
    before = len(steps)
    model.encode("a query")
    between = len(steps) - before
    assert thread.is_alive()
    thread.join()
    # Steps of this model take less than threads take to change places, so that some more may pass than the two that it
    # waits for.
    assert len(steps) > 50
    assert between <= len(steps) // 4


def test_a_bad_text_of_one_thread_is_no_other_threads_business(model: thalweg.Embedder) -> None:
    def bad(_: int) -> str:
        try:
            model.encode(["fine", "\ud800"])
        except thalweg.TokenizationError:
            return "refused"
        return "taken"

    def good(n: int) -> str:
        return str(model.encode([make_text(n)] * 5).shape[0])

    with ThreadPoolExecutor(6) as pool:
        results = [pool.submit(bad if n % 2 else good, n + 1) for n in range(30)]
        assert {result.result() for result in results} == {"refused", "5"}


def test_a_consumer_that_pauses_stops_nobody(model: thalweg.Embedder) -> None:
    paused = model.encode_stream([make_text(50)] * 3 + [make_text(3000)])
    next(paused)
    with ThreadPoolExecutor(2) as pool:
        assert pool.submit(model.encode, ["another"]).result(timeout=60).shape[0] == 1
    assert len(list(paused)) == 3


def test_a_call_can_be_stopped_at_the_next_step(model: thalweg.Embedder) -> None:
    stop = threading.Event()
    seen = []

    def follow(progress: Progress) -> None:
        seen.append(progress.tokens)
        stop.set()

    with pytest.raises(Stopped):
        stoppable(stop, lambda: list(model.encode_stream([make_text(20_000)], progress=follow)))
    assert len(seen) <= 2


def test_an_embedder_can_be_copied(model: thalweg.Embedder, tmp_path: Path) -> None:
    import copy
    import pickle

    again = copy.deepcopy(model)
    np.testing.assert_allclose(again.encode(["a"]), model.encode(["a"]), atol=1e-6)
    assert pickle.loads(pickle.dumps(model._engines)) is not None


def test_the_garbage_collector_may_end_a_call_while_another_begins(
    model: thalweg.Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An iterator that nobody has any more holds an engine until then."""
    make = model._new_engine

    def collecting(*args: Any) -> Any:
        gc.collect()
        return make(*args)

    stream = model.encode_stream([make_text(500)] * 5)
    next(stream)
    circle: list[Any] = [stream]
    circle.append(circle)
    del stream, circle
    monkeypatch.setattr(model, "_new_engine", collecting)
    thread = threading.Thread(target=model.encode, args=("another",), kwargs={"max_in_flight": 3}, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert not model._engines._engines
