"""The model families, one row each. Whatever else needs to know which families there are derives it from these rows.

A new family is its model (`models/`), its checkpoint formats (`checkpoints/`) and a row here. Rows are plain data, so
that the command line can list families without torch: what needs torch is named ("module:name") and imported when it
is first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Product = tuple[int, int, int, int]
"""(b, m, k, n): b matrix products of (m, k) by (k, n)."""


@dataclass(frozen=True)
class Size:
    """One size of a family.

    Args:
        name: what `thalweg bench --shape` calls it.
        config: the fields of the family's config.
        like: whose public config the numbers are, or that there is no public model of that size.
    """

    name: str
    config: dict[str, Any]
    like: str


@dataclass(frozen=True)
class TransformersClass:
    """One of the classes through which transformers runs a family.

    Args:
        model_type: of its config.json.
        model: name of thalweg's class, a `PreTrainedModel`.
        config: name of its config class, which is transformers' own, or thalweg's where transformers lacks the family.
        format: the checkpoint format that it is read from and written in.
        summary: the docstring of the model's class.
    """

    model_type: str
    model: str
    config: str
    format: str
    summary: str


@dataclass(frozen=True)
class Family:
    """One model family.

    Args:
        name: in formats, options and results.
        title: in text and figures.
        colour, marker: in figures, as matplotlib writes them.
        model, config: the model's class and its config dataclass.
        formats: the tuple of its checkpoint formats.
        transformers: thalweg's classes for transformers; empty where it has none.
        in_transformers: whether transformers has the family itself, so that its own config classes are used.
        sizes: the smallest first, which is also what is measured on a CPU.
        measured_on_gpu: the names of the sizes that are measured on a GPU.
        tiny: configs for tests, one for each variant of the family that takes another path through its code.
        inner_chunk: (config, device, dtype) → the inner chunk Q of its scan where none is set.
        scan_products: (config, Q) → the matrix products of one layer's scan of a block of Q tokens; None for a scan
            that has no such form, whose time does not depend on Q either.
        peers: other software that runs its random weights (`bench/peers.py`).
    """

    name: str
    title: str
    colour: str
    marker: str
    model: str
    config: str
    formats: str
    transformers: tuple[TransformersClass, ...]
    in_transformers: bool
    sizes: tuple[Size, ...]
    measured_on_gpu: tuple[str, ...]
    tiny: dict[str, dict[str, Any]]
    inner_chunk: Callable[[Any, Any, Any], int]
    scan_products: Callable[[Any, int], list[Product]] | None = None
    peers: tuple[str, ...] = ()

    def build(self, config: dict[str, Any]) -> Any:
        """A model with random weights, in torch's default dtype and device, from the fields of its config."""
        return named(self.model)(named(self.config)(**config))


def named(reference: str) -> Any:
    """What "module:name" names; the module is imported."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def find_family(name: str) -> Family:
    """The family of that name, which must be one."""
    return next(family for family in FAMILIES if family.name == name)


def family_of(config: object) -> Family:
    """The family of a model's config."""
    name = f"{type(config).__module__}:{type(config).__qualname__}"
    return next(family for family in FAMILIES if family.config == name)


