"""The dimensions of a text's words: what they measure, and that no cut of the text and no library changes them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import thalweg
from tests.corpus.tiny import make_text, write_model
from thalweg.embedder.embedder import Embedder
from thalweg.errors import CheckpointError, InvalidInputError
from thalweg.pooling import make_pooling
from thalweg.pooling.lexicon import Lexicon

ELSEWHERE = Path(__file__).parent.parent / "integrations" / "sentence_transformers_elsewhere.py"


def make_lexicon(vocab_size: int, d_lexicon: int = 24, n_columns: int = 3, **constants: float) -> Lexicon:
    rng = np.random.default_rng(5)
    return Lexicon(
        rng.integers(0, d_lexicon, (vocab_size, n_columns)).astype(np.int32),
        rng.standard_normal((vocab_size, n_columns)).astype(np.float16).astype(np.float32),
        d_lexicon,
        **{"strength": 0.8, "threshold": 0.3, "exponent": 1.5, **constants},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a lexicon."""
    root = tmp_path_factory.mktemp("lexicon")
    write_model(root / "plain", prompts={"query": "find: "})
    model = thalweg.load(root / "plain")
    model.embedding_config = replace(model.embedding_config, lexicon=make_lexicon(model.config.vocab_size))
    model.save(root / "with")
    return root / "with"


@pytest.fixture(scope="module")
def model(folder: Path) -> Embedder:
    return thalweg.load(folder)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Embedder:
    return thalweg.load(folder.parent / "plain")


TEXTS = ["", "the river", make_text(90, seed=1), make_text(700, seed=2)]


def by_definition(model: Embedder, hidden_means: np.ndarray, texts: list[str]) -> np.ndarray:
    """The docstring's formula, one token after the other in float64."""
    lexicon = model.embedding_config.lexicon
    assert lexicon is not None
    vectors = []
    for mean, ids in zip(hidden_means.astype(np.float64), model.tokenize(texts), strict=True):
        codes = np.zeros(lexicon.d_lexicon)
        for i in ids:
            for column, value in zip(lexicon.columns[i], lexicon.values[i], strict=True):
                codes[column] += value / len(ids)
        size = np.linalg.norm(codes)
        weight = lexicon.strength / (1 + (size / lexicon.threshold) ** lexicon.exponent)
        vector = np.concatenate([mean / np.linalg.norm(mean), weight * codes / size])
        vectors.append(vector / np.linalg.norm(vector))
    return np.stack(vectors)


def test_the_vector_is_the_meaning_and_the_words(model: Embedder, plain: Embedder) -> None:
    vectors = model.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), model.dimension)
    assert model.dimension == plain.dimension + 24
    expected = by_definition(model, plain.encode(TEXTS, normalize_embeddings=False), TEXTS)
    assert np.abs(vectors - expected).max() <= 1e-6
    assert np.abs(model.encode(TEXTS, truncate_dim=plain.dimension) - plain.encode(TEXTS)).max() <= 1e-6


def test_no_cut_of_the_text_changes_it(model: Embedder) -> None:
    vectors = model.encode(TEXTS)
    for chunk in (1, 7, 64):
        assert np.abs(model.encode(TEXTS[::-1], vertical_chunk_size=chunk)[::-1] - vectors).max() <= 1e-5
    ids = model.encode_ids(model.tokenize(TEXTS))
    assert np.abs(ids / np.linalg.norm(ids, axis=1, keepdims=True) - vectors).max() <= 1e-6


def test_a_section_has_its_own_words(model: Embedder) -> None:
    lexicon = model.embedding_config.lexicon
    assert lexicon is not None
    sections = list(model.encode_stream([TEXTS[3]], section_size=100, normalize_embeddings=False))
    (ids,) = model.tokenize([TEXTS[3]])
    at = 0
    for section in sections:
        assert isinstance(section, thalweg.Embedding)
        codes = lexicon.means(ids[at : at + section.n_tokens], [section.n_tokens])[0]
        words = section.vector[-lexicon.d_lexicon :]
        assert np.dot(words, codes) == pytest.approx(np.linalg.norm(words) * np.linalg.norm(codes), rel=1e-5)
        at += section.n_tokens
    assert at == len(ids)
    assert len(sections) > 3


