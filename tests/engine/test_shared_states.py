"""Short documents that begin with the same state read it where it is: many in a step, without rows of their own."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.engine.toy import Toy, expected, ids_of
from tests.models.registry import FAMILIES
from tests.ops.harness import with_kernels
from thalweg.engine.engine import Engine
from thalweg.engine.results import DocumentState, Pooled
from thalweg.engine.schedule import Schedule
from thalweg.engine.sources import Answer, Ids, TokenArray


class From:
    """Ids that go on from a state that others begin with too."""

    shares_state = True

    def __init__(self, ids: TokenArray, state: DocumentState) -> None:
        self.state = state
        self._ids = Ids(ids)

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        return self._ids.take(n)


def state_after(engine: Engine, ids: TokenArray) -> DocumentState:
    engine.add(Ids(ids), "prefix", keep_state=True)
    while True:
        for result in engine.step():
            assert isinstance(result, Pooled)
            assert result.state is not None
            return result.state


def test_hundreds_share_a_step() -> None:
    toy = Toy()
    engine = Engine(toy, "mean", Schedule(1000, 100, 4))
    prefix = ids_of(60, 0)
    state = state_after(engine, prefix)
    toy.steps.clear()
    texts = [ids_of(5, number) for number in range(190)]
    results = {result.key: result for result in engine.run([From(text, state) for text in texts])}
    assert len(toy.steps) == 1
    assert toy.most_states <= 1  # the prefix's own, before
    for number, text in enumerate(texts):
        result = results[number]
        assert isinstance(result, Pooled)
        assert (result.start, result.stop) == (0, 65)
        np.testing.assert_allclose(result.vector, expected(np.concatenate([prefix, text]), "mean"), rtol=1e-6)
    assert engine.progress.state_bytes == 16


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("max_shared", [0, 1, 3])
def test_any_mixture_of_prefixes_clients_and_lengths(pooling: str, max_shared: int) -> None:
    """Short and long documents of several clients, with one of several states or none, those waiting among them."""
    chance = random.Random(max_shared)
    for seed in range(20):
        engine = Engine(Toy(), pooling, Schedule(60, 25, 3, max_parked=2, max_shared=max_shared))
        prefixes = [ids_of(chance.randint(1, 40), 1000 + seed + n) for n in range(4)]
        states = [state_after(engine, prefix) for prefix in prefixes]
        wanted = {}
        for key in range(60):
            text = ids_of(chance.choice([1, 3, 10, 24, 25, 70]), key)
            which = chance.randrange(5)
            wanted[key] = text if which == 4 else np.concatenate([prefixes[which], text])
            state = None if which == 4 else states[which]
            client, priority = chance.randrange(3), chance.randrange(2)
            engine.add(Ids(text), key, state=state, shares_state=True, client=client, priority=priority)
        steps = 0
        while len(engine):
            steps += 1
            assert steps < 500
            for result in engine.step():
                assert isinstance(result, Pooled)
                np.testing.assert_allclose(result.vector, expected(wanted.pop(result.key), pooling), rtol=1e-6)
            assert engine.progress.state_bytes <= (3 + 2 + max_shared) * 16
        assert not wanted


def test_clients_with_different_prefixes_take_turns() -> None:
    engine = Engine(Toy(), "last", Schedule(100, 50, 2))
    states = [state_after(engine, ids_of(20, n)) for n in range(2)]
    for client, state in enumerate(states):
        for number in range(100):
            engine.add(Ids(ids_of(10, number)), (client, number), state=state, shares_state=True, client=client)
    order = [result.key[0] for _ in range(4) for result in engine.step()]
    assert order == [0] * 10 + [1] * 10 + [0] * 10 + [1] * 10 or order == [1] * 10 + [0] * 10 + [1] * 10 + [0] * 10


@pytest.mark.slow
@pytest.mark.parametrize("on", [True, False], ids=["kernels", "PyTorch alone"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_hit_equals_a_miss(family: str, dtype: str, tolerance: float, on: bool) -> None:
    """Of every family: beside long documents, split at any token of the prefix and text."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval().requires_grad_(False).to(getattr(torch, dtype))
    texts = [np.concatenate([np.arange(1, 40), ids_of(n, n)]) for n in (1, 2, 9, 30, 30, 90)]
    long = [ids_of(200, 0), ids_of(150, 1)]
    for pooling in ("last", "mean"):
        with with_kernels(on):
            engine = Engine(model, pooling, Schedule(256, 64, 4))
            want = {result.key: result.vector for result in engine.run([Ids(ids) for ids in (*texts, *long)])}
            for cut in (1, 17, 39):
                state = state_after(engine, texts[0][:cut])
                sources = [From(ids[cut:], state) for ids in texts] + [Ids(ids) for ids in long]
                for result in engine.run(sources):
                    scale = np.abs(want[result.key]).max()
                    np.testing.assert_allclose(result.vector, want[result.key], atol=tolerance * scale, rtol=0)