def _mamba2_sizes() -> Iterable[Size]:
    for size, d_model, n_layers in (
        ("130m", 768, 24),
        ("370m", 1024, 48),
        ("780m", 1536, 48),
        ("1.3b", 2048, 48),
        ("2.7b", 2560, 64),
    ):
        config = {"vocab_size": 50288, "d_model": d_model, "n_layers": n_layers, "n_heads": d_model // 32}
        yield Size(f"mamba2-{size}", {**config, "head_dim": 64, "d_state": 128}, f"state-spaces/mamba2-{size}")
    codestral = {"vocab_size": 32768, "d_model": 4096, "n_layers": 64, "n_heads": 128, "head_dim": 64}
    yield Size("codestral-7b", {**codestral, "d_state": 128, "n_groups": 8}, "mistralai/Mamba-Codestral-7B-v0.1")


def _mamba2_products(c: Any, q: int) -> list[Product]:
    h, p, k, g = c.n_heads, c.head_dim, c.d_state, c.n_groups
    return [(g, q, k, q), (h, q, q, p), (g, q, k, h * p // g), (g, k, q, h * p // g)]


_MAMBA2 = Family(
    name="mamba2",
    title="Mamba2",
    colour="#0072b2",
    marker="o",
    model="thalweg.models.mamba2:Mamba2",
    config="thalweg.models.mamba2:Mamba2Config",
    formats="thalweg.checkpoints.mamba2:FORMATS",
    transformers=(TransformersClass("mamba2", "Mamba2Model", "Mamba2Config", "mamba2/transformers", "Mamba2."),),
    in_transformers=True,
    sizes=tuple(_mamba2_sizes()),
    measured_on_gpu=("mamba2-1.3b", "codestral-7b"),
    tiny={
        "mamba2": {
            "vocab_size": 64,
            "d_model": 24,
            "n_layers": 3,
            "n_heads": 4,
            "head_dim": 8,
            "d_state": 8,
            "n_groups": 2,
            "time_step_limit": (0.0, 2.0),
        }
    },
    inner_chunk=lambda c, device, dtype: named("thalweg.ops.gated_ssd:default_chunk_size")(device, dtype),
    scan_products=_mamba2_products,
    peers=("transformers, chunk loop", "transformers, one pass", "sentence-transformers"),
)


def _mamba_sizes() -> Iterable[Size]:
    for size, d_model, n_layers in (
        ("130m", 768, 24),
        ("370m", 1024, 48),
        ("790m", 1536, 48),
        ("1.4b", 2048, 48),
        ("2.8b", 2560, 64),
    ):
        config = {"vocab_size": 50280, "d_model": d_model, "n_layers": n_layers}
        inner = {"d_inner": 2 * d_model, "dt_rank": d_model // 16}
        yield Size(f"mamba-{size}", config | inner, f"state-spaces/mamba-{size}")
    falcon = {"vocab_size": 65024, "d_model": 4096, "n_layers": 64, "d_inner": 8192, "dt_rank": 256}
    yield Size("falcon-mamba-7b", {**falcon, "mixer_norm_eps": 1e-6}, "tiiuae/falcon-mamba-7b")


_MAMBA = Family(
    name="mamba",
    title="Mamba1",
    colour="#56b4e9",
    marker="s",
    model="thalweg.models.mamba:Mamba",
    config="thalweg.models.mamba:MambaConfig",
    formats="thalweg.checkpoints.mamba:FORMATS",
    transformers=(
        TransformersClass("mamba", "MambaModel", "MambaConfig", "mamba/transformers", "Mamba1."),
        TransformersClass(
            "falcon_mamba",
            "FalconMambaModel",
            "FalconMambaConfig",
            "mamba/transformers",
            "Falcon-Mamba: Mamba1 with norms inside the mixer.",
        ),
    ),
    in_transformers=True,
    sizes=tuple(_mamba_sizes()),
    measured_on_gpu=("falcon-mamba-7b",),
    tiny={
        "mamba": {"vocab_size": 64, "d_model": 24, "n_layers": 3, "d_inner": 48, "dt_rank": 3, "d_state": 8},
        "falcon_mamba": {
            "vocab_size": 64,
            "d_model": 24,
            "n_layers": 2,
            "d_inner": 40,
            "dt_rank": 5,
            "d_state": 4,
            "d_conv": 3,
            "mixer_norm_eps": 1e-6,
            "activation": "gelu",
            "conv_bias": False,
            "proj_bias": True,
        },
    },
    inner_chunk=lambda c, device, dtype: named("thalweg.ops.selective_scan:default_chunk_size")(c.d_inner * c.d_state),
    peers=("transformers, one pass", "sentence-transformers"),
)


def _rwkv7_sizes() -> Iterable[Size]:
    for size, d_model, n_layers, ranks in (
        ("0.1b", 768, 12, (64, 64, 32, 128)),
        ("0.4b", 1024, 24, (64, 64, 32, 128)),
        ("1.5b", 2048, 24, (96, 96, 64, 256)),
        ("2.9b", 2560, 32, (96, 96, 64, 320)),
        ("7.2b", 4096, 32, (128, 128, 96, 480)),
    ):
        config = {"vocab_size": 65536, "d_model": d_model, "n_layers": n_layers, "head_dim": 64, "d_value": d_model}
        inner = dict(zip(("rank_w", "rank_a", "rank_v", "rank_g"), ranks, strict=True))
        like = f"BlinkDL's RWKV-7 {size.upper()}; ranks as in arXiv 2503.14456"
        yield Size(f"rwkv7-{size}", {**config, "d_ffn": 4 * d_model, **inner}, like)


def _rwkv7_products(c: Any, q: int) -> list[Product]:
    h, k = c.n_heads, c.head_dim
    p = c.d_value // h
    # keys and removals seen from queries and removals; the solve and what is read of both; the past; the state
    return [(h, 2 * q, k, 2 * q), (h, q, q, p), (h, q, 2 * q, p), (h, 2 * q, k, p), (h, p, 2 * q, k)]


_RWKV7 = Family(
    name="rwkv7",
    title="RWKV-7",
    colour="#d55e00",
    marker="D",
    model="thalweg.models.rwkv7:RWKV7",
    config="thalweg.models.rwkv7:RWKV7Config",
    formats="thalweg.checkpoints.rwkv7:FORMATS",
    transformers=(
        TransformersClass(
            "rwkv7", "RWKV7Model", "RWKV7Config", "rwkv7/fla", 'RWKV-7 "Goose"; transformers has no such model.'
        ),
    ),
    in_transformers=False,
    sizes=tuple(_rwkv7_sizes()),
    measured_on_gpu=("rwkv7-7.2b",),
    tiny={
        "rwkv7": {
            "vocab_size": 64,
            "d_model": 24,
            "n_layers": 3,
            "head_dim": 8,
            "d_value": 48,
            "d_ffn": 40,
            "rank_w": 4,
            "rank_a": 5,
            "rank_v": 6,
            "rank_g": 7,
        }
    },
    inner_chunk=lambda c, device, dtype: named("thalweg.ops.wkv7:default_chunk_size")(),
    scan_products=_rwkv7_products,
    peers=("rwkv",),
)


def _xlstm_sizes() -> Iterable[Size]:
    narrower = "NX-AI/xLSTM-7b, narrower; no public model"
    for size, d_model, n_layers, n_heads, d_ffn, like in (
        ("0.1b", 768, 14, 4, 2112, narrower),
        ("0.4b", 1024, 24, 4, 2752, narrower),
        ("1.3b", 2048, 24, 4, 5504, narrower),
        ("7b", 4096, 32, 8, 10944, "NX-AI/xLSTM-7b"),
    ):
        config = {"vocab_size": 50304, "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads}
        yield Size(f"xlstm-{size}", {**config, "d_qk": d_model // 2, "d_v": d_model, "d_ffn": d_ffn}, like)


def _xlstm_products(c: Any, q: int) -> list[Product]:
    h, k, p = c.n_heads, c.d_qk // c.n_heads, c.d_v // c.n_heads
    return [(h, q, k, q), (h, q, q, p), (h, q, k, p), (h, k, q, p)]


_XLSTM = Family(
    name="xlstm",
    title="xLSTM",
    colour="#009e73",
    marker="^",
    model="thalweg.models.xlstm:XLSTM",
    config="thalweg.models.xlstm:XLSTMConfig",
    formats="thalweg.checkpoints.xlstm:FORMATS",
    transformers=(TransformersClass("xlstm", "xLSTMModel", "xLSTMConfig", "xlstm/transformers", "xLSTM."),),
    in_transformers=True,
    sizes=tuple(_xlstm_sizes()),
    measured_on_gpu=("xlstm-7b",),
    tiny={
        "xlstm": {
            "vocab_size": 64,
            "d_model": 24,
            "n_layers": 3,
            "n_heads": 2,
            "d_qk": 12,
            "d_v": 24,
            "d_ffn": 40,
            "bias": True,
            "norm_eps": 1e-5,
        }
    },
    inner_chunk=lambda c, device, dtype: named("thalweg.ops.mlstm:default_chunk_size")(device, dtype),
    scan_products=_xlstm_products,
    peers=("transformers, one pass",),
)


def _gated_deltanet_sizes() -> Iterable[Size]:
    narrower = "flash-linear-attention's default, narrower; no public model"
    for size, d_model, n_layers, head_dim, d_mlp, like in (
        ("0.1b", 768, 12, 128, 2048, narrower),
        ("0.4b", 1024, 21, 128, 2816, narrower),
        ("1.3b", 2048, 21, 256, 5632, "the default of flash-linear-attention's GatedDeltaNetConfig"),
    ):
        config = {"vocab_size": 32000, "d_model": d_model, "n_layers": n_layers, "n_heads": 6, "head_dim": head_dim}
        values = {"n_value_heads": 6, "value_head_dim": 2 * head_dim, "d_mlp": d_mlp}
        yield Size(f"gated-deltanet-{size}", config | values, like)


def _gated_deltanet_products(c: Any, q: int) -> list[Product]:
    h, k, p = c.n_value_heads, c.head_dim, c.value_head_dim
    return [(h, 2 * q, k, q), (h, q, q, p), (h, q, q, p), (h, 2 * q, k, p), (h, k, q, p)]


_GATED_DELTANET = Family(
    name="gated_deltanet",
    title="Gated DeltaNet",
    colour="#cc79a7",
    marker="v",
    model="thalweg.models.gated_deltanet:GatedDeltaNet",
    config="thalweg.models.gated_deltanet:GatedDeltaNetConfig",
    formats="thalweg.checkpoints.gated_deltanet:FORMATS",
    transformers=(
        TransformersClass(
            "gated_deltanet",
            "GatedDeltaNetModel",
            "GatedDeltaNetConfig",
            "gated_deltanet/fla",
            "Gated DeltaNet without attention layers; transformers has no such model.",
        ),
    ),
    in_transformers=False,
    sizes=tuple(_gated_deltanet_sizes()),
    measured_on_gpu=("gated-deltanet-1.3b",),
    tiny={
        "gated_deltanet": {
            "vocab_size": 64,
            "d_model": 24,
            "n_layers": 3,
            "n_heads": 2,
            "head_dim": 8,
            "n_value_heads": 4,
            "value_head_dim": 6,
            "d_mlp": 32,
            "allow_neg_eigval": True,
        }
    },
    inner_chunk=lambda c, device, dtype: named("thalweg.ops.gated_delta_rule:default_chunk_size")(),
    scan_products=_gated_deltanet_products,
)


FAMILIES: tuple[Family, ...] = (_MAMBA2, _MAMBA, _RWKV7, _XLSTM, _GATED_DELTANET)
"""In the order in which they are listed and their formats are tried."""
