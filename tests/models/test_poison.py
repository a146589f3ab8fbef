"""A document that is not finite, or becomes so, changes no bit of those packed beside it, and never looks well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import thalweg
from tests.models.registry import FAMILIES
from tests.models.test_quantized import NARROW
from tests.ops.harness import with_kernels
from thalweg.models.quantized import quantize_
from thalweg.packing import Packing

BAD = 63
"""The token whose embedding is poisoned."""
LENGTHS = (30, 5, 70, 9, 1, 140)


def made(family: str, kind: str) -> Any:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval().requires_grad_(False)
    if kind in ("int8", "int4"):
        quantize_(model, kind, min_width=NARROW)  # type: ignore[arg-type]
        return model
    return model.to(getattr(torch, kind))


def run(model: Any, tokens: Tensor, state: Any) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Hidden vectors by document, and by document that goes on the tensors of its state."""
    packing = Packing(LENGTHS, n_carried=2, wanted=(0, 2, 3, 5))
    with torch.inference_mode():
        hidden, new = model(tokens, packing, state)
    return list(hidden.split(LENGTHS)), [[t[row] for layer in new for t in layer] for row in range(4)]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("on", [True, False], ids=["kernels", "PyTorch alone"])
@pytest.mark.parametrize(
    "kind",
    ["float32", "int8", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("bfloat16", "float16", "int4"))],
)
@pytest.mark.parametrize("where", ["a token", "a carried state"])
def test_neighbours_keep_every_bit(family: str, kind: str, where: str, on: bool) -> None:
    model, generator = made(family, kind), torch.Generator().manual_seed(0)
    tokens = torch.randint(BAD, (sum(LENGTHS),), generator=generator)
    states = model.init_state(2)
    state = tuple(type(s)(*(torch.randn(t.shape, generator=generator).to(t.dtype) for t in s)) for s in states)
    with with_kernels(on):
        want, want_state = run(model, tokens, state)
        for document, value in ((0, torch.nan), (1, torch.inf), (2, torch.inf), (3, torch.nan), (5, -torch.inf)):
            bad_tokens, bad_state, first = tokens, state, 0
            if where == "a token":
                first = LENGTHS[document] // 3
                bad_tokens = tokens.clone()
                bad_tokens[sum(LENGTHS[:document]) + first] = BAD
                model.embeddings.weight.data[BAD] = value
            elif document < 2:
                bad_state = tuple(type(s)(*(t.clone() for t in s)) for s in state)
                for tensor in (t for layer in bad_state for t in layer):
                    tensor[document] = value
            else:
                continue
            got, got_state = run(model, bad_tokens, bad_state)
            for n, (a, b) in enumerate(zip(got, want, strict=True)):
                if n != document:
                    assert torch.equal(a, b), (document, n)
            assert not got[document][first:].isfinite().all(1).any()
            torch.testing.assert_close(got[document][:first], want[document][:first], rtol=0, atol=1e-2)
            for row, n in enumerate((0, 2, 3, 5)):
                same = [torch.equal(a, b) for a, b in zip(got_state[row], want_state[row], strict=True)]
                assert all(same) if n != document else not all(t.isfinite().all() for t in got_state[row])


@pytest.mark.parametrize("on", [True, False], ids=["kernels", "PyTorch alone"])
def test_finite_weights_that_overflow_on_one_token(family: str, on: bool) -> None:
    """In float16, 65,504 is the largest number: a projection of this token is beyond it, of the others far below."""
    model = made(family, "float16")
    model.embeddings.weight.data[BAD] = 0
    model.embeddings.weight.data[BAD, 0] = 1
    model.embeddings.weight.data[:BAD, 0] = 0
    first = next(m for m in model.layers[0].modules() if isinstance(m, torch.nn.Linear) and m.in_features == 24)
    first.weight.data[:, 0] = 3e4
    tokens = torch.arange(sum(LENGTHS)) % BAD
    with with_kernels(on):
        want, want_state = run(model, tokens, model.init_state(2))
        assert all(t.isfinite().all() for t in want)
        tokens[sum(LENGTHS[:3]) + 4] = BAD
        got, got_state = run(model, tokens, model.init_state(2))
    assert not got[3][4:].isfinite().all(1).any()
    assert all(torch.equal(a, b) for n, (a, b) in enumerate(zip(got, want, strict=True)) if n != 3)
    for row in (0, 1, 3):
        assert all(torch.equal(a, b) for a, b in zip(got_state[row], want_state[row], strict=True))


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"quantize": "int8"}], ids=str)
def test_through_the_embedder(settings: dict[str, Any]) -> None:
    model = thalweg.load(**settings)
    bad, good = "poison", ["The river runs.", "a", "Stones in a valley. " * 90]
    token = int(model.tokenizer.encode_batch([bad])[0][0])
    texts = [good[0], bad, *good[1:]]
    want = model.encode(texts)
    with torch.inference_mode():
        model.model.embeddings.weight.data[token] = torch.nan
    got = list(model.encode_stream(texts, on_error="yield"))
    assert isinstance(got[1], thalweg.Failure)
    assert isinstance(got[1].error, thalweg.NumericalError)
    for n in (0, 2, 3):
        assert np.array_equal(got[n].vector, want[n])
