"""A tiny random model of every family, one row each: `test_families.py` proves the engine's promises on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thalweg.models.mamba2 import Mamba2, Mamba2Config

VOCABULARY = 64


def mamba2() -> Mamba2:
    return Mamba2(
        Mamba2Config(
            vocab_size=VOCABULARY,
            d_model=24,
            n_layers=3,
            n_heads=4,
            head_dim=8,
            d_state=8,
            n_groups=2,
            time_step_limit=(0.0, 2.0),
        )
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "mamba2": mamba2,
}
