"""Every op, every fast version: equal to its sequential reference and to itself at any split."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ops.harness import Op, check_gradients, check_parity, check_split, native_kernels, packings
from tests.ops.registry import CASES
from thalweg.packing import Packing

every_case = pytest.mark.parametrize(("op", "fast"), CASES, ids=[f"{op.name}: {fast}" for op, fast in CASES])
few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@every_case
@few
@given(packing=packings())
def test_fast_equals_sequential(op: Op, fast: str, packing: Packing) -> None:
    check_parity(op, fast, packing, dtype=torch.float64, tolerance=1e-10)


@every_case
@few
@given(packing=packings(most_tokens=300))
def test_float32_is_as_good_as_float32_can_be(op: Op, fast: str, packing: Packing) -> None:
    check_parity(op, fast, packing, dtype=torch.float32, tolerance=1e-5)


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


@every_case
def test_gradients_of_short_texts_only(op: Op, fast: str) -> None:
    check_gradients(op, fast, Packing.whole([3, 1, 9, 20, 2, 2]))


@pytest.mark.parametrize("kernels", [True, False], ids=["native kernels", "PyTorch alone"])
@every_case
@few
@given(data=st.data())
def test_without_gradients(op: Op, fast: str, kernels: bool, data: st.DataObject) -> None:
    """What the engine runs: other code than with gradients where that is faster, with and without native kernels."""
    pieces = st.lists(st.integers(1, 80), min_size=1, max_size=4)
    cuts = data.draw(st.lists(pieces, min_size=1, max_size=3))
    with torch.no_grad(), native_kernels(kernels):
        check_parity(op, fast, data.draw(packings(most_tokens=150)), dtype=torch.float32, tolerance=1e-5)
        check_split(op, fast, [sum(c) for c in cuts], cuts, tolerance=1e-5)
