"""What the shared harness does not say of `wkv7`."""

from __future__ import annotations

import pytest
import torch

from tests.ops.harness import relative_error
from tests.ops.registry import wkv7_op
from thalweg.errors import InvalidInputError
from thalweg.ops.wkv7 import MAX_CHUNK, chunkwise_wkv7, sequential_wkv7, wkv7
from thalweg.packing import Packing


@pytest.mark.parametrize("side_by_side", [1, 3])
@pytest.mark.parametrize("only_their_r", [False, True])
@pytest.mark.parametrize("rows", [(), (0,), (4, 5, 36, 80), (126,)])
def test_only_the_wanted_rows(rows: tuple[int, ...], only_their_r: bool, side_by_side: int) -> None:
    packing = Packing([5, 32, 70, 20], n_carried=1, wanted=(2,))
    inputs = wkv7_op("wkv7").inputs(packing.n_tokens, torch.Generator().manual_seed(0))
    state = torch.randn(1, 3, 10, 8, dtype=torch.float64)
    y, final = sequential_wkv7(**inputs, packing=packing, initial_state=state)
    if only_their_r:
        inputs["r"] = inputs["r"][list(rows)]
    some, some_final = chunkwise_wkv7(
        **inputs, packing=packing, initial_state=state, rows=rows, chunk_size=32, blocks_per_group=side_by_side
    )
    torch.testing.assert_close(some, y[list(rows)])
    torch.testing.assert_close(some_final, final)


@pytest.mark.parametrize("decay", [(0.0, 1e-4), (0.0, 0.6065)], ids=["hardly any decay", "any decay"])
def test_one_hundred_thousand_steps_neither_drift_nor_overflow(decay: tuple[float, float]) -> None:
    n = 100_000
    op = wkv7_op("long", heads=1, width=6, value_width=4, decay=decay)
    inputs = op.inputs(n, torch.Generator().manual_seed(0))
    packing = Packing([n], wanted=(0,))
    exact, exact_state = chunkwise_wkv7(**inputs, packing=packing, chunk_size=50)
    low = {name: tensor.float() for name, tensor in inputs.items()}
    y, state = wkv7(**low, packing=packing)
    assert relative_error(y, exact) < 1e-5
    assert relative_error(state, exact_state) < 1e-5


@pytest.mark.parametrize("side_by_side", [1, 100])
def test_the_strongest_decay_all_along_the_longest_block(side_by_side: int) -> None:
    """Factors not centred in the block would be off by its whole decay, e^38; also the same direction every time."""
    inputs = wkv7_op("strong", decay=(0.6065, 0.6065), a=(1.0, 1.0)).inputs(300, torch.Generator().manual_seed(0))
    inputs["kk"] = inputs["kk"][:1].expand_as(inputs["kk"]).clone()
    packing = Packing([300], n_carried=1, wanted=(0,))
    state = torch.randn(1, 3, 10, 8, dtype=torch.float64)
    want, want_state = sequential_wkv7(**inputs, packing=packing, initial_state=state)
    low = {name: tensor.float() for name, tensor in inputs.items()}
    got, got_state = chunkwise_wkv7(
        **low, packing=packing, initial_state=state.float(), chunk_size=MAX_CHUNK, blocks_per_group=side_by_side
    )
    assert relative_error(got, want) < 3e-6
    assert relative_error(got_state, want_state) < 3e-6


def test_any_chunk_size_is_taken() -> None:
    inputs = wkv7_op("wkv7").inputs(150, torch.Generator().manual_seed(0))
    want, _ = sequential_wkv7(**inputs, packing=Packing.whole([150]))
    for size in (1, 2, 33, MAX_CHUNK, 1000):
        got, _ = wkv7(**inputs, packing=Packing.whole([150]), chunk_size=size)
        torch.testing.assert_close(got, want)


def test_half_precision_inputs_keep_a_float32_state() -> None:
    """All is computed in float32: no further from the exact result than its own rounding, 2^-9."""
    packing = Packing([100, 3, 77], n_carried=1, wanted=(0, 2))
    inputs = wkv7_op("wkv7").inputs(180, torch.Generator().manual_seed(0))
    low = {name: tensor.bfloat16() for name, tensor in inputs.items()}
    state = torch.randn(1, 3, 10, 8)
    want, want_state = sequential_wkv7(
        **{name: tensor.double() for name, tensor in low.items()}, packing=packing, initial_state=state.double()
    )
    y, final = wkv7(**low, packing=packing, initial_state=state)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    assert relative_error(y, want) < 2**-8
    assert relative_error(final, want_state) < 1e-5


def test_results_do_not_read_uninitialised_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch that begins as NaN: blocks of every kind, none of which may let it through."""
    packing = Packing([100, 3, 77, 1, 40], n_carried=1, wanted=(0, 2))
    inputs = {k: v.float() for k, v in wkv7_op("wkv7").inputs(221, torch.Generator().manual_seed(0)).items()}
    state = torch.randn(1, 3, 10, 8)
    want = wkv7(**inputs, packing=packing, initial_state=state)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **options: empty(*args, **options).fill_(float("nan")))
    got = wkv7(**inputs, packing=packing, initial_state=state)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(9, 3, 8)}, r"k must be \(N=10, H, K\), got \(9, 3, 8\)"),
        ({"a": torch.zeros(10, 3)}, r"a must be \(N, H, K\) = \(10, 3, 8\), got \(10, 3\)"),
        ({"v": torch.zeros(10, 2, 8)}, r"v must be \(N=10, H=3, V\), got \(10, 2, 8\)"),
        ({"r": torch.zeros(2, 3, 8)}, r"r must be \(10, H, K\) with \(H, K\) = \(3, 8\), got \(2, 3, 8\)"),
        ({"r": torch.zeros(3, 3, 8), "rows": (1, 2)}, r"r must be \(10 or 2, H, K\)"),
        ({"initial_state": torch.zeros(1, 3, 8, 10)}, r"initial_state must be .* = \(0, 3, 10, 8\)"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_errors_quote_the_shapes(change: dict[str, object], message: str) -> None:
    inputs = wkv7_op("wkv7").inputs(10, torch.Generator().manual_seed(0))
    with pytest.raises(InvalidInputError, match=message):
        wkv7(**{**inputs, "packing": Packing.whole([10]), **change})  # type: ignore[arg-type]
