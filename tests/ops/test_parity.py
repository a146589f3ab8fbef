"""Every op, every fast version: equal to its sequential reference and to itself at any split."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import PROFILE, examples
from tests.ops.harness import (
    Op,
    case,
    check_gradients,
    check_parity,
    check_poison,
    check_split,
    kernels_given,
    packings,
    parts,
    rebuild,
    with_kernels,
)
from tests.ops.registry import CASES
from thalweg.packing import Packing

every_case = pytest.mark.parametrize(("op", "fast"), CASES, ids=[f"{op.name}: {fast}" for op, fast in CASES])
few = examples(6 if PROFILE == "full" else 1)


@every_case
@few
@given(packing=packings())
def test_fast_equals_sequential(op: Op, fast: str, packing: Packing) -> None:
    check_parity(op, fast, packing, dtype=torch.float64, tolerance=1e-10)


@pytest.mark.slow
@every_case
@few
@given(packing=packings(most_tokens=300))
def test_float32_is_as_good_as_float32_can_be(op: Op, fast: str, packing: Packing) -> None:
    check_parity(op, fast, packing, dtype=torch.float32, tolerance=1e-5)


@pytest.mark.slow
@every_case
@few
@given(data=st.data())
def test_any_split_gives_the_same(op: Op, fast: str, data: st.DataObject) -> None:
    pieces = st.lists(st.integers(1, 80), min_size=1, max_size=5)
    cuts = data.draw(st.lists(pieces, min_size=1, max_size=4))
    check_split(op, fast, [sum(c) for c in cuts], cuts, tolerance=1e-5)


@every_case
def test_gradients(op: Op, fast: str) -> None:
    check_gradients(op, fast, Packing([5, 33, 1, 2, 40], n_carried=2, wanted=(0, 1, 4)))


@pytest.mark.slow
@every_case
def test_gradients_of_a_shared_state(op: Op, fast: str) -> None:
    check_gradients(op, fast, Packing([5, 33, 1, 2, 40], n_carried=3, carried_rows=[1, 0, 1], wanted=(1, 4)))


@every_case
def test_gradients_of_short_texts_only(op: Op, fast: str) -> None:
    check_gradients(op, fast, Packing.whole([3, 1, 9, 20, 2, 2]))


def takes_kernels(op: Op, fast: str) -> bool:
    """Whether a kernel does any of the work without gradients."""
    packing = Packing([3, 40], n_carried=1, wanted=(0,))
    inputs, state = case(op, packing, 0)
    low = {name: tensor.float() for name, tensor in inputs.items()}
    with torch.no_grad(), kernels_given() as given:
        op.fast[fast](**low, packing=packing, initial_state=rebuild(state, [t.float() for t in parts(state)]))
    return bool(given)


WITHOUT_GRADIENTS = [(op, fast, on) for op, fast in CASES for on in (True, False) if not on or takes_kernels(op, fast)]


@pytest.mark.parametrize(
    ("op", "fast", "on"),
    WITHOUT_GRADIENTS,
    ids=[f"{op.name}: {fast}, {'kernels' if on else 'PyTorch alone'}" for op, fast, on in WITHOUT_GRADIENTS],
)
@few
@given(data=st.data())
def test_without_gradients(op: Op, fast: str, on: bool, data: st.DataObject) -> None:
    """What the engine runs: other code than with gradients where that is faster, and kernels where one takes it."""
    pieces = st.lists(st.integers(1, 80), min_size=1, max_size=4)
    cuts = data.draw(st.lists(pieces, min_size=1, max_size=3))
    with torch.no_grad(), with_kernels(on):
        check_parity(op, fast, data.draw(packings(most_tokens=150)), dtype=torch.float32, tolerance=1e-5)
        check_split(op, fast, [sum(c) for c in cuts], cuts, tolerance=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("op", "fast", "on"),
    WITHOUT_GRADIENTS,
    ids=[f"{op.name}: {fast}, {'kernels' if on else 'PyTorch alone'}" for op, fast, on in WITHOUT_GRADIENTS],
)
@examples(5 if PROFILE == "full" else 1)
@given(data=st.data())
def test_poison_stays_in_its_segment(op: Op, fast: str, on: bool, dtype: torch.dtype, data: st.DataObject) -> None:
    packing = data.draw(packings(most_tokens=40))
    segment = data.draw(st.integers(0, packing.n_segments - 1))
    value = data.draw(st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e30, 3e38]))
    with torch.no_grad(), with_kernels(on):
        check_poison(op, fast, packing, segment, value, dtype=dtype)


@pytest.mark.parametrize(
    ("op", "fast", "on"),
    WITHOUT_GRADIENTS,
    ids=[f"{op.name}: {fast}, {'kernels' if on else 'PyTorch alone'}" for op, fast, on in WITHOUT_GRADIENTS],
)
def test_segments_that_share_a_state(op: Op, fast: str, on: bool) -> None:
    """As if each had a copy of it."""
    lengths, rows = [5, 33, 1, 2, 70, 4], [2, 0, 0, 2]
    shared = Packing(lengths, n_carried=4, carried_rows=rows, wanted=(0, 1, 4))
    inputs, state = case(op, shared, 0)
    inputs, state = {k: t.float() for k, t in inputs.items()}, rebuild(state, [t.float() for t in parts(state)])
    copied = rebuild(state, [t[rows] for t in parts(state)])
    with torch.no_grad(), with_kernels(on):
        y, final = op.fast[fast](**inputs, packing=shared, initial_state=state)
        own = Packing(lengths, n_carried=4, wanted=(0, 1, 4))
        want_y, want_final = op.fast[fast](**inputs, packing=own, initial_state=copied)
    assert torch.equal(y, want_y)
    assert all(torch.equal(a, b) for a, b in zip(parts(final), parts(want_final), strict=True))
