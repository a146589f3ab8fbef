"""Every op under test, one row each."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tests.ops.harness import Op
from thalweg.ops.causal_conv import causal_conv, sequential_causal_conv
from thalweg.ops.gated_delta_rule import (
    chunkwise_gated_delta_rule,
    gated_delta_rule,
    sequential_gated_delta_rule,
)
from thalweg.ops.gated_ssd import gated_ssd, sequential_gated_ssd
from thalweg.ops.mlstm import chunkwise_mlstm, mlstm, sequential_mlstm
from thalweg.ops.selective_scan import chunkwise_selective_scan, selective_scan, sequential_selective_scan
from thalweg.ops.ssd import chunkwise_ssd, sequential_ssd, ssd
from thalweg.ops.token_shift import sequential_token_shift, token_shift
from thalweg.ops.wkv7 import chunkwise_wkv7, sequential_wkv7, wkv7


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
        for q, b in ((1, 100), (7, 1), (32, 3), (64, 1), (128, 100))
    }
    return Op(
        name=name,
        sequential=partial(sequential_ssd, **options),
        fast={
            "dispatched": partial(ssd, **options),
            "dispatched, Q=7": partial(ssd, chunk_size=7, **options),
            **chunkwise,
        },
        per_token=("x", "dt", "B", "C"),
        inputs=inputs,
        initial_state=lambda s, generator: normal(generator, s, state_width, heads, width),
    )


def gated_ssd_op(
    name: str,
    *,
    heads: int = 4,
    groups: int = 2,
    width: int = 8,
    state_width: int = 16,
    taps: int = 4,
    norm_groups: int = 1,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    bias: bool = True,
) -> Op:
    """All of Mamba2 between its projections. With a small eps the norm would multiply what a y near zero is off by."""
    d_inner, channels = heads * width, heads * width + 2 * groups * state_width

    def inputs(n: int, generator: torch.Generator) -> dict[str, Tensor]:
        found = {
            "xBC": normal(generator, n, channels),
            "z": normal(generator, n, d_inner),
            "dt": normal(generator, n, heads),
            "A": -uniform(generator, 0.05, 8.0, heads),
            "conv_weight": normal(generator, channels, taps) / taps,
            "D": normal(generator, heads),
            "dt_bias": normal(generator, heads),
            "norm_weight": normal(generator, d_inner),
        }
        return {**found, "conv_bias": normal(generator, channels)} if bias else found

    options = {"head_dim": width, "n_groups": groups, "norm_groups": norm_groups, "norm_eps": 0.1, "dt_limit": dt_limit}
    missing = {} if bias else {"conv_bias": None}
    return Op(
        name=name,
        sequential=partial(sequential_gated_ssd, **options, **missing),
        fast={
            "dispatched": partial(gated_ssd, **options, **missing),
            "dispatched, Q=7": partial(gated_ssd, chunk_size=7, **options, **missing),
        },
        per_token=("xBC", "z", "dt"),
        inputs=inputs,
        initial_state=lambda s, generator: (
            normal(generator, s, taps - 1, channels),
            normal(generator, s, state_width, heads, width),
        ),
    )


def selective_scan_op(
    name: str,
    *,
    channels: int = 6,
    state_width: int = 5,
    decay: tuple[float, float] = (0.05, 16.0),
    gate: float = 1.0,
    skip: bool = True,
) -> Op:
    """`decay`: range of -A, uniform in its logarithm; `gate`: dt is uniform between -gate and gate."""

    def inputs(n: int, generator: torch.Generator) -> dict[str, Tensor]:
        low, high = (torch.tensor(bound, dtype=torch.float64).log().item() for bound in decay)
        found = {
            "x": normal(generator, n, channels),
            "dt": uniform(generator, -gate, gate, n, channels),
            "A": -uniform(generator, low, high, channels, state_width).exp(),
            "B": normal(generator, n, state_width),
            "C": normal(generator, n, state_width),
            "dt_bias": normal(generator, channels),
        }
        return {**found, "D": normal(generator, channels)} if skip else found

    chunkwise = {
        f"Q={q}, {b} side by side": partial(chunkwise_selective_scan, chunk_size=q, blocks_per_group=b)
        for q, b in ((3, 1), (7, 2), (32, 3), (128, 100))
    }
    return Op(
        name=name,
        sequential=sequential_selective_scan,
        fast={"dispatched": selective_scan, **chunkwise},
        per_token=("x", "dt", "B", "C"),
        inputs=inputs,
        initial_state=lambda s, generator: normal(generator, s, state_width, channels),
    )


def gated_delta_rule_op(
    name: str,
    *,
    key_heads: int = 2,
    heads: int = 4,
    width: int = 8,
    value_width: int = 10,
    g: tuple[float, float] = (-3.0, 0.0),
    beta: tuple[float, float] = (0.0, 2.0),
    l2norm: bool = True,
) -> Op:
    """`g` and `beta`: ranges of the log decay and of the writing strength of a token."""

    def inputs(n: int, generator: torch.Generator) -> dict[str, Tensor]:
        scale = 1.0 if l2norm else width**-0.5  # |k|^2 near 1: the rule is stable
        return {
            "q": normal(generator, n, key_heads, width),
            "k": scale * normal(generator, n, key_heads, width),
            "v": normal(generator, n, heads, value_width),
            "g": uniform(generator, *g, n, heads),
            "beta": uniform(generator, *beta, n, heads),
        }

    chunkwise = {
        f"Q={q}, {b} side by side": partial(chunkwise_gated_delta_rule, chunk_size=q, blocks_per_group=b, l2norm=l2norm)
        for q, b in ((1, 100), (7, 3), (64, 1))
    }
    return Op(
        name=name,
        sequential=partial(sequential_gated_delta_rule, l2norm=l2norm),
        fast={"dispatched": partial(gated_delta_rule, l2norm=l2norm), **chunkwise},
        per_token=("q", "k", "v", "g", "beta"),
        inputs=inputs,
        initial_state=lambda s, generator: normal(generator, s, heads, width, value_width),
    )


def mlstm_op(
    name: str,
    *,
    heads: int = 3,
    width: int = 8,
    value_width: int = 10,
    i: tuple[float, float] = (-3.0, 2.0),
    f: tuple[float, float] = (-1.0, 6.0),
    positive: bool = False,
    chunks: tuple[tuple[int, int], ...] = ((32, 3),),
) -> Op:
    """`i` and `f`: ranges of the gates before exp and sigmoid; `chunks`: Q and blocks side by side of fast versions.

    `positive` queries, keys and n: without it n . q is near zero for some token, and the output, which is divided by
    it, knows as few digits as it does. Only where i stays small does exp(-m) keep the normaliser away from zero.
    """

    def signed(generator: torch.Generator, *shape: int) -> Tensor:
        found = normal(generator, *shape)
        return found.abs() if positive else found

    def inputs(n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "q": signed(generator, n, heads, width),
            "k": signed(generator, n, heads, width),
            "v": normal(generator, n, heads, value_width),
            "i": uniform(generator, *i, n, heads),
            "f": uniform(generator, *f, n, heads),
        }

    def initial_state(s: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (
            normal(generator, s, heads, width, value_width),
            signed(generator, s, heads, width),
            normal(generator, s, heads),
        )

    chunkwise = {
        f"Q={q}, {b} side by side": partial(chunkwise_mlstm, chunk_size=q, blocks_per_group=b) for q, b in chunks
    }
    return Op(
        name=name,
        sequential=sequential_mlstm,
        fast={"dispatched": mlstm, "dispatched, Q=7": partial(mlstm, chunk_size=7), **chunkwise},
        per_token=("q", "k", "v", "i", "f"),
        inputs=inputs,
        initial_state=initial_state,
    )


def token_shift_op(width: int = 6) -> Op:
    return Op(
        name="token_shift",
        sequential=sequential_token_shift,
        fast={"packed": token_shift},
        per_token=("x",),
        inputs=lambda n, generator: {"x": normal(generator, n, width)},
        initial_state=lambda s, generator: normal(generator, s, width),
    )


def wkv7_op(
    name: str,
    *,
    heads: int = 3,
    width: int = 8,
    value_width: int = 10,
    decay: tuple[float, float] = (0.0, 0.6065),
    a: tuple[float, float] = (0.0, 1.0),
) -> Op:
    """`decay` and `a`: ranges of -log w and of how much is taken out."""

    def inputs(n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "r": normal(generator, n, heads, width),
            "log_w": -uniform(generator, *decay, n, heads, width),
            "k": normal(generator, n, heads, width),
            "v": normal(generator, n, heads, value_width),
            "kk": torch.nn.functional.normalize(normal(generator, n, heads, width), dim=2),
            "a": uniform(generator, *a, n, heads, width),
        }

    chunkwise = {
        f"Q={q}, {b} side by side": partial(chunkwise_wkv7, chunk_size=q, blocks_per_group=b)
        for q, b in ((1, 100), (7, 1), (32, 3), (64, 1), (64, 100))
    }
    return Op(
        name=name,
        sequential=sequential_wkv7,
        fast={"dispatched": wkv7, **chunkwise},
        per_token=("r", "log_w", "k", "v", "kk", "a"),
        inputs=inputs,
        initial_state=lambda s, generator: normal(generator, s, heads, value_width, width),
    )


OPS = [
    mlstm_op("mlstm", chunks=((1, 1), (7, 1), (32, 3), (128, 100))),
    # A single m near zero, a logarithm, has few digits left: i keeps it away from there.
    mlstm_op("mlstm-one-head", heads=1, width=1, value_width=3, i=(0.5, 2.0), positive=True),
    mlstm_op("mlstm-odd-widths", heads=5, width=17, value_width=33),
    mlstm_op("mlstm-all-gates-to-their-caps", i=(-15.0, 15.0), f=(-15.0, 15.0), positive=True),
    mlstm_op("mlstm-open-never-forgetting", i=(15.0, 15.0), f=(15.0, 15.0), positive=True),
    mlstm_op("mlstm-open-forgetting", i=(15.0, 15.0), f=(-15.0, -15.0), positive=True),
    mlstm_op("mlstm-closed-never-forgetting", i=(-15.0, -15.0), f=(15.0, 15.0)),
    mlstm_op("mlstm-closed-forgetting", i=(-15.0, -15.0), f=(-15.0, -15.0)),
    *(conv_op(width) for width in (1, 2, 4, 7)),
    conv_op(4, silu=False, bias=False),
    ssd_op("ssd"),
    ssd_op("ssd-one-group", heads=3, groups=1, width=5, state_width=7, skip=False),
    ssd_op("ssd-wide-heads", heads=2, groups=1, width=67, state_width=19),
    ssd_op("ssd-limits", dt_limit=(0.05, 0.4)),
    ssd_op("ssd-strong-decay", decay=(20.0, 400.0)),
    ssd_op("ssd-hardly-any-decay", decay=(1e-6, 1e-4)),
    ssd_op("ssd-mixed-decay", decay=(1e-3, 200.0)),
    gated_ssd_op("gated_ssd"),
    gated_ssd_op("gated_ssd-odd", heads=3, groups=3, width=7, state_width=5, taps=3, norm_groups=3, bias=False),
    gated_ssd_op("gated_ssd-limits", groups=1, width=33, taps=1, dt_limit=(0.05, 0.4)),
    gated_delta_rule_op("gated_delta_rule"),
    gated_delta_rule_op(
        "gated_delta_rule-strong-decay", key_heads=3, heads=3, g=(-30.0, -10.0), beta=(0.0, 0.5), l2norm=False
    ),
    gated_delta_rule_op("gated_delta_rule-hardly-any-decay", key_heads=1, g=(-1e-4, -1e-6)),
    gated_delta_rule_op("gated_delta_rule-mixed-decay", key_heads=4, g=(-30.0, 0.0), beta=(1.0, 2.0)),
    token_shift_op(),
    wkv7_op("wkv7"),
    wkv7_op("wkv7-wide", heads=2, width=33, value_width=70),
    wkv7_op("wkv7-strongest-decay", decay=(0.6064, 0.6065)),
    wkv7_op("wkv7-hardly-any-decay", decay=(0.0, 1e-6), width=5),
    wkv7_op("wkv7-all-taken-out", a=(0.9999, 1.0), decay=(0.0, 1e-4), heads=1),
    wkv7_op("wkv7-nothing-taken-out", a=(0.0, 1e-6), value_width=3),
    selective_scan_op("selective-scan"),
    selective_scan_op("selective-scan-strong-decay", decay=(20.0, 400.0)),
    selective_scan_op("selective-scan-hardly-any-decay", decay=(1e-6, 1e-4), skip=False),
    selective_scan_op("selective-scan-mixed-decay", decay=(1e-3, 200.0)),
    selective_scan_op("selective-scan-gates", gate=15.0),
]
CASES = [(op, fast) for op in OPS for fast in op.fast]
