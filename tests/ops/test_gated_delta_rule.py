"""What the shared harness does not say of `gated_delta_rule`."""

from __future__ import annotations

import pytest
import torch

from tests.ops.harness import check_split, relative_error
from tests.ops.registry import gated_delta_rule_op
from thalweg.errors import InvalidInputError
from thalweg.ops.gated_delta_rule import chunkwise_gated_delta_rule, gated_delta_rule, sequential_gated_delta_rule
from thalweg.packing import Packing


@pytest.mark.parametrize("side_by_side", [1, 3])
@pytest.mark.parametrize("rows", [(), (0,), (4, 5, 36, 80), (126,)])
def test_only_the_wanted_rows(rows: tuple[int, ...], side_by_side: int) -> None:
    packing = Packing([5, 32, 70, 20], n_carried=1, wanted=(2,))
    inputs = gated_delta_rule_op("rows").inputs(packing.n_tokens, torch.Generator().manual_seed(0))
    inputs = {name: tensor.float() for name, tensor in inputs.items()}
    state = torch.randn(1, 4, 8, 10)
    y, final = sequential_gated_delta_rule(**inputs, packing=packing, initial_state=state)
    some, some_final = chunkwise_gated_delta_rule(
        **inputs, packing=packing, initial_state=state, rows=rows, chunk_size=32, blocks_per_group=side_by_side
    )
    torch.testing.assert_close(some, y[list(rows)], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some_final, final, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [(0.0, 1.0), (1.8, 2.0)], ids=["beta below 1", "negative eigenvalues"])
def test_one_hundred_thousand_steps_neither_drift_nor_overflow(beta: tuple[float, float]) -> None:
    """Hardly anything is forgotten but by what is written over it, so errors would add up. Measured: 6e-7 and 2e-6."""
    n = 100_000
    op = gated_delta_rule_op("long", key_heads=1, heads=2, width=6, value_width=4, g=(-1e-4, 0.0), beta=beta)
    inputs = op.inputs(n, torch.Generator().manual_seed(0))
    packing = Packing([n], wanted=(0,))
    with torch.inference_mode():
        exact, exact_state = chunkwise_gated_delta_rule(**inputs, packing=packing, chunk_size=40)
        y, state = gated_delta_rule(**{name: tensor.float() for name, tensor in inputs.items()}, packing=packing)
    assert relative_error(y, exact) < 1e-5
    assert relative_error(state, exact_state) < 1e-5


@pytest.mark.parametrize("chunk_size", [1, 5, 64, 200, 1000])
def test_the_chunk_is_free(chunk_size: int) -> None:
    packing = Packing([150, 3, 97], n_carried=2, wanted=(0, 2))
    op = gated_delta_rule_op("chunks", g=(-30.0, 0.0))
    inputs = {k: v.float() for k, v in op.inputs(250, torch.Generator().manual_seed(0)).items()}
    state = torch.randn(2, 4, 8, 10)
    want, want_state = gated_delta_rule(**inputs, packing=packing, initial_state=state)
    got, got_state = gated_delta_rule(**inputs, packing=packing, initial_state=state, chunk_size=chunk_size)
    assert relative_error(got, want) < 5e-6
    assert relative_error(got_state, want_state) < 5e-6


def test_a_strong_decay_before_weak_ones_costs_no_digits() -> None:
    """Differences of one float32 prefix sum are off by 3e-5 here, as `torch_chunk_gated_delta_rule` of transformers."""
    op = gated_delta_rule_op("mixed", key_heads=2, heads=2, width=32, value_width=32, beta=(1.0, 1.0))
    inputs = op.inputs(64, torch.Generator().manual_seed(0))
    inputs["g"][:32] = -30.0
    inputs["g"][32:] = -1e-3
    packing = Packing([64], wanted=(0,))
    want, want_state = sequential_gated_delta_rule(**inputs, packing=packing)
    got, state = gated_delta_rule(**{k: v.float() for k, v in inputs.items()}, packing=packing, chunk_size=64)
    assert relative_error(got[40:], want[40:]) < 2e-6
    assert relative_error(state, want_state) < 2e-6


def test_padding_beside_a_strong_decay_overflows_nothing() -> None:
    """The second block has 5 tokens of one text, one of another, and padding."""
    op = gated_delta_rule_op("strong", g=(-30.0, -10.0))
    check_split(op, "dispatched", [69, 1], [[69], [1]], tolerance=1e-5)


@pytest.mark.parametrize("decay", [-1e4, float("-inf")])
def test_a_decay_without_bound_forgets_everything(decay: float) -> None:
    op = gated_delta_rule_op("forget")
    inputs = {k: v.float() for k, v in op.inputs(50, torch.Generator().manual_seed(0)).items()}
    inputs["g"][20] = decay
    packing = Packing([50], n_carried=1, wanted=(0,))
    y, state = gated_delta_rule(**inputs, packing=packing, initial_state=torch.randn(1, 4, 8, 10))
    alone, alone_state = gated_delta_rule(
        **{name: tensor[20:] for name, tensor in inputs.items()}, packing=Packing([30], wanted=(0,))
    )
    torch.testing.assert_close(y[20:], alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, alone_state, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_summed_in_float32(dtype: torch.dtype) -> None:
    packing = Packing([130, 70], n_carried=1, wanted=(0,))
    half = {k: v.to(dtype) for k, v in gated_delta_rule_op("x").inputs(200, torch.Generator().manual_seed(0)).items()}
    state = torch.randn(1, 4, 8, 10)
    wide = {k: v.double() for k, v in half.items()}
    want, want_state = sequential_gated_delta_rule(**wide, packing=packing, initial_state=state)
    y, final = gated_delta_rule(**half, packing=packing, initial_state=state)
    assert (y.dtype, final.dtype) == (dtype, torch.float32)
    assert relative_error(final, want_state) < 1e-5
    assert relative_error(y, want) < torch.finfo(dtype).eps


def test_results_do_not_read_uninitialised_memory() -> None:
    """Same call twice with the allocator's memory poisoned in between."""
    packing = Packing([100, 3, 77], n_carried=1, wanted=(0, 2))
    inputs = {k: v.float() for k, v in gated_delta_rule_op("x").inputs(180, torch.Generator().manual_seed(0)).items()}
    state = torch.randn(1, 4, 8, 10)
    with torch.inference_mode():
        first = gated_delta_rule(**inputs, packing=packing, initial_state=state)
        for size in (1 << k for k in range(6, 20)):
            torch.full((size,), float("nan"))
        second = gated_delta_rule(**inputs, packing=packing, initial_state=state)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.zeros(9, 4, 10)}, r"v must be \(N=10, Hv, V\), got \(9, 4, 10\)"),
        ({"k": torch.zeros(10, 3, 8), "q": torch.zeros(10, 3, 8)}, "Hk a divisor of Hv=4"),
        ({"q": torch.zeros(10, 2, 7)}, r"got \(10, 2, 7\) and \(10, 2, 8\)"),
        ({"g": torch.zeros(10, 2)}, r"g and beta must be \(N, Hv\) = \(10, 4\), got \(10, 2\)"),
        ({"initial_state": torch.zeros(1, 4, 10, 8)}, r"initial_state must be .* = \(0, 4, 8, 10\)"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_errors_quote_the_shapes(change: dict[str, object], message: str) -> None:
    inputs = gated_delta_rule_op("x").inputs(10, torch.Generator().manual_seed(0))
    with pytest.raises(InvalidInputError, match=message):
        gated_delta_rule(**{**inputs, "packing": Packing.whole([10]), **change})  # type: ignore[arg-type]
