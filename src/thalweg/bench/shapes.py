"""Models by name: the sizes of published ones, and small ones of the same build. Plain data, no torch.

`family` names a class of thalweg.models, or a transformers baseline (`TRANSFORMERS`); `config` holds the fields of its
config; `like` says whose public config the numbers are, or that there is none of that size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.errors import InvalidInputError

TRANSFORMERS = ("mistral", "modernbert")
"""Families that attend to the whole text; built by the library transformers."""

ENCODERS = ("modernbert", "bert", "roberta", "xlm-roberta")
DECODERS = ("mistral", "llama", "qwen2", "qwen3", "gemma3_text")
"""`model_type`s of checkpoints that are run as transformer baselines: with the first token's vector, or the last's."""

FAMILY_TITLES = {
    "mamba2": "Mamba2",
    "mamba": "Mamba1",
    "rwkv7": "RWKV-7",
    "xlstm": "xLSTM",
    "gated_deltanet": "Gated DeltaNet",
    "mistral": "Mistral",
    "modernbert": "ModernBERT",
}


@dataclass(frozen=True)
class Shape:
    """One size of one family."""

    name: str
    family: str
    config: dict[str, Any]
    like: str

    @property
    def recurrent(self) -> bool:
        return self.family not in TRANSFORMERS

    @property
    def width(self) -> int:
        return int(self.config["d_model" if self.recurrent else "hidden_size"])

    @property
    def n_layers(self) -> int:
        return int(self.config["n_layers" if self.recurrent else "num_hidden_layers"])

    def resized(self, layers: int | None, vocabulary: int | None) -> dict[str, Any]:
        """The config with fewer layers or a smaller vocabulary, where given."""
        names = ("n_layers", "vocab_size") if self.recurrent else ("num_hidden_layers", "vocab_size")
        return {**self.config, **{n: v for n, v in zip(names, (layers, vocabulary), strict=True) if v is not None}}


def shape(name: str) -> Shape:
    """Raises:
    InvalidInputError: no such shape.
    """
    if name not in SHAPES:
        raise InvalidInputError(f"there is no shape {name!r}; the shapes: {', '.join(SHAPES)}")
    return SHAPES[name]


def attends(folder: Path) -> bool:
    """Whether a checkpoint folder holds a transformer, to be run as a baseline, by its config."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError):
        return False
    return kind in (*ENCODERS, *DECODERS)


