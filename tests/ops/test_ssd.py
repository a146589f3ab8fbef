"""What the shared harness does not say of `ssd`."""

from __future__ import annotations

import pytest
import torch

from tests.ops.registry import ssd_op
from thalweg.errors import InvalidInputError
from thalweg.ops.ssd import chunkwise_ssd, sequential_ssd, ssd
from thalweg.packing import Packing


@pytest.mark.parametrize("side_by_side", [1, 3])
@pytest.mark.parametrize("rows", [(), (0,), (4, 5, 36, 80), (126,)])
def test_only_the_wanted_rows(rows: tuple[int, ...], side_by_side: int) -> None:
    packing = Packing([5, 32, 70, 20], n_carried=1, wanted=(2,))
    inputs = {k: v.float() for k, v in ssd_op("ssd").inputs(packing.n_tokens, torch.Generator().manual_seed(0)).items()}
    state = torch.randn(1, 16, 4, 8)
    y, final = sequential_ssd(**inputs, packing=packing, initial_state=state)
    some, some_final = chunkwise_ssd(
        **inputs, packing=packing, initial_state=state, rows=rows, chunk_size=32, blocks_per_group=side_by_side
    )
    torch.testing.assert_close(some, y[list(rows)], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some_final, final, rtol=1e-4, atol=1e-5)


def test_one_hundred_thousand_steps_neither_drift_nor_overflow() -> None:
    n = 100_000
    op = ssd_op("long", heads=2, groups=1, width=4, state_width=4, decay=(1e-4, 1e-3))
    inputs = op.inputs(n, torch.Generator().manual_seed(0))
    packing = Packing([n], wanted=(0,))
    exact, exact_state = chunkwise_ssd(**inputs, packing=packing, chunk_size=100)
    low = {name: tensor.float() for name, tensor in inputs.items()}
    y, state = ssd(**low, packing=packing)
    assert ((y - exact).abs().max() / exact.abs().max()).item() < 1e-5
    assert ((state - exact_state).abs().max() / exact_state.abs().max()).item() < 1e-5


def test_a_strong_decay_before_weak_ones_costs_no_digits() -> None:
    """Differences of one long float32 prefix sum would be off by 1e-3 here: the sum soon is -7,680."""
    n = 128
    generator = torch.Generator().manual_seed(0)
    inputs = ssd_op("x", heads=1, groups=1, skip=False).inputs(n, generator)
    del inputs["dt_bias"]
    inputs["dt"] = torch.full((n, 1), 1e-4, dtype=torch.float64)
    inputs["dt"][:64] = 1.0
    inputs["A"] = torch.tensor([-120.0], dtype=torch.float64)
    packing = Packing.whole([n])
    want, _ = sequential_ssd(**inputs, packing=packing, dt_softplus=False)
    got, _ = chunkwise_ssd(
        **{k: v.float() for k, v in inputs.items()}, packing=packing, dt_softplus=False, chunk_size=n
    )
    error = (got - want)[64:].abs().max() / want[64:].abs().max()
    assert error.item() < 2e-6


def test_results_do_not_read_uninitialised_memory() -> None:
    """Same call twice with the allocator's memory poisoned in between."""
    packing = Packing([100, 3, 77], n_carried=1, wanted=(0, 2))
    inputs = {k: v.float() for k, v in ssd_op("ssd").inputs(180, torch.Generator().manual_seed(0)).items()}
    state = torch.randn(1, 16, 4, 8)
    first = ssd(**inputs, packing=packing, initial_state=state)
    for size in (1 << k for k in range(6, 20)):
        torch.full((size,), float("nan"))
    second = ssd(**inputs, packing=packing, initial_state=state)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(9, 4, 8)}, r"x must be \(N=10, H, P\), got \(9, 4, 8\)"),
        ({"B": torch.zeros(10, 3, 16)}, "G a divisor of H=4"),
        ({"dt": torch.zeros(10, 3)}, r"dt must be \(N, H\) = \(10, 4\)"),
        ({"initial_state": torch.zeros(1, 4, 8, 16)}, r"initial_state must be .* = \(0, 16, 4, 8\)"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_errors_quote_the_shapes(change: dict[str, object], message: str) -> None:
    inputs = ssd_op("ssd", skip=False).inputs(10, torch.Generator().manual_seed(0))
    with pytest.raises(InvalidInputError, match=message):
        ssd(**{**inputs, "packing": Packing.whole([10]), **change})  # type: ignore[arg-type]
