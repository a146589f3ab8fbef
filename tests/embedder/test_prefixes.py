"""Prompts and shared beginnings are run once, and no vector knows of it."""

from __future__ import annotations

import copy
import pickle
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import thalweg
from tests.corpus.tiny import make_text, write_model
from tests.examples import examples
from tests.ops.harness import with_kernels
from thalweg import Embedder, Embedding, Failure, InvalidInputError, NumericalError, Progress

PROMPT = "Instruct: given a question, find the passages of a long river novel that answer it\nQuery: "
TAILS = [
    "",
    " ",
    "a",
    "Word",
    " word",
    "\n",
    "1",
    ".",
    "ü",
    "ting",
    "  two spaces",
    "</s>",
    make_text(3),
    make_text(40),
]


@pytest.fixture(scope="module", params=["mean", "last"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model", pooling=request.param, prompts={"query": PROMPT})


@pytest.fixture
def model(folder: Path) -> Embedder:
    return thalweg.load(folder)


def plain(model: Embedder, texts: list[str], **options: str) -> np.ndarray:
    """Without any prefix."""
    other = copy.deepcopy(model)
    other.limit_prefixes(0)
    vectors: np.ndarray = other.encode(texts, **options)  # type: ignore[arg-type]
    assert len(other.prefix_states) == 0
    return vectors


@pytest.mark.parametrize("on", [True, False], ids=["kernels", "PyTorch alone"])
def test_a_prompt_is_run_once(model: Embedder, on: bool) -> None:
    texts = [*TAILS, make_text(500), make_text(5000)]
    with with_kernels(on):
        want = plain(model, texts, prompt_name="query")
        for _ in range(2):
            np.testing.assert_allclose(model.encode(texts, prompt_name="query"), want, rtol=0, atol=1e-6)
    states = model.prefix_states
    n_tokens = len(model.tokenize([PROMPT])[0])
    assert 1 <= len(states) <= 3
    assert states.hits >= 2 * len(texts) - 2
    (embedding,) = model.encode_stream(["a"], prompt_name="query")
    assert embedding.n_tokens == len(model.tokenize(["a"], PROMPT)[0]) > n_tokens - 3
    assert (embedding.char_start, embedding.char_end) == (0, 1)


def test_bfloat16(folder: Path) -> None:
    model = thalweg.load(folder, dtype="bfloat16")
    np.testing.assert_allclose(
        model.encode(TAILS, prompt=PROMPT), plain(model, TAILS, prompt=PROMPT), rtol=0, atol=2e-2
    )


def test_a_prefix_that_is_kept_by_hand(model: Embedder) -> None:
    shared = make_text(60)
    texts = [shared + tail for tail in TAILS] + ["something else"]
    want = plain(model, texts)
    n = model.prefix(shared)
    assert n >= len(model.tokenize([shared])[0]) - 4
    misses = model.prefix_states.misses
    np.testing.assert_allclose(model.encode(texts), want, rtol=0, atol=1e-6)
    assert model.prefix_states.hits >= len(texts) - 2
    assert model.prefix_states.misses <= misses + 2
    assert model.prefix("too short") == 0
    with pytest.raises(InvalidInputError, match="prefix must be a str, got int: 5"):
        model.prefix(5)  # type: ignore[arg-type]


@examples(25)
@given(data=st.data())
def test_whatever_documents_share(folder: Path, data: st.DataObject) -> None:
    """Beginnings of beginnings, at any token, in any order, within any budget, split anyhow."""
    model = thalweg.load(folder)
    model.limit_prefixes(data.draw(st.sampled_from([0, 20_000, 60_000, 1 << 26])))
    heads = [make_text(data.draw(st.integers(20, 300)), seed) for seed in range(3)]
    texts = []
    for _ in range(data.draw(st.integers(2, 25))):
        head = data.draw(st.sampled_from(heads))
        texts.append(head[: data.draw(st.integers(0, len(head)))] + data.draw(st.sampled_from(TAILS)))
    bounds = {"vertical_chunk_size": data.draw(st.integers(1, 200)), "max_in_flight": data.draw(st.integers(1, 5))}
    want = plain(model, texts)
    got = model.encode(texts, share_prefixes=True, **bounds)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_only_what_is_new_is_run(model: Embedder) -> None:
    """Forty documents of which four fifths are the same, longer ones than are tokenised whole among them."""
    for words, in_pieces in ((100, False), (4000, False), (1000, True)):
        head = make_text(words)
        texts = [head + make_text(words // 4, seed) for seed in range(40)]
        documents = [iter([text]) for text in texts] if in_pieces else texts
        n_tokens = [len(ids) for ids in model.tokenize(texts)]
        steps: list[Progress] = []
        vectors = list(model.encode_stream(documents, share_prefixes=True, progress=steps.append))
        new = sum(n_tokens) - 38 * len(model.tokenize([head])[0])
        assert max(step.tokens for step in steps) <= 1.05 * new
        assert [each.n_tokens for each in vectors] == n_tokens
        assert [each.char_end for each in vectors] == [len(text) for text in texts]
        np.testing.assert_allclose([each.vector for each in vectors], plain(model, texts), rtol=0, atol=2e-6)


def test_documents_that_fail_or_are_no_texts_pass_by_the_others(model: Embedder) -> None:
    head = make_text(200)

    def documents() -> Iterator[object]:
        yield head + "one"
        yield head + "\ud800"
        yield (head, "pair")
        yield iter([head, "pieces"])
        yield head * 20 + "\ud800"
        yield head + "two"

    found = list(model.encode_stream(documents(), share_prefixes=True, on_error="yield"))  # type: ignore[arg-type]
    assert [type(each) for each in found] == [Embedding, Failure, Failure, Embedding, Failure, Embedding]
    want = plain(model, [head + "one", head + "pieces", head + "two"])
    got = [each.vector for each in found if isinstance(each, Embedding)]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_a_model_that_fails_in_a_prefix_fails_in_its_texts(folder: Path) -> None:
    model = thalweg.load(folder)
    bad = model.tokenize([PROMPT])[0][20]
    with torch.no_grad():
        model.model.embeddings.weight[bad] = float("nan")
    assert model.prefix(PROMPT) == 0
    found = list(model.encode_stream(["a", "b"], prompt=PROMPT, on_error="yield"))
    assert [type(each) for each in found] == [Failure, Failure]
    with pytest.raises(NumericalError, match="document 0"):
        model.encode(["a", "b"], prompt=PROMPT)
    head = PROMPT * 3
    found = list(model.encode_stream([head + "a", head + "b", "fine"], share_prefixes=True, on_error="yield"))
    assert [type(each) for each in found] == [Failure, Failure, Embedding]


def test_a_state_that_does_not_fit_is_not_made_again_and_again(model: Embedder) -> None:
    model.limit_prefixes(2_000)
    want = plain(model, TAILS, prompt=PROMPT)
    np.testing.assert_allclose(model.encode(TAILS, prompt=PROMPT), want, rtol=0, atol=1e-6)
    assert model.prefix(PROMPT) == 0
    assert len(model.prefix_states) == 0
    with pytest.raises(InvalidInputError, match="max_bytes must be at least 0"):
        model.limit_prefixes(-1)


def test_copies_and_pickles_begin_without_any(model: Embedder) -> None:
    model.prefix(PROMPT)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(other.prefix_states) == 0
        other.encode("a", prompt=PROMPT)
        assert len(other.prefix_states) > 0


@pytest.mark.slow
def test_eight_threads_with_a_budget_for_few(model: Embedder) -> None:
    """States are evicted while others go on from them."""
    heads = [make_text(150, seed) for seed in range(12)]
    texts = [head + tail for head in heads for tail in TAILS[:6]]
    want = dict(zip(texts, plain(model, texts), strict=True))
    model.prefix(heads[0])
    model.limit_prefixes(3 * model.prefix_states.nbytes or 40_000)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(6):
                mine = chance.sample(texts, 10)
                got = model.encode(mine, share_prefixes=chance.random() < 0.7)
                np.testing.assert_allclose(got, [want[text] for text in mine], rtol=0, atol=2e-6)
                model.prefix(chance.choice(heads))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    assert not errors, errors[0]


def test_tenants_do_not_share_what_is_kept(folder: Path) -> None:
    """Neither prompts, nor prefixes kept by hand, nor what texts have in common."""
    model = thalweg.load(folder)
    texts = [make_text(100) + tail for tail in TAILS[:4]]
    want = plain(model, texts)
    for number, tenant in enumerate(("ada", "grace", None)):
        got = model.encode(texts, share_prefixes=True, cache_salt=tenant)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
        assert len(model.prefix_states) == number + 1
    model.limit_prefixes(1 << 28)
    assert model.prefix(texts[0], cache_salt="ada") > 0
    hits = model.prefix_states.hits
    for tenant in ("grace", None):
        np.testing.assert_allclose(model.encode(texts, cache_salt=tenant), want, rtol=0, atol=1e-6)
        assert model.prefix_states.hits == hits
    model.encode(texts, cache_salt="ada")
    assert model.prefix_states.hits == hits + len(texts)
    model.limit_prefixes(1 << 28)
    model.encode("a", prompt_name="query", cache_salt="ada")
    n_states = len(model.prefix_states)
    model.encode("a", prompt_name="query", cache_salt="grace")
    assert len(model.prefix_states) == 2 * n_states > 0
    with pytest.raises(InvalidInputError, match="cache_salt must be a str"):
        model.encode(texts, cache_salt=7)  # type: ignore[arg-type]
