"""A tiny random model of every variant of every family; `test_families.py` tests all that the engine asks of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from thalweg import families
from thalweg.models.xlstm import XLSTM

VOCABULARY = 64


def make(family: families.Family, variant: str) -> Any:
    """A model of one of the family's tiny configs, of which every parameter matters."""
    model = family.build(family.tiny[variant])
    if isinstance(model, XLSTM):
        for block in model.layers:
            block.mlstm.i.bias.data.uniform_(-2, 1)  # open gates: at their first values hardly anything is remembered
    return model


FAMILIES: dict[str, Callable[[], Any]] = {
    variant: partial(make, family, variant) for family in families.FAMILIES for variant in family.tiny
}