def _mamba2() -> Iterator[Shape]:
    for size, d_model, n_layers in (
        ("130m", 768, 24),
        ("370m", 1024, 48),
        ("780m", 1536, 48),
        ("1.3b", 2048, 48),
        ("2.7b", 2560, 64),
    ):
        config = {"vocab_size": 50288, "d_model": d_model, "n_layers": n_layers, "n_heads": d_model // 32}
        yield Shape(
            f"mamba2-{size}",
            "mamba2",
            {**config, "head_dim": 64, "d_state": 128},
            f"state-spaces/mamba2-{size}",
        )
    codestral = {"vocab_size": 32768, "d_model": 4096, "n_layers": 64, "n_heads": 128, "head_dim": 64}
    yield Shape(
        "codestral-7b",
        "mamba2",
        {**codestral, "d_state": 128, "n_groups": 8},
        "mistralai/Mamba-Codestral-7B-v0.1",
    )


def _mamba() -> Iterator[Shape]:
    for size, d_model, n_layers in (
        ("130m", 768, 24),
        ("370m", 1024, 48),
        ("790m", 1536, 48),
        ("1.4b", 2048, 48),
        ("2.8b", 2560, 64),
    ):
        config = {"vocab_size": 50280, "d_model": d_model, "n_layers": n_layers}
        yield Shape(
            f"mamba-{size}",
            "mamba",
            {**config, "d_inner": 2 * d_model, "dt_rank": d_model // 16},
            f"state-spaces/mamba-{size}",
        )
    falcon = {"vocab_size": 65024, "d_model": 4096, "n_layers": 64, "d_inner": 8192, "dt_rank": 256}
    yield Shape("falcon-mamba-7b", "mamba", {**falcon, "mixer_norm_eps": 1e-6}, "tiiuae/falcon-mamba-7b")


def _rwkv7() -> Iterator[Shape]:
    for size, d_model, n_layers, ranks in (
        ("0.1b", 768, 12, (64, 64, 32, 128)),
        ("0.4b", 1024, 24, (64, 64, 32, 128)),
        ("1.5b", 2048, 24, (96, 96, 64, 256)),
        ("2.9b", 2560, 32, (96, 96, 64, 320)),
        ("7.2b", 4096, 32, (128, 128, 96, 480)),
    ):
        config = {"vocab_size": 65536, "d_model": d_model, "n_layers": n_layers, "head_dim": 64, "d_value": d_model}
        inner = dict(zip(("rank_w", "rank_a", "rank_v", "rank_g"), ranks, strict=True))
        yield Shape(
            f"rwkv7-{size}",
            "rwkv7",
            {**config, "d_ffn": 4 * d_model, **inner},
            f"BlinkDL's RWKV-7 {size.upper()}; ranks as in arXiv 2503.14456",
        )


def _xlstm() -> Iterator[Shape]:
    for size, d_model, n_layers, n_heads, d_ffn, like in (
        ("0.1b", 768, 14, 4, 2112, "NX-AI/xLSTM-7b, narrower; no public model"),
        ("0.4b", 1024, 24, 4, 2752, "NX-AI/xLSTM-7b, narrower; no public model"),
        ("1.3b", 2048, 24, 4, 5504, "NX-AI/xLSTM-7b, narrower; no public model"),
        ("7b", 4096, 32, 8, 10944, "NX-AI/xLSTM-7b"),
    ):
        config = {"vocab_size": 50304, "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads}
        yield Shape(
            f"xlstm-{size}",
            "xlstm",
            {**config, "d_qk": d_model // 2, "d_v": d_model, "d_ffn": d_ffn},
            like,
        )


def _gated_deltanet() -> Iterator[Shape]:
    for size, d_model, n_layers, head_dim, d_mlp, like in (
        ("0.1b", 768, 12, 128, 2048, "flash-linear-attention's default, narrower; no public model"),
        ("0.4b", 1024, 21, 128, 2816, "flash-linear-attention's default, narrower; no public model"),
        ("1.3b", 2048, 21, 256, 5632, "the default of flash-linear-attention's GatedDeltaNetConfig"),
    ):
        config = {"vocab_size": 32000, "d_model": d_model, "n_layers": n_layers, "n_heads": 6, "head_dim": head_dim}
        yield Shape(
            f"gated-deltanet-{size}",
            "gated_deltanet",
            {**config, "n_value_heads": 6, "value_head_dim": 2 * head_dim, "d_mlp": d_mlp},
            like,
        )


def _mistral() -> Iterator[Shape]:
    narrow = "mistralai/Mistral-7B-v0.1, narrower; no public model"
    for size, hidden, n_layers, n_heads, n_kv, inner, like in (
        ("130m", 768, 14, 12, 4, 2688, narrow),
        ("370m", 1024, 26, 16, 4, 3584, narrow),
        ("1.3b", 2048, 26, 16, 4, 7168, narrow),
        ("7b", 4096, 32, 32, 8, 14336, "mistralai/Mistral-7B-v0.1; its sliding window of 4096 is an option"),
    ):
        config = {"vocab_size": 32000, "hidden_size": hidden, "num_hidden_layers": n_layers}
        heads = {"num_attention_heads": n_heads, "num_key_value_heads": n_kv, "head_dim": hidden // n_heads}
        yield Shape(f"mistral-{size}", "mistral", {**config, **heads, "intermediate_size": inner}, like)


def _modernbert() -> Iterator[Shape]:
    for size, hidden, n_layers, n_heads, inner in (("base", 768, 22, 12, 1152), ("large", 1024, 28, 16, 2624)):
        config = {"vocab_size": 50368, "hidden_size": hidden, "num_hidden_layers": n_layers}
        yield Shape(
            f"modernbert-{size}",
            "modernbert",
            {**config, "num_attention_heads": n_heads, "intermediate_size": inner},
            f"answerdotai/ModernBERT-{size}",
        )


SHAPES: dict[str, Shape] = {
    each.name: each
    for shapes in (_mamba2(), _mamba(), _rwkv7(), _xlstm(), _gated_deltanet(), _mistral(), _modernbert())
    for each in shapes
}
"""All shapes by name."""
