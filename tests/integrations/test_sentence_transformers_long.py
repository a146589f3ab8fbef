"""Long texts in sentence-transformers' training: checkpointing under GradCache, dropout, states that are passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

from thalweg.errors import InvalidInputError
from thalweg.gradients.lora import add_lora, merge_lora
from thalweg.gradients.state_passing import StatePassing
from thalweg.gradients.steps import Checkpointing
from thalweg.integrations.sentence_transformers import StatePassingCallback, load
from thalweg.integrations.sentence_transformers import module as st_module

from ..corpus.tiny import make_text, write_model

ANCHORS = [make_text(5 + 3 * n, seed=n) for n in range(6)]
POSITIVES = [make_text(40 + 90 * n, seed=n) for n in range(6)]


@pytest.fixture
def model(tmp_path: Path) -> SentenceTransformer:
    return load(write_model(tmp_path / "tiny", pooling="mean"), device="cpu").train()


def _first(model: SentenceTransformer) -> Any:
    return model[0]


def _gradients(model: SentenceTransformer, loss: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    features = [model.preprocess(ANCHORS), model.preprocess(POSITIVES)]
    loss(features, torch.arange(len(ANCHORS))).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.training
@pytest.mark.parametrize("options", [{}, {"two_level": True, "max_tokens_per_step": 32}])
def test_gradients_under_grad_cache_are_those_without(model: SentenceTransformer, options: dict[str, Any]) -> None:
    full = _gradients(model, MultipleNegativesRankingLoss(model))
    _first(model).checkpointing = Checkpointing(32, **options)
    assert max(_first(model).preprocess(POSITIVES)["cu_seq_lens_q"].diff()) > 20 * 32
    floor = torch.stack([grad.norm() for grad in full.values()]).mean()
    for loss in (MultipleNegativesRankingLoss(model), CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)):
        gradients = _gradients(model, loss)
        assert gradients.keys() == full.keys()
        for name, grad in gradients.items():
            assert (grad - full[name]).norm() <= 1e-5 * max(full[name].norm(), floor), name


def test_without_gradients_training_mode_is_inference(model: SentenceTransformer) -> None:
    """Where nothing is random GradCache's first pass is the engine's, in constant memory."""
    _first(model).checkpointing = Checkpointing(32)
    features = model.preprocess(POSITIVES)
    with torch.no_grad():
        vectors = model(dict(features))["sentence_embedding"]
    assert (vectors - model(dict(features))["sentence_embedding"]).abs().max() <= 1e-5
    assert abs(vectors.numpy() - model.encode(POSITIVES)).max() <= 1e-5


@pytest.mark.parametrize("checkpointing", [None, Checkpointing(32, 64)])
def test_both_passes_of_grad_cache_drop_the_same(model: SentenceTransformer, checkpointing: Any) -> None:
    add_lora(_first(model).model, rank=2, dropout=0.5, init_lora_weights=False)
    _first(model).checkpointing = checkpointing
    features = model.preprocess(POSITIVES)
    results = []
    for recording in (False, True):
        torch.manual_seed(3)
        with torch.set_grad_enabled(recording):
            results.append(model(dict(features))["sentence_embedding"])
    assert not results[0].requires_grad
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)
    assert (model(dict(features))["sentence_embedding"] - results[1]).abs().max() > 1e-3
    model.eval()
    with torch.no_grad():
        calm = model(dict(features))["sentence_embedding"]
    assert abs(calm.numpy() - model.encode(POSITIVES)).max() <= 1e-5


@pytest.mark.training
def test_states_are_passed_on_after_each_optimiser_step(model: SentenceTransformer, tmp_path: Path) -> None:
    passing = StatePassing(probability=1.0, size=5)
    _first(model).state_passing = passing
    _first(model).checkpointing = Checkpointing(32)
    held: list[int] = []
    started_anew: list[bool] = []
    real = st_module.embed_for_training

    def watch(*arguments: Any, **options: Any) -> Any:
        held.append(len(options["state_passing"]))
        started_anew.append(torch.is_grad_enabled())
        return real(*arguments, **options)

    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            str(tmp_path / "run"),
            per_device_train_batch_size=6,
            max_steps=2,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_dict({"anchor": ANCHORS, "positive": POSITIVES}),
        loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=3),
        callbacks=[StatePassingCallback(passing)],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(st_module, "embed_for_training", watch)
        trainer.train()
    assert held == [0] * 8 + [5] * 8
    assert started_anew == [False] * 4 + [True] * 4 + [False] * 4 + [True] * 4
    assert len(passing) == 5
    features = model.preprocess(ANCHORS)
    model.train()
    torch.manual_seed(0)
    passed = model(dict(features))["sentence_embedding"]
    torch.manual_seed(0)
    with torch.no_grad():
        again = model(dict(features))["sentence_embedding"]
    torch.testing.assert_close(again, passed, rtol=0, atol=1e-5)
    model.eval()
    anew = model(dict(features))["sentence_embedding"]
    assert (anew - passed).abs().max() > 1e-3
    assert abs(anew.detach().numpy() - model.encode(ANCHORS)).max() <= 1e-5


def test_adapters_are_merged_before_saving(model: SentenceTransformer, tmp_path: Path) -> None:
    add_lora(_first(model).model, rank=2, init_lora_weights=False)
    tuned = model.encode(ANCHORS)
    with pytest.raises(InvalidInputError, match="merge_lora"):
        model.save_pretrained(str(tmp_path / "tuned"))
    merge_lora(_first(model).model)
    model.save_pretrained(str(tmp_path / "tuned"))
    assert abs(load(tmp_path / "tuned", device="cpu").encode(ANCHORS) - tuned).max() <= 1e-5


def test_settings_of_a_folder_that_is_opened(model: SentenceTransformer, tmp_path: Path) -> None:
    model.save_pretrained(str(tmp_path / "saved"))
    checkpointing = Checkpointing(64)
    again = SentenceTransformer(
        str(tmp_path / "saved"),
        trust_remote_code=True,
        device="cpu",
        model_kwargs={"checkpointing": checkpointing},
    )
    assert _first(again).checkpointing is checkpointing
    assert _first(load(tmp_path / "saved", device="cpu", checkpointing=checkpointing)).checkpointing is checkpointing
