"""What the shared harness does not say of `selective_scan`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.harness import relative_error
from tests.ops.registry import selective_scan_op
from thalweg.errors import InvalidInputError
from thalweg.ops.selective_scan import chunkwise_selective_scan, selective_scan, sequential_selective_scan
from thalweg.packing import Packing

PACKING = Packing([5, 32, 70, 20], n_carried=1, wanted=(0, 2))


def inputs(n: int, dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, Tensor]:
    found = selective_scan_op("x", **options).inputs(n, torch.Generator().manual_seed(0))
    return {name: tensor.to(dtype) for name, tensor in found.items()}


@pytest.mark.parametrize("side_by_side", [1, 3])
@pytest.mark.parametrize("rows", [(), (0,), (4, 5, 36, 80), (126,)])
def test_only_the_wanted_rows(rows: tuple[int, ...], side_by_side: int) -> None:
    given, state = inputs(127), torch.randn(1, 5, 6)
    y, final = sequential_selective_scan(**given, packing=PACKING, initial_state=state)
    some, some_final = chunkwise_selective_scan(
        **given, packing=PACKING, initial_state=state, rows=rows, chunk_size=32, blocks_per_group=side_by_side
    )
    torch.testing.assert_close(some, y[list(rows)], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some_final, final, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side_by_side", [1, 2])
def test_any_inner_chunk(side_by_side: int) -> None:
    given, state = inputs(127), torch.randn(1, 5, 6)
    y, final = sequential_selective_scan(**given, packing=PACKING, initial_state=state)
    for chunk_size in (1, 2, 5, 19, 127, 1000):
        got, got_final = chunkwise_selective_scan(
            **given, packing=PACKING, initial_state=state, chunk_size=chunk_size, blocks_per_group=side_by_side
        )
        assert relative_error(got, y) < 1e-6
        assert relative_error(got_final, final) < 1e-6


@pytest.mark.parametrize("decay", [(1e-6, 1e-4), (1e-3, 200.0)], ids=["hardly any decay", "mixed"])
def test_one_hundred_thousand_steps_neither_drift_nor_overflow(decay: tuple[float, float]) -> None:
    n, options = 100_000, {"decay": decay, "channels": 3, "state_width": 2}
    packing = Packing([n], wanted=(0,))
    exact, exact_state = chunkwise_selective_scan(
        **inputs(n, torch.float64, **options), packing=packing, chunk_size=100, blocks_per_group=1000
    )
    y, state = selective_scan(**inputs(n, **options), packing=packing)
    assert relative_error(y, exact) < 1e-5
    assert relative_error(state, exact_state) < 1e-5


def test_a_strong_decay_before_weak_ones_costs_no_digits() -> None:
    """With decays as quotients of running products all of the second half would be 0 / 0."""
    n = 128
    given = inputs(n, torch.float64, channels=2, state_width=3)
    del given["dt_bias"]
    given["dt"] = torch.full((n, 2), 1e-4, dtype=torch.float64)
    given["dt"][: n // 2] = 1.0
    given["A"] = torch.full((2, 3), -120.0, dtype=torch.float64)
    want, _ = sequential_selective_scan(**given, packing=Packing.whole([n]), dt_softplus=False)
    low = {name: tensor.float() for name, tensor in given.items()}
    for blocks in (1, 2):
        got, _ = chunkwise_selective_scan(
            **low, packing=Packing.whole([n]), dt_softplus=False, chunk_size=n // blocks, blocks_per_group=2
        )
        assert relative_error(got[n // 2 :], want[n // 2 :]) < 2e-6


@pytest.mark.parametrize("side_by_side", [1, 3])
def test_bfloat16_inputs_are_rounded_once(side_by_side: int) -> None:
    """Everything inside is float32: what comes out is the exact result for the rounded inputs, rounded."""
    given = inputs(127, torch.bfloat16)
    y, final = chunkwise_selective_scan(**given, packing=PACKING, chunk_size=16, blocks_per_group=side_by_side)
    exact, exact_final = sequential_selective_scan(**{k: v.float() for k, v in given.items()}, packing=PACKING)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    assert relative_error(final, exact_final) < 1e-6
    assert relative_error(y, exact) < 2**-8


def test_what_gradients_keep_does_not_grow_with_the_state() -> None:
    """Tensors saved for the backward pass: the inputs, and one state a group; never one state a token."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    n, channels, width = 512, 64, 64
    given = {name: t.requires_grad_() for name, t in inputs(n, channels=channels, state_width=width).items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = chunkwise_selective_scan(**given, packing=Packing.whole([n]), chunk_size=16, blocks_per_group=4)
    y.sum().backward()
    assert sum(kept.values()) < 0.2 * 4 * n * channels * width


def test_results_do_not_read_uninitialised_memory() -> None:
    """Same call twice with the allocator's memory poisoned in between."""
    given, state = inputs(127), torch.randn(1, 5, 6)
    first = selective_scan(**given, packing=PACKING, initial_state=state)
    for size in (1 << k for k in range(6, 20)):
        torch.full((size,), float("nan"))
    second = selective_scan(**given, packing=PACKING, initial_state=state)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(9, 6)}, r"x must be \(N=10, E\), got \(9, 6\)"),
        ({"dt": torch.zeros(10, 5)}, r"dt must be \(N, E\) = \(10, 6\), got \(10, 5\)"),
        ({"A": torch.zeros(5, 6)}, r"A must be \(E=6, K\), got \(5, 6\)"),
        ({"C": torch.zeros(10, 4)}, r"B and C must be \(N, K\) = \(10, 5\), got \(10, 5\) and \(10, 4\)"),
        ({"initial_state": torch.zeros(1, 5, 6)}, r"initial_state must be .* = \(0, 5, 6\), got \(1, 5, 6\)"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_errors_quote_the_shapes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        selective_scan(**{**inputs(10), "packing": Packing.whole([10]), **change})
