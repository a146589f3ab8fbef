"""What a point's process measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from thalweg.bench.machine import OtherWork, loaded
from thalweg.bench.matmul_limit import inner_chunk, products, scan_products, set_inner_chunk
from thalweg.bench.meter import Meter
from thalweg.bench.peers import CHUNK_LOOP, ONE_PASS, SENTENCES, installed
from thalweg.bench.point import Point
from thalweg.bench.shapes import SHAPES
from thalweg.bench.subjects import RandomTokens, schedule, subject
from thalweg.bench.weights import recurrent_model
from thalweg.bench.worker import measure
from thalweg.engine.engine import Engine

from .points import TINY, tiny

SMALL = [name for name, kind in SHAPES.items() if kind.recurrent and kind.width == 768]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "changes",
    [
        {"vertical_chunk_size": 16, "limit": True},
        {},
        {"batch": 3, "vertical_chunk_size": 16},
        {"batch": 3, "vertical_chunk_size": 16, "tokens_per_step": 40},
        {"dtype": "bfloat16", "inner_chunk": 8, "vertical_chunk_size": 16},
        {"runner": "transformer", "shape": "mistral-130m", "window": 8},
        {"runner": "transformer", "shape": "mistral-130m", "batch": 2},
        {"runner": "transformer", "shape": "modernbert-base"},
    ],
)
def test_measure(changes: dict[str, object]) -> None:
    result = json.loads(json.dumps(measure(tiny(**changes))))
    assert result["status"] == "ok", result
    assert len(result["seconds"]["all"]) == 2
    assert 0 < result["seconds"]["min"] <= result["seconds"]["median"] <= result["seconds"]["max"]
    batch = changes.get("batch", 1)
    assert result["seconds_per_text"]["median"] == pytest.approx(result["seconds"]["median"] / batch)
    assert result["memory"]["peak_rss"] >= result["memory"]["rss_before"] > 0
    assert result["weights"] > 0
    assert result["machine"]["torch"] == torch.__version__
    assert ("share_of_limit" in result) == ("limit" in changes)


@pytest.mark.parametrize("peer", [CHUNK_LOOP, ONE_PASS, SENTENCES])
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_peers(peer: str) -> None:
    vocabulary = None if peer == SENTENCES else 64
    result = measure(tiny(40, runner=peer, vertical_chunk_size=None, vocabulary=vocabulary))
    assert result["status"] == "ok", result
    assert peer in installed("mamba2")


def test_peers_compute_the_same() -> None:
    point = tiny(40, vertical_chunk_size=16)
    model = recurrent_model(SHAPES["mamba2-130m"], torch.float32, layers=1, vocabulary=64)
    ids = np.random.default_rng(0).integers(0, 64, (1, 40))
    from thalweg.engine.sources import Ids

    (ours,) = Engine(model, "last", schedule(point)).run([Ids(ids[0])])
    for peer in (CHUNK_LOOP, ONE_PASS):
        theirs = subject(Point(**{**point.to_json(), "runner": peer})).run(40)
        assert isinstance(theirs, torch.Tensor)
        np.testing.assert_allclose(theirs[0].numpy(), ours.vector, rtol=1e-4, atol=1e-4)  # type: ignore[union-attr]


def test_failures_are_results() -> None:
    error = measure(Point("thalweg", 8, model="/no/such/folder"))
    assert error["status"] == "error"
    assert "/no/such/folder" in error["message"]
    unknown = measure(tiny(device="cuda" if not torch.cuda.is_available() else "xyz"))
    assert unknown["status"] == "error"


def test_schedule() -> None:
    assert schedule(tiny(5000)).vertical_chunk_size == 5000
    assert schedule(tiny(5000)).max_tokens_per_step >= 5000
    vertical = schedule(tiny(5000, batch=4, vertical_chunk_size=256))
    assert (vertical.vertical_chunk_size, vertical.max_in_flight) == (256, 4)
    packed = schedule(tiny(5000, batch=4, vertical_chunk_size=256, tokens_per_step=300))
    assert packed.max_tokens_per_step == 300


@pytest.mark.parametrize(("v", "steps"), [(None, 1), (100, 10), (256, 4)])
def test_all_texts_advance_by_v(v: int | None, steps: int) -> None:
    """Horizontal is one step for the whole batch; vertical takes V tokens of every text in each."""
    point = tiny(1000, batch=3, vertical_chunk_size=v)
    model = recurrent_model(SHAPES["mamba2-130m"], torch.float32, layers=1, vocabulary=64)
    engine = Engine(model, "last", schedule(point))
    assert len(list(engine.run(RandomTokens(1000, 64, seed) for seed in range(3)))) == 3
    assert (engine.progress.steps, engine.progress.tokens) == (steps, 3000)


@pytest.mark.parametrize("name", SMALL)
def test_inner_chunk(name: str) -> None:
    """Every family takes an inner chunk, and its vectors do not depend on it."""
    model = recurrent_model(SHAPES[name], torch.float32, layers=2, vocabulary=64)
    default = inner_chunk(model)
    vectors = []
    for q in (None, 7, 32):
        set_inner_chunk(model, q)
        assert inner_chunk(model) == (q or default)
        (found,) = Engine(model, "last").run([RandomTokens(50, 64)])
        vectors.append(found.vector)  # type: ignore[union-attr]
    np.testing.assert_allclose(vectors[1], vectors[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vectors[2], vectors[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_products(name: str) -> None:
    """The products run, and every product of a scan has sizes that fit the model."""
    model = recurrent_model(SHAPES[name], torch.float32, layers=1, vocabulary=64)
    products(model, 70)()
    found = scan_products(model.config, 16)
    assert (found == []) == (SHAPES[name].family == "mamba")
    assert all(min(product) >= 1 for product in found)


def test_peak_is_that_of_the_run() -> None:
    """A peak from before the reset is forgotten, one after it is seen."""
    meter = Meter("cpu")
    size = 200 << 20
    before = meter.reset()["rss_before"]
    held = np.ones(size, dtype=np.uint8)
    assert meter.peak()["peak_rss"] > before + 0.9 * size
    del held
    meter.reset()
    assert meter.peak()["peak_rss"] < before + 0.5 * size


@pytest.mark.subprocess
@pytest.mark.kill
def test_other_work_is_that_of_others() -> None:
    """This process's own computing does not count; what a child of it does, does."""
    own = OtherWork()
    until = time.perf_counter() + 1.0
    while time.perf_counter() < until:
        pass
    mine = own.cores()
    program = "import time; end = time.perf_counter() + 60\nwhile time.perf_counter() < end: pass"
    child = subprocess.Popen([sys.executable, "-c", program])
    try:
        time.sleep(0.3)
        others = OtherWork()
        time.sleep(1.5)
        theirs = others.cores()
    finally:
        child.kill()
        child.wait()
    assert mine is not None
    assert theirs is not None
    assert theirs > 0.3
    assert mine < (os.cpu_count() or 1), "or this process would count as well"
    assert OtherWork().cores() is None, "too short to tell"


@pytest.mark.parametrize(
    ("used", "of", "spoils"),
    [(0.0, 2, False), (0.2, 2, False), (0.3, 2, True), (1.0, 64, False), (None, 2, False), (9.0, None, False)],
)
def test_how_much_other_work_spoils_a_time(used: float | None, of: int | None, spoils: bool) -> None:
    assert loaded(used, of) is spoils


def test_json_round_trip() -> None:
    point = tiny(7, batch=2, inner_chunk=3, device="cuda:1", dtype="bfloat16")
    assert Point.from_json({**json.loads(json.dumps(point.to_json())), "of_another_version": 1}) == point
    assert {*TINY} <= {*point.to_json()}


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("name", SMALL)
def test_products_of_a_checkpoints_dtypes(name: str, quantize: Any) -> None:
    """In bfloat16 a few layers of xLSTM stay in float32."""
    products(recurrent_model(SHAPES[name], torch.bfloat16, layers=1, vocabulary=64, quantize=quantize), 16)()