def test_texts_that_share_rare_words_are_nearer() -> None:
    """With few columns in many dimensions, products are those of bags of words."""
    lexicon = make_lexicon(5000, d_lexicon=4096, n_columns=4)
    rng = np.random.default_rng(0)
    bags = [rng.integers(0, 5000, 300) for _ in range(20)]
    halves = [(bag[::2], bag[1::2] if i % 2 else bag[::2][::-1]) for i, bag in enumerate(bags)]  # every other: the same
    cosines = []
    for pair in halves:
        first, second = lexicon.means(np.concatenate(pair), [len(part) for part in pair])
        cosines.append(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    assert min(cosines[::2]) > 0.999
    assert max(np.abs(cosines[1::2])) < 0.3


def test_words_count_more_in_longer_texts(model: Embedder) -> None:
    lexicon = replace(make_lexicon(5000), threshold=0.1, strength=2.0)
    rng = np.random.default_rng(0)
    lengths = [5, 50, 500, 50_000]
    codes = torch.from_numpy(lexicon.means(rng.integers(0, 5000, sum(lengths)), lengths))
    joined = lexicon.join(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), codes)
    assert joined[:, :8].norm(dim=1) == pytest.approx(1, abs=1e-6)
    words = joined[:, 8:].norm(dim=1)
    assert (words.diff() > 0).all()
    assert words[-1] == pytest.approx(2, rel=0.2)


@pytest.mark.subprocess
def test_every_way_in_gives_the_same(folder: Path, model: Embedder, tmp_path: Path) -> None:
    """sentence-transformers with thalweg, trained a little and saved again there, and without it."""
    done = subprocess.run(
        [sys.executable, str(ELSEWHERE), str(folder), str(tmp_path / "out"), "--and-with-thalweg"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    from tests.integrations.sentence_transformers_elsewhere import TEXTS as SENTENCES

    expected = model.encode(SENTENCES)
    for name in ("without", "with"):
        assert np.abs(np.load(tmp_path / "out" / f"{name}.npy") - expected).max() <= 1e-5
        assert np.abs(thalweg.load(tmp_path / "out" / name).encode(SENTENCES) - expected).max() <= 1e-5


def test_gradients_reach_the_model_through_the_meaning(folder: Path, model: Embedder) -> None:
    from thalweg.integrations.sentence_transformers import load

    peer = load(folder)
    features = peer.preprocess(TEXTS)
    with torch.enable_grad():
        vectors = peer.train()(features)["sentence_embedding"]
        vectors.square().mul(torch.arange(vectors.shape[1])).sum().backward()
    assert np.abs(vectors.detach().numpy() - model.encode(TEXTS)).max() <= 1e-5
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in peer.parameters())


def test_its_memory_is_planned(model: Embedder, plain: Embedder) -> None:
    lexicon = model.embedding_config.lexicon
    assert lexicon is not None
    with_it, without = (m.plan_memory(max_tokens_per_step=512) for m in (model, plain))
    assert with_it.weights - without.weights == lexicon.nbytes
    assert with_it.activations - without.activations == lexicon.step_bytes(512) >= 512 * 8 * lexicon.d_lexicon


def test_refused(folder: Path, tmp_path: Path, model: Embedder) -> None:
    with pytest.raises(InvalidInputError, match=r"stock modules .* lexicon"):
        model.save(tmp_path / "stock", format="stock")
    with pytest.raises(InvalidInputError, match="with pooling 'last'"):
        replace(model.embedding_config, pooling="last")
    with pytest.raises(InvalidInputError, match="mean pooling only"):
        make_pooling("last", lexicon=model.embedding_config.lexicon)
    good = make_lexicon(10)
    with pytest.raises(InvalidInputError, match=r"columns must be in 0\.\.1, got 0 to 23"):
        replace(good, d_lexicon=2)
    with pytest.raises(InvalidInputError, match=r"\(10, 3\) and \(10, 2\)"):
        replace(good, values=good.values[:, :2])
    with pytest.raises(InvalidInputError, match="threshold must be positive, got 0"):
        replace(good, threshold=0)
    odd = replace(model.embedding_config, lexicon=good)
    other = thalweg.load(folder)
    other.embedding_config = odd
    other.save(tmp_path / "odd")
    with pytest.raises(CheckpointError, match="codes for 10 ids"):
        thalweg.load(tmp_path / "odd")
    (tmp_path / "odd" / "2_Lexicon" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not the codes of a lexicon"):
        thalweg.load(tmp_path / "odd")
