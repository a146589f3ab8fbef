"""A tiny random model as a checkpoint folder, and texts for it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from thalweg.checkpoints import EmbeddingConfig, save_checkpoint
from thalweg.models.mamba2 import Mamba2, Mamba2Config

SENTENCE = (
    "the river runs along its deepest line from spring to sea while boats drift slowly past grey stones and "
    "children count them: naïve façade, 12 bridges, 3,141 swans; „quoted“ words — and an emoji 🦢 now then"
)


def make_text(n_words: int, seed: int = 0) -> str:
    """Words in lines and paragraphs, the same for the same seed."""
    rng = random.Random(seed)
    words = rng.choices(SENTENCE.split(), k=n_words)
    return "".join(word + ("\n\n" if i % 97 == 96 else "\n" if i % 13 == 12 else " ") for i, word in enumerate(words))


def write_model(
    folder: Path,
    *,
    prompts: dict[str, str] | None = None,
    pooling: Literal["last", "mean"] = "mean",
    normalize: bool = True,
    n_layers: int = 2,
    seed: int = 0,
) -> Path:
    """A Mamba2 of 32 dimensions and its own tokenizer."""
    source = folder.with_name(f"{folder.name}-tokenizer")
    source.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([make_text(2000)], trainer)
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    torch.manual_seed(seed)
    config = Mamba2Config(
        vocab_size=tokenizer.get_vocab_size(), d_model=32, n_layers=n_layers, n_heads=4, head_dim=16, d_state=8
    )
    embedding = EmbeddingConfig(pooling=pooling, prompts=prompts or {}, normalize=normalize)
    save_checkpoint(Mamba2(config), folder, tokenizer_folder=source, embedding=embedding, dtype=torch.float32)
    return folder
