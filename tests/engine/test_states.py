"""States kept between steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.engine.states import StateStore, select


class Layer(NamedTuple):
    scan: Tensor
    conv: Tensor


def state(n_rows: int, seed: int) -> tuple[Layer, ...]:
    torch.manual_seed(seed)
    return tuple(Layer(torch.randn(n_rows, 4, 6), torch.randn(n_rows, 3).to(torch.bfloat16)) for _ in range(2))


def same(a: tuple[Layer, ...], b: tuple[Layer, ...]) -> bool:
    return all(torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


@torch.inference_mode()
def write(to: tuple[Layer, ...], given: tuple[Layer, ...]) -> None:
    for layer, values in zip(to, given, strict=True):
        for tensor, value in zip(layer, values, strict=True):
            tensor.copy_(value)


def test_a_store_keeps_what_is_written_to_it_when_it_grows() -> None:
    store = StateStore(state(1, 9))
    given = state(2, 0)
    store.ensure_capacity(2)
    write(store.rows(0, 2), given)
    store.ensure_capacity(5)
    longer = store.rows(0, 5)
    assert same(select(longer, [0, 1]), given)
    assert same(store.rows(0, 2), given)
    assert all(x.data_ptr() == y.data_ptr() for x, y in zip(store.rows(0, 1)[0], longer[0], strict=True))


def test_the_first_rows_of_a_store_become_those_that_are_kept() -> None:
    store = StateStore(state(1, 9))
    given = state(4, 0)
    store.ensure_capacity(4)
    write(store.rows(0, 4), given)
    store.arrange([1, 3])
    assert same(store.rows(0, 2), select(given, [1, 3]))
    store.arrange([])
    assert len(store.rows(0, 0)[0].scan) == 0


def test_rows_are_selected_in_order_and_may_be_named_twice() -> None:
    given = state(3, 0)
    picked = select(given, [2, 0, 2])
    assert torch.equal(picked[1].scan, given[1].scan[[2, 0, 2]])
