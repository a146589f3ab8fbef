"""LoRA training with the paper's recipe, from a folder to a folder, for a tiny model of three families."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import thalweg
from thalweg.checkpoints import EmbeddingConfig, save_checkpoint
from thalweg.errors import InvalidInputError
from thalweg.training.recipes import find_recipe
from thalweg.training.run import train

from ..corpus.tiny import write_model
from ..models.registry import FAMILIES
from .training_data import write_pairs


def write_family(folder: Path, family: str) -> Path:
    """A tiny model of the family, with the tokenizer of `write_model`."""
    write_model(folder.with_name("other"))
    tokenizer = folder.with_name("other-tokenizer")
    size = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab_size()
    torch.manual_seed(0)
    model = FAMILIES[family]()
    config = replace(model.config, vocab_size=size)
    if family == "rwkv7":  # the format that it is written in knows no other
        config = replace(config, head_norm_eps=config.head_dim * config.norm_eps)
    model = type(model)(config)
    embedding = EmbeddingConfig(pooling="last")
    save_checkpoint(model, folder, tokenizer_folder=tokenizer, embedding=embedding, dtype=torch.float32)
    return folder


@pytest.mark.parametrize("family", ["mamba2", "rwkv7", "xlstm"])
def test_the_recipe_reaches_a_loss(family: str, tmp_path: Path) -> None:
    """From about that of guessing, ln 16 + noise at this temperature, to under a third of it."""
    torch.set_num_threads(1)
    model = write_family(tmp_path / "base", family)
    pairs = write_pairs(tmp_path / "pairs.jsonl", 16)
    recipe = replace(
        find_recipe("e5-mistral"),
        batch_size=16,
        mini_batch_tokens=256,
        temperature=0.1,
        learning_rate=1e-2,
        weight_decay=0.0,
        warmup_steps=2,
        epochs=30,
        save_every=30,
    )
    summary = train(model, [str(pairs)], tmp_path / "out", recipe, device="cpu")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert summary.steps == len(losses) == 30
    assert losses[0] > 2
    assert losses[-1] == summary.loss
    assert summary.loss < 0.8
    before, after = thalweg.load(model), thalweg.load(tmp_path / "out")
    assert before.model.state_dict().keys() == after.model.state_dict().keys()
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    hits = []
    for embedder in (before, after):
        queries, texts = (embedder.encode([row[key] for row in rows]) for key in ("query", "positive"))
        hits.append(int((np.argmax(queries @ texts.T, axis=1) == np.arange(16)).sum()))
    assert hits[1] > hits[0]


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    from ..checkpoints.formats_rwkv7 import tiny_tensors, write_emb, write_world_vocabulary

    write_world_vocabulary(tmp_path / "model")
    write_emb(tmp_path / "model", tiny_tensors(vocab_size=65536))
    pairs = write_pairs(tmp_path / "pairs.jsonl", 16)
    with pytest.raises(InvalidInputError, match="embedding heads cannot be saved"):
        train(tmp_path / "model", [str(pairs)], tmp_path / "out", find_recipe("tiny"), device="cpu")
