"""Models by name: the sizes of thalweg's families (`families.py`) and of transformer baselines. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.families import FAMILIES
from thalweg.storage.untrusted_json import read_json

ENCODERS = ("modernbert", "bert", "roberta", "xlm-roberta")
DECODERS = ("mistral", "llama", "qwen2", "qwen3", "gemma3_text")
"""`model_type`s of checkpoints that are run as transformer baselines: with the first token's vector, or the last's."""


@dataclass(frozen=True)
class Look:
    """How a family is shown: its title in text, its colour and marker in figures."""

    title: str
    colour: str
    marker: str


TRANSFORMERS = {"mistral": Look("Mistral", "#222222", "P"), "modernbert": Look("ModernBERT", "#8c8c8c", "X")}
"""Families that attend to the whole text; built by the library transformers."""

LOOKS = {family.name: Look(family.title, family.colour, family.marker) for family in FAMILIES} | TRANSFORMERS
"""All families that have shapes, in the order in which they are shown."""


@dataclass(frozen=True)
class Shape:
    """One size of one family.

    Args:
        name: what `--shape` calls it.
        family: a name of thalweg.families, or of `TRANSFORMERS`.
        config: the fields of the family's config.
        like: whose public config the numbers are, or that there is no public model of that size.
    """

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
        config = read_json(folder / "config.json")
    except CheckpointError:
        return False
    kind = config.get("model_type") if isinstance(config, dict) else None
    return kind in (*ENCODERS, *DECODERS)


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


_RECURRENT = (Shape(size.name, family.name, size.config, size.like) for family in FAMILIES for size in family.sizes)

SHAPES: dict[str, Shape] = {each.name: each for shapes in (_RECURRENT, _mistral(), _modernbert()) for each in shapes}
"""All shapes by name."""
