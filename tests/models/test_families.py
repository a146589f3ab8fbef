"""What the engine needs of every family: any split and packing is exact, few rows are the same rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from tests.models.registry import FAMILIES, VOCABULARY
from thalweg.engine.states import nbytes
from thalweg.packing import Packing


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return FAMILIES[request.param]().eval().requires_grad_(False)


pieces = st.lists(st.integers(1, 300), min_size=1, max_size=4)


@examples(25)
@given(cuts=st.lists(pieces, min_size=1, max_size=4))
def test_any_split_and_packing_gives_the_same_vectors(model: Any, cuts: list[list[int]]) -> None:
    """Documents in pieces, packed with others, against each document alone and whole."""
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(0, VOCABULARY, (sum(c),), generator=generator) for c in cuts]
    with torch.inference_mode():
        want = [model(ids, Packing.whole([len(ids)]))[0] for ids in documents]
        got: list[list[torch.Tensor]] = [[] for _ in cuts]
        alive, state, step = sorted(range(len(cuts)), key=lambda d: -len(cuts[d])), None, 0
        done = [0] * len(cuts)
        while alive:
            lengths = [cuts[d][step] for d in alive]
            final = [row for row, d in enumerate(alive) if len(cuts[d]) > step + 1]
            packing = Packing(lengths, n_carried=len(alive) if step else 0, wanted=final)
            tokens = torch.cat([documents[d][done[d] : done[d] + n] for d, n in zip(alive, lengths, strict=True)])
            hidden, state = model(tokens, packing, state)
            for d, n, vectors in zip(alive, lengths, hidden.split(lengths), strict=True):
                got[d].append(vectors)
                done[d] += n
            alive, step = [alive[row] for row in final], step + 1
    for vectors, exact in zip(got, want, strict=True):
        # Hidden vectors are not of length 1 yet: a value near 2 was 1.07e-5 apart (xlstm, seeds 207 and 301).
        torch.testing.assert_close(torch.cat(vectors), exact, rtol=0, atol=1e-5 * max(1.0, float(exact.abs().max())))


def test_the_last_layer_computes_only_the_wanted_rows(model: Any) -> None:
    packing = Packing([40, 200, 3], n_carried=1, wanted=(1,))
    tokens = torch.arange(243) % VOCABULARY
    state = tuple(type(s)(*(torch.randn_like(t) for t in s)) for s in model.init_state(1))
    with torch.inference_mode():
        every, full = model(tokens, packing, state)
        some, same = model(tokens, packing, state, rows=(39, 242))
        none, also = model(tokens, packing, state, rows=())
    torch.testing.assert_close(some, every[[39, 242]], rtol=0, atol=1e-5)
    assert none.shape == (0, model.d_model)
    for a, b, c in zip(full, same, also, strict=True):
        for x, y, z in zip(a, b, c, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-5)
            torch.testing.assert_close(x, z, rtol=0, atol=1e-5)


def test_forward_leaves_its_state_alone(model: Any) -> None:
    state = model.init_state(1)
    with torch.inference_mode():
        model(torch.arange(50) % VOCABULARY, Packing([50], n_carried=1, wanted=(0,)), state)
    for layer, start in zip(state, model.init_state(1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer, start, strict=True))


def test_a_new_state_may_be_written_over_the_one_that_was_given(model: Any) -> None:
    """Rows move, as when the first of three documents ends and another begins."""
    packing = Packing([40, 2, 70, 30], n_carried=3, wanted=(1, 2, 3))
    tokens = torch.arange(142) % VOCABULARY
    state = tuple(type(s)(*(torch.randn_like(t) for t in s)) for s in model.init_state(3))
    with torch.inference_mode():
        hidden, fresh = model(tokens, packing, state)
        same, written = model(tokens, packing, state, out=state)
    assert torch.equal(same, hidden)
    for layer, kept, old in zip(fresh, written, state, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer, kept, strict=True))
        assert all(a is b for a, b in zip(kept, old, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter(family: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    hidden, _ = model(torch.arange(30) % VOCABULARY, Packing.whole([7, 23]))
    hidden.square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_a_state_starts_as_init_state_says(model: Any) -> None:
    """Shapes and dtypes are those that a step returns, so memory is known; to start from it is to start anew."""
    tokens = torch.arange(20) % VOCABULARY
    with torch.inference_mode():
        fresh, after = model(tokens, Packing([20], wanted=(0,)))
        same, _ = model(tokens, Packing([20], n_carried=1), model.init_state(1))
    torch.testing.assert_close(same, fresh, rtol=0, atol=1e-6)
    for layer, start in zip(after, model.init_state(1), strict=True):
        assert [(t.shape, t.dtype) for t in layer] == [(t.shape, t.dtype) for t in start]
    assert nbytes(after) == nbytes(model.init_state(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_all_through_with_and_without_gradients(family: str) -> None:
    """The gradient of all parameters at once, along one direction, is what a step in that direction changes."""
    torch.manual_seed(0)
    model = FAMILIES[family]().double()
    tokens, packing = torch.arange(90) % VOCABULARY, Packing([50, 7, 33], n_carried=1, wanted=(0, 2))
    state = tuple(type(s)(*(torch.randn_like(t) for t in s)) for s in model.init_state(1))
    directions = [torch.randn_like(parameter) for parameter in model.parameters()]

    def loss() -> torch.Tensor:
        hidden, final = model(tokens, packing, state)
        assert {t.dtype for t in (hidden, *(t for layer in final for t in layer))} == {torch.float64}
        return sum((t.square().sum() for layer in final for t in layer), hidden.square().sum())

    value = loss()
    gradients = torch.autograd.grad(value, list(model.parameters()))
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    step = 1e-6

    def moved(by: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(model.parameters(), directions, strict=True):
                parameter.add_(direction, alpha=by)
            found = float(loss())
            for parameter, direction in zip(model.parameters(), directions, strict=True):
                parameter.sub_(direction, alpha=by)
        return found

    assert moved(0.0) == pytest.approx(value.item(), rel=1e-12)
    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_near_float64(family: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval().requires_grad_(False)
    tokens, packing = torch.arange(300) % VOCABULARY, Packing.whole([250, 1, 49])
    with torch.inference_mode():
        hidden, _ = model(tokens, packing)
        exact, _ = model.double()(tokens, packing)
    assert exact.dtype == torch.float64
    assert (hidden - exact).abs().max() <= 1e-5 * exact.abs().max()
