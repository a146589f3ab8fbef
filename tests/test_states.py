"""States kept between steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.states import StateStore, select


class Layer(NamedTuple):
    scan: Tensor
    conv: Tensor


def state(n_rows: int, seed: int) -> tuple[Layer, ...]:
    torch.manual_seed(seed)
    return tuple(Layer(torch.randn(n_rows, 4, 6), torch.randn(n_rows, 3).to(torch.bfloat16)) for _ in range(2))


def same(a: tuple[Layer, ...], b: tuple[Layer, ...]) -> bool:
    return all(torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def test_a_store_keeps_what_it_is_given_whatever_the_number_of_rows() -> None:
    store = StateStore()
    for step, n_rows in enumerate([2, 5, 1, 0, 5, 3]):
        given = state(n_rows, step)
        kept = store.keep(given)
        assert same(kept, given)
        assert all(x.data_ptr() != y.data_ptr() for x, y in zip(kept[0], given[0], strict=True) if n_rows)


def test_rows_are_selected_in_order_and_may_be_named_twice() -> None:
    given = state(3, 0)
    picked = select(given, [2, 0, 2])
    assert torch.equal(picked[1].scan, given[1].scan[[2, 0, 2]])
