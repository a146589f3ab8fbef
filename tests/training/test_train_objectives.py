"""Losses: gradient caching changes no gradient, with adapters too; a teacher's vectors, kept and fitted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.gradients.lora import add_lora
from thalweg.gradients.steps import Checkpointing
from thalweg.integrations._peers import WORDS_PER_TOKEN
from thalweg.integrations.sentence_transformers import load
from thalweg.training import teacher as teachers
from thalweg.training.losses import make_loss
from thalweg.training.recipes import Recipe
from thalweg.training.teacher import TeacherCache, TeacherVectors, load_teacher

from ..corpus.tiny import SENTENCE, write_model

WORDS = SENTENCE.split()
COLUMNS = [[" ".join(WORDS[i : i + n]) for i in range(6)] for n in (2, 9, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [None, Checkpointing(4, 8)], ids=["whole", "chunks"])
@pytest.mark.parametrize("objective", ["contrastive", "distill"])
@pytest.mark.parametrize("matryoshka", [(), (8,)], ids=["", "matryoshka"])
def test_gradient_caching_with_adapters(
    tmp_path: Path, checkpointing: Checkpointing | None, objective: Any, matryoshka: tuple[int, ...]
) -> None:
    model = load(write_model(tmp_path / "model", pooling="last"), device="cpu", checkpointing=checkpointing).train()
    torch.manual_seed(0)
    add_lora(model[0].model, rank=2, init_lora_weights=False)  # type: ignore[arg-type]
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    vectors = np.random.default_rng(0).normal(size=(18, 40)).astype(np.float32)
    teacher = TeacherVectors(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    labels = torch.arange(18).reshape(3, 6).T
    results = []
    for cached in (False, True):
        recipe = Recipe(
            objective=objective, gradient_cache=cached, mini_batch_tokens=10, matryoshka=matryoshka, temperature=0.1
        )
        loss = make_loss(model, recipe, 1, teacher)([model.preprocess(column) for column in COLUMNS], labels)
        model.zero_grad()
        loss.backward()
        results.append((loss.item(), {name: parameter.grad.clone() for name, parameter in trained.items()}))  # type: ignore[union-attr]
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    scale = torch.stack([grad.norm() for grad in results[0][1].values()]).norm()
    assert scale > 0.01
    for name, grad in results[0][1].items():
        assert (results[1][1][name] - grad).norm() <= 1e-5 * scale, name


def test_what_distillation_measures(tmp_path: Path) -> None:
    """By hand: squared distances, and squared errors of all cosines of a batch."""
    model = load(write_model(tmp_path / "model"), device="cpu")
    teacher = TeacherVectors(F.normalize(torch.randn(4, 32, generator=torch.Generator().manual_seed(0))).numpy())
    texts = [["the river", "boats"], ["to sea", "grey stones"]]
    recipe = Recipe(objective="distill", vector_weight=2, similarity_weight=3, gradient_cache=False)
    with torch.no_grad():
        loss = make_loss(model, recipe, 1, teacher)(
            [model.preprocess(column) for column in texts], torch.tensor([[0, 2], [1, 3]])
        )
    ours = torch.from_numpy(model.encode([*texts[0], *texts[1]]))
    theirs = teacher.take(torch.arange(4), torch.device("cpu"))
    by_hand = 2 * (ours - theirs).square().sum(1).mean() + 3 * (ours @ ours.T - theirs @ theirs.T).square().mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_a_teacher_of_another_width_keeps_its_cosines() -> None:
    flat = F.normalize(torch.randn(50, 4) @ torch.randn(4, 12))
    teacher = TeacherVectors(flat.numpy())
    for width in (12, 20, 5):  # all of them have room for 4 dimensions
        fitted = teacher.fitted(flat, width)
        assert fitted.shape == (50, width)
        torch.testing.assert_close(fitted @ fitted.T, flat @ flat.T, rtol=0, atol=1e-4)


def test_targets_do_not_depend_on_the_sign_of_a_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """The solver gives either, by the last bit of the vectors: in two processes another than in one."""
    vectors = F.normalize(torch.randn(24, 96, generator=torch.Generator().manual_seed(0)))
    wanted = TeacherVectors(vectors.numpy()).fitted(vectors, 8)
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: SimpleNamespace(eigenvectors=-eigh(m).eigenvectors))
    torch.testing.assert_close(TeacherVectors(vectors.numpy()).fitted(vectors, 8), wanted)


def test_widths_that_the_model_does_not_have(tmp_path: Path) -> None:
    model = load(write_model(tmp_path / "model"), device="cpu")
    with pytest.raises(InvalidInputError, match="matryoshka=64 is wider"):
        make_loss(model, Recipe(matryoshka=(64,)), 1, None)


def test_the_cache_goes_on_where_it_was_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def encode(texts: Sequence[str]) -> Any:
        if len(asked) >= 6:
            raise KeyboardInterrupt
        asked.extend(texts)
        return np.array([[len(text), ord(text[0])] for text in texts], dtype=np.float32)

    monkeypatch.setattr(teachers, "load_teacher", lambda name, device: encode)
    monkeypatch.setattr(teachers, "PART", 3)
    texts = [chr(97 + i) * (i + 1) for i in range(10)]
    with pytest.raises(KeyboardInterrupt):
        TeacherCache(tmp_path / "t", "x").fill(texts, None)
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["0-00000.npz", "0-00001.npz", "teacher.json"]
    (tmp_path / "t" / "0-00002.npz.tmp").write_bytes(b"half")
    asked.clear()
    told: list[tuple[int, int]] = []
    TeacherCache(tmp_path / "t", "x").fill(texts, None, on_texts=lambda done, total: told.append((done, total)))
    assert asked == texts[6:]
    assert told == [(3, 4), (4, 4)]
    asked.clear()
    cache = TeacherCache(tmp_path / "t", "x")
    cache.fill(texts[::-1], None)
    assert asked == []
    vectors = cache.vectors(texts[::-1]).take(torch.tensor([0, 9]), torch.device("cpu"))
    assert vectors.tolist() == [[10, ord("j")], [1, ord("a")]]
    with pytest.raises(InvalidInputError, match=r"holds vectors of another teacher, not of 'y'.*\"x\""):
        TeacherCache(tmp_path / "t", "y")


@pytest.mark.slow
def test_teachers() -> None:
    long = " ".join(WORDS * 30)
    encode = load_teacher("all-MiniLM-L6-v2", "cpu")
    short, whole = encode(["the river runs", long])
    assert (short.shape, short.dtype) == ((384,), np.float32)
    words = int(256 * WORDS_PER_TOKEN)
    parts = encode([" ".join(long.split()[start : start + words]) for start in range(0, len(long.split()), words)])
    mean = parts.mean(axis=0)
    assert np.abs(whole - mean / np.linalg.norm(mean)).max() <= 1e-5
    own = load_teacher("thalweg:thalweg-small-en", "cpu")(["the river runs"])
    assert np.linalg.norm(own) == pytest.approx(1, abs=1e-5)
    with pytest.raises(CheckpointError, match="/none"):
        load_teacher("/none", "cpu")


def test_the_teacher_of_a_cache_is_named(tmp_path: Path) -> None:
    TeacherCache(tmp_path / "t", "x")
    assert json.loads((tmp_path / "t" / "teacher.json").read_text()) == {"teacher": "x"}
