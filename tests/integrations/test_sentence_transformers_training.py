"""Training through sentence-transformers: gradients reach every weight, losses fall, checkpoints come back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

import thalweg
from thalweg.integrations.sentence_transformers import load

from ..corpus.tiny import SENTENCE, write_model

WORDS = SENTENCE.split()[:12]
PAIRS = Dataset.from_dict(
    {
        "anchor": [f"where is the {word}" for word in WORDS],
        "positive": [f"here is all that is known of {word}, and no more" for word in WORDS],
    }
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    thalweg.load(write_model(tmp_path / "tiny", pooling="last", prompts={"query": "q: "})).save(tmp_path / "model")
    return tmp_path / "model"


def _train(model: SentenceTransformer, loss: Any, out: Path, **arguments: Any) -> list[float]:
    """The losses of all steps."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": len(PAIRS),
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(str(out), **settings | arguments),
        train_dataset=PAIRS,
        loss=loss,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.training
def test_the_loss_falls_and_the_checkpoint_comes_back(folder: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    before = model.encode(WORDS)
    loss = CachedMultipleNegativesRankingLoss(model, scale=50, mini_batch_size=5)
    losses = _train(
        model, loss, tmp_path / "run", max_steps=30, save_strategy="steps", save_steps=30, prompts={"anchor": "q: "}
    )
    assert len(losses) == 30
    assert losses[0] > 0.5 * math.log(len(PAIRS))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    after = model.encode(WORDS)
    assert abs(after - before).max() > 0.01
    checkpoint = tmp_path / "run" / "checkpoint-30"
    again = SentenceTransformer(str(checkpoint), trust_remote_code=True, device="cpu")
    assert abs(again.encode(WORDS) - after).max() <= 1e-5
    assert abs(thalweg.load(checkpoint).encode(WORDS) - after).max() <= 1e-5
    assert again.prompts["query"] == "q: "


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_gradients_are_those_of_each_text_alone(tmp_path: Path, pooling: Any) -> None:
    write_model(tmp_path / "tiny", pooling=pooling)
    texts = ["the river", "", *(f"{word} " * (3 * i + 1) for i, word in enumerate(WORDS[:4]))]
    gradients = []
    for batches in ([texts], [[text] for text in texts]):
        model = load(tmp_path / "tiny", device="cpu").train()
        for batch in batches:
            vectors = model(model.preprocess(batch))["sentence_embedding"]
            assert vectors.shape == (len(batch), 32)
            (vectors * torch.arange(32.0)).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, together in gradients[0].items():
        assert together is not None, name
        apart = gradients[1][name]
        assert (together - apart).norm() <= 1e-4 * apart.norm(), name
    with torch.no_grad():
        assert (model(model.preprocess(batch))["sentence_embedding"] - vectors).abs().max() <= 1e-5


@pytest.mark.training
def test_matryoshka_over_the_cached_loss_and_several_batches(folder: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    loss = MatryoshkaLoss(model, CachedMultipleNegativesRankingLoss(model, mini_batch_size=3), [32, 8])
    losses = _train(model, loss, tmp_path / "run", num_train_epochs=6, per_device_train_batch_size=6)
    assert len(losses) == 12
    assert sum(losses[-4:]) < sum(losses[:4])


def test_autocast(folder: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    losses = _train(model, MultipleNegativesRankingLoss(model), tmp_path / "run", max_steps=8, bf16=True)
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


def test_frozen_weights_are_run_by_the_engine(folder: Path) -> None:
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu").requires_grad_(False)
    vectors = model(model.preprocess(["the river", "a"]))["sentence_embedding"]
    assert not vectors.requires_grad


def test_half_precision_keeps_what_must_be_wide(folder: Path) -> None:
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu").to(torch.bfloat16)
    dtypes = {name.rsplit(".", 1)[-1]: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes["weight"] == torch.bfloat16
    assert dtypes["A_log"] == dtypes["dt_bias"] == dtypes["D"] == torch.float32
    vectors = model(model.preprocess(["the river", "a"]))["sentence_embedding"]
    vectors.sum().backward()
    assert vectors.dtype == torch.float32
    assert all(parameter.grad is not None for parameter in model.parameters())
