"""Tiny random models of every family as folders of embedders, and what they make of a padded batch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor

from tests.checkpoints.formats_rwkv7 import write_world_vocabulary
from tests.corpus.tiny import make_text, write_model
from tests.models.registry import FAMILIES
from thalweg.checkpoints import EmbeddingConfig, save_checkpoint
from thalweg.packing import Packing

TEXTS = ["the river runs", "", make_text(300), "swans — and an emoji 🦢", make_text(40, seed=1), "12 bridges"]
VOCABULARY = 400


def make(family: str, vocab_size: int = VOCABULARY) -> Any:
    """A model of `tests.models.registry` in a shape that the family's public format can express."""
    torch.manual_seed(0)
    example = FAMILIES[family]()
    changes: dict[str, Any] = {"vocab_size": vocab_size}
    if family == "mamba2":
        changes["n_heads"] = 6
    if family == "rwkv7":
        changes["head_norm_eps"] = example.config.head_dim * example.config.norm_eps
    model = type(example)(replace(example.config, **changes))
    if family == "xlstm":
        for block in model.layers:
            block.mlstm.i.bias.data.uniform_(-2, 1)
    return model.train(False)


def write_folder(
    folder: Path, family: str, *, pooling: Literal["last", "mean"] = "last", dtype: torch.dtype = torch.float32
) -> Path:
    """An embedder as thalweg saves it, with a tokenizer that its family is used with."""
    source = folder.with_name(f"{folder.name}-source")
    tokenizer = source.with_name(f"{source.name}-tokenizer")
    if family == "rwkv7":
        write_world_vocabulary(tokenizer)
    else:
        write_model(source)
        shutil.rmtree(source)
    embedding = EmbeddingConfig(pooling=pooling)
    save_checkpoint(make(family), folder, tokenizer_folder=tokenizer, embedding=embedding, dtype=dtype)
    return folder


def padded(lengths: list[int], sides: list[str], width: int) -> tuple[Tensor, Tensor]:
    """Rows of random ids (B, width) of which so many in the left, right or middle count, and the mask."""
    ids = torch.randint(VOCABULARY, (len(lengths), width), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        start = {"left": width - length, "right": 0, "both": (width - length) // 2}[sides[row % len(sides)]]
        mask[row, start : start + length] = 1
    return ids, mask


@torch.no_grad()
def alone(model: Any, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Of each row the hidden vectors (n, D) of its tokens, alone and in one pass of thalweg's own model."""
    rows = [row[own.bool()] for row, own in zip(ids, mask, strict=True)]
    return [model(row, Packing.whole([len(row)]))[0] for row in rows]


@contextmanager
def auto_classes_restored() -> Iterator[None]:
    """What is registered inside is forgotten afterwards."""
    mappings = [
        transformers.CONFIG_MAPPING,
        transformers.AutoModel._model_mapping,
        transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING,
    ]
    before = [dict(mapping._extra_content) for mapping in mappings]
    try:
        yield
    finally:
        for mapping, content in zip(mappings, before, strict=True):
            mapping._extra_content.clear()
            mapping._extra_content.update(content)
