"""Checkpointed along the length: the vectors and gradients of full back-propagation, for every family and option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.examples import examples
from tests.models.registry import FAMILIES, VOCABULARY
from thalweg.errors import InvalidInputError
from thalweg.gradients.batch import flatten
from thalweg.gradients.checkpointed import embed_checkpointed
from thalweg.gradients.forward import embed_packed
from thalweg.gradients.steps import Checkpointing, plan_steps
from thalweg.packing import Packing
from thalweg.pooling import LastToken

LENGTHS = [70, 3, 161, 1, 64, 33, 97]
SMALL = Checkpointing(32, max_tokens_per_step=80)


def _model(family: str) -> Any:
    torch.manual_seed(0)
    return FAMILIES[family]()


def _tokens(lengths: list[int]) -> Tensor:
    return torch.randint(0, VOCABULARY, (sum(lengths),), generator=torch.Generator().manual_seed(1))


def _loss(vectors: Tensor) -> Tensor:
    """A loss whose gradients differ from vector to vector."""
    return (torch.sin(3 * vectors) * torch.linspace(0.5, 2, len(vectors))[:, None]).sum()


def _gradients(model: Any, vectors: Tensor, *more: Tensor) -> list[Tensor]:
    parameters = list(model.parameters())
    grads = torch.autograd.grad(_loss(vectors), [*parameters, *more], materialize_grads=True)
    return list(grads)


def _assert_same(got: list[Tensor], want: list[Tensor]) -> None:
    """Each gradient to 1e-5 of its norm; those that all but cancel out to 1e-5 of the average parameter's."""
    floor = torch.stack([tensor.norm() for tensor in want]).mean()
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 1e-5 * max(b.norm(), floor)


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_models_have_gradients_too(family: str) -> None:
    tokens, found = _tokens(LENGTHS), []
    for dtype in (torch.float32, torch.float64):
        model = _model(family).to(dtype)
        whole = embed_packed(model, tokens, LENGTHS, pooling="mean")
        pieces = embed_checkpointed(model, tokens, LENGTHS, pooling="mean", checkpointing=SMALL).vectors
        assert whole.dtype == pieces.dtype == dtype
        found += [_gradients(model, whole), _gradients(model, pieces)]
    assert {grad.dtype for grad in found[2] + found[3]} == {torch.float64}
    single, single_chunked, full, chunked = found
    largest = max(float(grad.norm()) for grad in full)
    for grads, tolerance in ((single, 1e-4), (single_chunked, 1e-4), (chunked, 1e-10)):
        assert all((got - want).norm() <= tolerance * largest for got, want in zip(grads, full, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["last", LastToken(5), "mean"])
def test_vectors_and_gradients_are_those_of_full_back_propagation(family: str, pooling: Any) -> None:
    model = _model(family)
    tokens = _tokens(LENGTHS)
    want = embed_packed(model, tokens, LENGTHS, pooling=pooling)
    got = embed_checkpointed(model, tokens, LENGTHS, pooling=pooling, checkpointing=SMALL).vectors
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    _assert_same(_gradients(model, got), _gradients(model, want))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_initial_states(family: str) -> None:
    """From the final states of other texts, against the same texts as one run that starts from them."""
    model = _model(family)
    others = embed_checkpointed(model, _tokens([90] * 3), [90] * 3, pooling="last", keep_final_state=True)
    assert others.final_state is not None
    lengths = [70, 20, 101]
    tokens = _tokens(lengths)
    gradients = []
    for checkpointing in (None, SMALL, Checkpointing(32, max_tokens_per_step=32, two_level=True)):
        state = tuple(type(s)(*(t.detach().clone().requires_grad_() for t in s)) for s in others.final_state)
        if checkpointing is None:
            rows = [length - 1 for length in torch.tensor(lengths).cumsum(0).tolist()]
            vectors, _ = model(tokens, Packing(lengths, n_carried=3), state, rows)
        else:
            vectors = embed_checkpointed(
                model, tokens, lengths, pooling="last", checkpointing=checkpointing, initial_state=state
            ).vectors
        gradients.append(_gradients(model, vectors, *flatten(state)))
    _assert_same(gradients[1], gradients[0])
    _assert_same(gradients[2], gradients[0])
    start, end = gradients[0][-len(flatten(others.final_state)) :][:2]
    assert start.abs().sum() > 0 or end.abs().sum() > 0


@pytest.mark.parametrize("family", ["mamba2", "rwkv7"])
@pytest.mark.parametrize("options", [{"two_level": True}, {"offload": True}, {"offload": True, "two_level": True}])
def test_options_of_memory_change_no_gradient(family: str, options: dict[str, bool]) -> None:
    model, tokens = _model(family), _tokens(LENGTHS)
    plain = embed_checkpointed(model, tokens, LENGTHS, pooling="mean", checkpointing=SMALL).vectors
    other = embed_checkpointed(
        model, tokens, LENGTHS, pooling="mean", checkpointing=Checkpointing(32, 80, **options)
    ).vectors
    assert torch.equal(plain, other)
    for a, b in zip(_gradients(model, other), _gradients(model, plain), strict=True):
        assert torch.equal(a, b)


def test_final_states_are_those_of_each_text_alone() -> None:
    model, tokens = _model("xlstm"), _tokens(LENGTHS)
    with torch.no_grad():
        state = embed_checkpointed(
            model, tokens, LENGTHS, pooling="last", checkpointing=SMALL, keep_final_state=True
        ).final_state
        assert state is not None
        for text, ids in enumerate(tokens.split(LENGTHS)):
            _, alone = model(ids, Packing([len(ids)], wanted=[0]))
            for a, b in zip(flatten(state), flatten(alone), strict=True):
                torch.testing.assert_close(a[text : text + 1], b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_truncated_back_propagation(pooling: Any) -> None:
    """Against chunks run one by one, whose state is detached where no gradient is to cross."""
    model, length = _model("mamba2"), 7 * 16 + 5
    tokens = _tokens([length])
    got = embed_checkpointed(
        model, tokens, [length], pooling=pooling, checkpointing=Checkpointing(16, detach_every=3)
    ).vectors
    state, hidden = None, []
    for number, chunk in enumerate(tokens.split(16)):
        if number and number % 3 == 0:
            state = tuple(type(s)(*(t.detach() for t in s)) for s in state or ())
        vectors, state = model(chunk, Packing([len(chunk)], n_carried=int(number > 0), wanted=[0]), state)
        hidden.append(vectors)
    run = torch.cat(hidden)
    want = (run.mean(0) if pooling == "mean" else run[-1])[None]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    truncated = _gradients(model, got)
    _assert_same(truncated, _gradients(model, want))
    full = _gradients(model, embed_packed(model, tokens, [length], pooling=pooling))
    assert any((a - b).norm() > 1e-3 * b.norm() for a, b in zip(truncated, full, strict=True))


def test_truncation_spares_the_steps_that_no_gradient_reaches() -> None:
    live = [step.live for step in plan_steps([80], Checkpointing(16, detach_every=2), [1])]
    assert live == [False, False, False, False, True]
    live = [step.live for step in plan_steps([96], Checkpointing(16, detach_every=2), [17])]
    assert live == [False, False, False, False, True, True]
    assert all(step.live for step in plan_steps([80], Checkpointing(16, detach_every=2)))


@examples(60)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 20), st.integers(0, 30))
def test_steps_cover_every_token_in_order(lengths: list[int], chunk: int, more: int) -> None:
    steps = plan_steps(lengths, Checkpointing(chunk, chunk + more))
    done = [0] * len(lengths)
    before: list[int] = []
    for step in steps:
        assert sum(piece.length for piece in step.pieces) <= chunk + more
        assert [piece.text for piece in step.pieces[: step.n_carried]] == before
        for piece in step.pieces:
            assert piece.start == done[piece.text]
            assert piece.length == min(chunk, lengths[piece.text] - piece.start)
            done[piece.text] = piece.stop
            assert piece.ends == (piece.stop == lengths[piece.text])
        before = [step.pieces[number].text for number in step.going_on]
    assert done == lengths


