"""Every op under test, one row each."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tests.ops.harness import Op
from thalweg.ops.causal_conv import causal_conv, sequential_causal_conv
from thalweg.ops.ssd import chunkwise_ssd, sequential_ssd, ssd


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def conv_op(width: int, channels: int = 6, *, silu: bool = True, bias: bool = True) -> Op:
    def inputs(n: int, generator: torch.Generator) -> dict[str, Tensor]:
        found = {"x": normal(generator, n, channels), "weight": normal(generator, channels, width)}
        return {**found, "bias": normal(generator, channels)} if bias else found

    missing = {} if bias else {"bias": None}
    return Op(
        name=f"causal_conv-{width}",
        sequential=partial(sequential_causal_conv, silu=silu, **missing),
        fast={"packed": partial(causal_conv, silu=silu, **missing)},
        per_token=("x",),
        inputs=inputs,
        initial_state=lambda s, generator: normal(generator, s, width - 1, channels),
    )


def ssd_op(
    name: str,
    *,
    heads: int = 4,
    groups: int = 2,
    width: int = 8,
    state_width: int = 16,
    decay: tuple[float, float] = (0.05, 8.0),
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    skip: bool = True,
) -> Op:
    """`decay`: range of -A; with delta near 1 a token keeps exp(-decay) of the state."""

    def inputs(n: int, generator: torch.Generator) -> dict[str, Tensor]:
        found = {
            "x": normal(generator, n, heads, width),
            "dt": normal(generator, n, heads),
            "A": -uniform(generator, *decay, heads),
            "B": normal(generator, n, groups, state_width),
            "C": normal(generator, n, groups, state_width),
            "dt_bias": normal(generator, heads),
        }
        return {**found, "D": normal(generator, heads)} if skip else found

    options = {"dt_limit": dt_limit}
    chunkwise = {
        f"Q={q}, {b} side by side": partial(chunkwise_ssd, chunk_size=q, blocks_per_group=b, **options)
        for q, b in ((1, 1), (7, 1), (32, 3), (64, 1), (128, 100))
    }
    return Op(
        name=name,
        sequential=partial(sequential_ssd, **options),
        fast={"dispatched": partial(ssd, **options), **chunkwise},
        per_token=("x", "dt", "B", "C"),
        inputs=inputs,
        initial_state=lambda s, generator: normal(generator, s, state_width, heads, width),
    )


OPS = [
    *(conv_op(width) for width in (1, 2, 4, 7)),
    conv_op(4, silu=False, bias=False),
    ssd_op("ssd"),
    ssd_op("ssd-one-group", heads=3, groups=1, width=5, state_width=7, skip=False),
    ssd_op("ssd-limits", dt_limit=(0.05, 0.4)),
    ssd_op("ssd-strong-decay", decay=(20.0, 400.0)),
    ssd_op("ssd-hardly-any-decay", decay=(1e-6, 1e-4)),
    ssd_op("ssd-mixed-decay", decay=(1e-3, 200.0)),
]
CASES = [(op, fast) for op in OPS for fast in op.fast]
