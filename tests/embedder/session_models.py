"""Tiny models of every family as folders, and how the tests of sessions cut texts."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import thalweg
from tests.checkpoints.formats_rwkv7 import write_world_vocabulary
from tests.corpus.tiny import make_text
from tests.models.registry import make
from tests.pooling.test_lexicon import make_lexicon
from thalweg import families
from thalweg.checkpoints import EmbeddingConfig, save_checkpoint
from thalweg.checkpoints.tokens import TokenIds

VARIANTS = {variant: family for family in families.FAMILIES for variant in family.tiny}

SAVED_AS: dict[str, dict[str, Any]] = {
    "rwkv7": {"d_model": 64, "d_value": 64, "head_dim": 64},  # the format in which it is saved ties an epsilon to it
}
"""What a family's tiny config has to have otherwise, for it to be saved."""

TEXT = make_text(60) + "也没有空格可以切断的中文句子在这里继续下去" + "0123456789" * 9 + " " * 70 + make_text(9, seed=1)
"""Words, Chinese, digits and spaces."""


@cache
def _library(vocab_size: int, all_bytes: bool) -> str:
    tokenizer = Tokenizer(models.BPE(unk_token=None if all_bytes else "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if all_bytes else []
    names = ["</s>", "<s>", *([] if all_bytes else ["<unk>"])]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([make_text(2000)], trainer)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return tokenizer.to_str()


def write_tokenizer(folder: Path, vocab_size: int = 320, all_bytes: bool = True) -> int:
    """A byte-level BPE; how many ids it has. </s> 0, <s> 1."""
    folder.mkdir(parents=True, exist_ok=True)
    text = _library(vocab_size, all_bytes)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    return Tokenizer.from_str(text).get_vocab_size()


def write_model(
    folder: Path,
    variant: str = "mamba2",
    *,
    pooling: str = "mean",
    tokenizer: str = "bpe",
    vocab_size: int = 320,
    config: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    **embedding: Any,
) -> Path:
    """A random model of one of the families' variants. pooling: "lexicon" for a mean with one; tokenizer: "bpe", "few"
    (not all bytes) or "world"."""
    source = folder.with_name(f"{folder.name}-tokenizer")
    if tokenizer == "world":
        write_world_vocabulary(source)
        n_ids, tokens = 300, TokenIds(0, None, None)
    else:
        n_ids, tokens = write_tokenizer(source, vocab_size, tokenizer == "bpe"), None
    family = VARIANTS[variant]
    tiny = {**family.tiny[variant], **SAVED_AS.get(variant, {}), **(config or {}), "vocab_size": n_ids}
    torch.manual_seed(0)
    model = make(replace(family, tiny={variant: tiny}), variant)
    lexicon = make_lexicon(n_ids) if pooling == "lexicon" else None
    settings = EmbeddingConfig(pooling="mean" if lexicon else pooling, lexicon=lexicon, **embedding)
    save_checkpoint(
        model, folder, tokenizer_folder=source, embedding=settings, dtype=dtype, tokens=tokens, classes="thalweg"
    )
    return folder


def load(folder: Path, variant: str = "mamba2", *, dtype: str = "float32", **options: Any) -> thalweg.Embedder:
    """Written if it is not there, and loaded."""
    if not folder.exists():
        write_model(folder, variant, **options)
    return thalweg.load(folder, device="cpu", dtype=dtype)  # type: ignore[arg-type]


def pieces(text: str, rng: random.Random) -> Iterator[str | bytes]:
    """The text cut anywhere: str, bytes cut inside characters, single characters, nothing."""
    at = 0
    while at < len(text):
        kind = rng.choice(["str", "bytes", "characters", "nothing"])
        end = at + rng.choice([1, 3, 17, 60, 300])
        part = text[at:end]
        if kind == "nothing":
            yield rng.choice(["", b""])
            continue
        if kind == "str":
            yield part
        elif kind == "characters":
            yield from part[:30]
            part = part[:30]
        else:
            raw = part.encode()
            cut = rng.randint(0, len(raw))
            yield raw[:cut]
            yield raw[cut:]
        at += len(part)


def assert_same(got: Any, want: Any, dtype: str = "float32", pooling: str = "mean") -> None:
    """Of vectors of length 1: 1e-5 in float32.

    In bfloat16, where last bits depend on what else is in a step, 2e-2 of the last token's vector and 5e-3 of a mean:
    `encode` with other bounds differs by up to 1.3e-2 of the one (xLSTM).
    """
    low = 2e-2 if pooling == "last" else 5e-3
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 if dtype == "float32" else low)


def n_tokens(model: thalweg.Embedder, text: str, prompt: str = "") -> int:
    return len(model.tokenize([text], prompt)[0])


def check_growing(model: thalweg.Embedder, texts: Sequence[str | bytes], whole: str, dtype: str = "float32") -> None:
    """A session of these pieces is the text."""
    session = model.session()
    for text in texts:
        session.append(text)
    assert session.tokens == n_tokens(model, whole)
    assert_same(session.vector(), model.encode(whole), dtype, model.embedding_config.pooling)