def test_the_backward_pass_may_be_repeated_and_is_once_differentiable() -> None:
    model, tokens = _model("mamba2"), _tokens([50])
    vectors = embed_checkpointed(model, tokens, [50], pooling="last", checkpointing=SMALL).vectors
    first = torch.autograd.grad(vectors.sum(), model.embeddings.weight, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(vectors.sum(), model.embeddings.weight)[0], first)
    with pytest.raises(RuntimeError, match="second time"):
        vectors.sum().backward()


def test_a_weight_changed_before_the_backward_pass_is_an_error() -> None:
    model, tokens = _model("mamba2"), _tokens([50])
    vectors = embed_checkpointed(model, tokens, [50], pooling="last", checkpointing=SMALL).vectors
    with torch.no_grad():
        model.embeddings.weight.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        vectors.sum().backward()


def test_autocast_and_half_precision() -> None:
    """bfloat16 products: the gradients of the checkpointed pass are as far from float32's as the full pass's are."""
    model, tokens = _model("mamba2"), _tokens(LENGTHS)
    exact = _gradients(model, embed_packed(model, tokens, LENGTHS, pooling="mean"))
    results = []
    for embed in (embed_packed, lambda *a, **k: embed_checkpointed(*a, checkpointing=SMALL, **k).vectors):
        with torch.autocast("cpu", torch.bfloat16):
            vectors = embed(model, tokens, LENGTHS, pooling="mean")
            again = embed_packed(model, tokens, LENGTHS, pooling="mean")  # in the same autocast: its cache is sound
        grads = _gradients(model, vectors)
        results.append([(a - b).norm() / b.norm() for a, b in zip(grads, exact, strict=True)])
        assert all(grad.abs().sum() > 0 for grad in _gradients(model, again))
    assert 1e-4 < max(results[0]) < 0.2
    assert max(results[1]) < 1.5 * max(results[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vertical_chunk_size": 0}, "vertical_chunk_size must be at least 1, got 0"),
        ({"vertical_chunk_size": 64, "max_tokens_per_step": 63}, "must be at least vertical_chunk_size=64"),
        ({"detach_every": 0}, "detach_every must be at least 1"),
    ],
)
def test_settings_that_cannot_be(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Checkpointing(**arguments)


def test_input_that_does_not_fit() -> None:
    model = _model("mamba2")
    with pytest.raises(InvalidInputError, match="add up to 10 tokens, got \\[4, 5\\]"):
        embed_checkpointed(model, _tokens([10]), [4, 5], pooling="last")
    with pytest.raises(InvalidInputError, match="that of 3 texts, but there are 2"):
        embed_checkpointed(model, _tokens([10]), [5, 5], pooling="last", initial_state=model.init_state(3))
