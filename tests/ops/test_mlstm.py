"""What the shared harness does not say of `mlstm`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.harness import with_kernels
from tests.ops.registry import mlstm_op
from thalweg.errors import InvalidInputError
from thalweg.ops.mlstm import MLSTMState, chunkwise_mlstm, mlstm, sequential_mlstm
from thalweg.packing import Packing


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).abs().max() / want.double().abs().max()).item()


@pytest.mark.parametrize("side_by_side", [1, 3])
@pytest.mark.parametrize("rows", [(), (0,), (4, 5, 36, 80), (126,)])
def test_only_the_wanted_rows(rows: tuple[int, ...], side_by_side: int) -> None:
    packing = Packing([5, 32, 70, 20], n_carried=1, wanted=(2,))
    op, generator = mlstm_op("x"), torch.Generator().manual_seed(0)
    inputs, state = op.inputs(127, generator), op.initial_state(1, generator)
    y, final = sequential_mlstm(**inputs, packing=packing, initial_state=state)
    some, some_final = chunkwise_mlstm(
        **inputs, packing=packing, initial_state=state, rows=rows, chunk_size=32, blocks_per_group=side_by_side
    )
    torch.testing.assert_close(some, y[list(rows)], rtol=1e-9, atol=1e-9)
    for got, want in zip(some_final, final, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    few, _ = sequential_mlstm(**inputs, packing=packing, initial_state=state, rows=rows)
    assert torch.equal(few, y[list(rows)])


@pytest.mark.parametrize(
    ("i", "f"),
    [((-3.0, 2.0), (4.0, 9.0)), ((15.0, 15.0), (15.0, 15.0)), ((-15.0, 15.0), (-15.0, 15.0)), ((-15.0,) * 2,) * 2],
    ids=["usual", "open", "all over", "shut"],
)
def test_one_hundred_thousand_steps_neither_drift_nor_overflow(i: tuple[float, float], f: tuple[float, float]) -> None:
    """float32 in ten pieces against float64 in one, which checks the carried m too: it is 15 at most, not a sum."""
    n, parts = 100_000, 10
    op = mlstm_op("long", heads=1, width=4, value_width=4, i=i, f=f, positive=True)
    inputs = op.inputs(n, torch.Generator().manual_seed(0))
    exact, exact_state = chunkwise_mlstm(**inputs, packing=Packing([n], wanted=(0,)), chunk_size=100)
    state: MLSTMState | None = None
    pieces = []
    for part in range(parts):
        low = {name: tensor.float().chunk(parts)[part] for name, tensor in inputs.items()}
        packing = Packing([n // parts], n_carried=int(part > 0), wanted=(0,))
        with torch.no_grad():
            y, state = mlstm(**low, packing=packing, initial_state=state)
        pieces.append(y)
    assert relative(torch.cat(pieces), exact) < 1e-5
    assert state is not None
    for got, want in zip(state, exact_state, strict=True):
        assert relative(got, want) < 1e-5


def test_m_starts_at_zero_in_every_fresh_segment() -> None:
    """With shut gates m_0 shows: from minus infinity the first weight would be 1 and y 0.5, not exp(-10)."""
    one = torch.ones(40, 1, 1, dtype=torch.float64)
    gates = {"i": torch.full((40, 1), -10.0, dtype=torch.float64), "f": torch.full((40, 1), 5.0, dtype=torch.float64)}
    y, state = mlstm(one, one, one, **gates, packing=Packing([1] * 39 + [1], wanted=(39,)), eps=0.0)
    m = torch.nn.functional.logsigmoid(torch.tensor(5.0, dtype=torch.float64))
    torch.testing.assert_close(y, torch.exp(torch.tensor(-10.0, dtype=torch.float64)).expand_as(y))
    torch.testing.assert_close(state.m, m.expand(1, 1))


def test_signed_queries_at_open_gates_are_as_good_as_the_reference_is_in_float32() -> None:
    """n . q comes near zero there, and digits are lost by anyone: no more here than token by token."""
    op, generator = mlstm_op("x", width=32, i=(-15.0, 15.0), f=(-15.0, 15.0)), torch.Generator().manual_seed(0)
    inputs = op.inputs(700, generator)
    low = {name: tensor.float() for name, tensor in inputs.items()}
    packing = Packing([500, 3, 197], wanted=(0,))
    exact, _ = sequential_mlstm(**inputs, packing=packing)
    slow, _ = sequential_mlstm(**low, packing=packing)
    fast, _ = mlstm(**low, packing=packing)
    size = exact.abs().amax(2)

    def typical(y: Tensor) -> float:
        return ((y - exact).abs().amax(2) / size).median().item()

    def worst(y: Tensor) -> float:
        return ((y - exact).abs().amax(2) / size).max().item()

    assert typical(fast) <= 1e-6
    assert worst(fast) <= 2 * worst(slow)


def test_bfloat16_inputs_lose_only_what_their_output_rounds() -> None:
    op, generator = mlstm_op("x", positive=True), torch.Generator().manual_seed(0)
    low = {name: tensor.bfloat16() for name, tensor in op.inputs(300, generator).items()}
    packing = Packing([250, 50], wanted=(0, 1))
    want, state = sequential_mlstm(**{name: tensor.double() for name, tensor in low.items()}, packing=packing)
    with torch.no_grad():
        y, low_state = mlstm(**low, packing=packing)
        with with_kernels(False):
            plain, plain_state = mlstm(**low, packing=packing)
    assert y.dtype == plain.dtype == torch.bfloat16
    assert relative(plain, want) <= 2**-8
    assert relative(y, want) <= 2**-7  # kernels leave the products in bfloat16
    for got, alone, exact in zip(low_state, plain_state, state, strict=True):
        assert got.dtype == alone.dtype == torch.float32
        assert relative(alone, exact) <= 1e-5
        assert relative(got, exact) <= 2**-8


def test_results_do_not_read_uninitialised_memory() -> None:
    """Same call twice with the allocator's memory poisoned in between."""
    packing = Packing([100, 3, 77], n_carried=1, wanted=(0, 2))
    op, generator = mlstm_op("x"), torch.Generator().manual_seed(0)
    inputs = {name: tensor.float() for name, tensor in op.inputs(180, generator).items()}
    state = op.initial_state(1, generator)
    first = mlstm(**inputs, packing=packing, initial_state=state)
    for size in (1 << k for k in range(6, 20)):
        torch.full((size,), float("nan"))
    second = mlstm(**inputs, packing=packing, initial_state=state)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(9, 3, 8)}, r"q and k must be \(N=10, H, K\), got \(9, 3, 8\) and \(10, 3, 8\)"),
        ({"k": torch.zeros(10, 3, 7)}, r"got \(10, 3, 8\) and \(10, 3, 7\)"),
        ({"v": torch.zeros(10, 2, 8)}, r"v must be .* N, H = \(10, 3\), got \(10, 2, 8\)"),
        ({"f": torch.zeros(10, 1)}, r"i and f must be \(N, H\) = \(10, 3\), got \(10, 3\) and \(10, 1\)"),
        ({"initial_state": (torch.zeros(1, 3, 8, 8),) * 3}, r"initial_state must be C .* = \(\(0, 3, 8, 10\)"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_errors_quote_the_shapes(change: dict[str, object], message: str) -> None:
    inputs = mlstm_op("x").inputs(10, torch.Generator().manual_seed(0))
    with pytest.raises(InvalidInputError, match=message):
        mlstm(**{**inputs, "packing": Packing.whole([10]), **change})  # type: ignore[arg-type]
