"""Text to vectors: the same whatever the chunk, packing, order, budget or way the text arrives."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import thalweg
from tests.corpus.tiny import make_text, write_model
from tests.examples import examples
from thalweg import Embedder, Embedding, Failure, InvalidInputError
from thalweg.assets import MODEL_NAME, book, model_folder


@pytest.fixture(scope="module", params=["mean", "last"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return thalweg.load(write_model(tmp_path_factory.mktemp("model"), pooling=request.param))


AWKWARD = ["", " ", "\n\t ", "a", "word", "Ünïcode — 🙂‍↔️ text", make_text(3), make_text(40), make_text(400)]


def alone(model: Embedder, texts: list[str]) -> np.ndarray:
    return np.stack([model.encode(text, max_tokens_per_step=20_000, vertical_chunk_size=10_000) for text in texts])


@examples(20)
@given(data=st.data())
def test_batch_order_and_bounds_do_not_matter(model: Embedder, data: st.DataObject) -> None:
    words = st.integers(0, 120).map(make_text)
    texts = data.draw(st.lists(st.one_of(words, st.sampled_from(AWKWARD)), min_size=1, max_size=12))
    order = data.draw(st.permutations(range(len(texts))))
    flight = data.draw(st.integers(1, 5))
    bounds = {
        "max_in_flight": flight,
        "max_tokens_per_step": data.draw(st.integers(2 * flight + 1, 400)),
        "vertical_chunk_size": data.draw(st.integers(1, 200)),
    }
    vectors = model.encode([texts[i] for i in order], **bounds)
    np.testing.assert_allclose(vectors, alone(model, texts)[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_a_text_one_token_longer_or_shorter_than_a_chunk(model: Embedder, chunk: int, off: int) -> None:
    text = make_text(30)
    n = len(model.tokenizer.encode_batch([text])[0])
    got = model.encode([text], vertical_chunk_size=max(1, n // max(1, n // chunk) + off))
    np.testing.assert_allclose(got, alone(model, [text]), rtol=0, atol=1e-5)


def test_the_shipped_model_has_a_name_that_a_folder_comes_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert thalweg.load(MODEL_NAME).fingerprint == thalweg.load("default").fingerprint == thalweg.load().fingerprint
    write_model(tmp_path / MODEL_NAME)
    assert thalweg.load(MODEL_NAME).dimension == 32


def test_a_text_in_pieces_is_the_text(model: Embedder, tmp_path: Path) -> None:
    text = make_text(6000)
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    raw = path.read_bytes()
    with path.open(encoding="utf-8") as as_text, path.open("rb") as as_bytes:
        documents = [
            text,
            (text[i : i + 777] for i in range(0, len(text), 777)),
            (raw[i : i + 501] for i in range(0, len(raw), 501)),
            as_text,
            as_bytes,
        ]
        results = list(model.encode_stream(documents))
    assert [r.index for r in results if isinstance(r, Embedding)] == [0, 1, 2, 3, 4]
    for result in results:
        assert isinstance(result, Embedding)
        np.testing.assert_allclose(result.vector, results[0].vector, rtol=0, atol=1e-5)
        assert (result.char_start, result.char_end) == (0, len(text))


def test_sections_tile_the_text_and_the_last_one_of_a_last_token_model_is_the_text(model: Embedder) -> None:
    texts = [make_text(700), "", make_text(5)]
    results = [r for r in model.encode_stream(texts, section_size=50) if isinstance(r, Embedding)]
    assert [(r.index, r.section) for r in results] == sorted((r.index, r.section) for r in results)
    for index, text in enumerate(texts):
        mine = [r for r in results if r.index == index]
        assert [r.char_start for r in mine] == [0, *(r.char_end for r in mine[:-1])]
        assert mine[-1].char_end == len(text)
        assert [r.last for r in mine] == [False] * (len(mine) - 1) + [True]
        if model.embedding_config.pooling == "last":
            np.testing.assert_allclose(mine[-1].vector, model.encode(text), rtol=0, atol=1e-5)
            for r in mine[:-1]:  # the vector of the document up to there
                np.testing.assert_allclose(r.vector, model.encode(text[: r.char_end]), rtol=0, atol=1e-5)


def test_results_come_as_they_finish_or_in_order(model: Embedder) -> None:
    texts = [make_text(2000), "short", make_text(900), "shorter"]
    bounds = {"vertical_chunk_size": 100, "max_tokens_per_step": 400}
    ready = [r.index for r in model.encode_stream(texts, ordered=False, **bounds)]
    assert ready != sorted(ready)
    assert [r.index for r in model.encode_stream(texts, **bounds)] == [0, 1, 2, 3]


def test_a_corpus_larger_than_memory_streams_through(model: Embedder) -> None:
    pulled = 0

    def endless() -> Iterator[str]:
        nonlocal pulled
        while True:
            pulled += 1
            yield make_text(20)

    results = model.encode_stream(endless(), max_tokens_per_step=200)
    for _ in range(50):
        next(results)
    assert pulled < 250


def test_a_document_that_cannot_be_read(model: Embedder) -> None:
    def broken() -> Iterator[bytes]:
        yield b"fine so far "
        yield b"\xff\xfe not any more"

    results = list(model.encode_stream(["before", broken(), "after"], on_error="yield"))
    assert [type(r) for r in results] == [Embedding, Failure, Embedding]
    assert "UTF-8" in str(results[1].error)  # type: ignore[union-attr]
    with pytest.raises(thalweg.TokenizationError, match="UTF-8"):
        list(model.encode_stream([broken()]))


def test_max_length_is_off_by_default_and_never_silent(model: Embedder, caplog: pytest.LogCaptureFixture) -> None:
    long, short = make_text(500), "short"
    with caplog.at_level(logging.WARNING, "thalweg"):
        whole = model.encode([long, short])
        assert caplog.text == ""
        cut = model.encode([long, short], max_length=10)
    assert "max_length=10 cut 1 of 2 texts" in caplog.text
    assert np.abs(whole[0] - cut[0]).max() > 1e-3
    np.testing.assert_allclose(cut[1], whole[1], rtol=0, atol=1e-6)


def test_prompts(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", pooling="last", prompts={"query": "find: ", "document": ""})
    model = thalweg.load(folder)
    want = model.encode("find: the river")
    np.testing.assert_array_equal(model.encode("the river", prompt="find: "), want)
    np.testing.assert_array_equal(model.encode("the river", prompt_name="query"), want)
    np.testing.assert_array_equal(model.encode_query("the river"), want)
    np.testing.assert_array_equal(model.encode_document("the river"), model.encode("the river"))
    with pytest.raises(InvalidInputError, match="no prompt named 'qeury'; its prompts: 'query', 'document'"):
        model.encode("x", prompt_name="qeury")


def test_truncation_comes_before_normalisation(model: Embedder) -> None:
    full = model.encode(["one", "two"], normalize_embeddings=False)
    half = model.encode(["one", "two"], truncate_dim=8)
    want = full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(half, want, rtol=0, atol=1e-6)
    with pytest.raises(InvalidInputError, match="truncate_dim must be in"):
        model.encode(["one"], truncate_dim=10_000)


def test_no_texts_and_wrong_texts(model: Embedder) -> None:
    assert model.encode([]).shape == (0, model.dimension)
    with pytest.raises(InvalidInputError, match=r"texts\[1\] must be a str, got int: 3"):
        model.encode(["a", 3])  # type: ignore[list-item]


def test_similarity(model: Embedder) -> None:
    vectors = model.encode(["a", "b", "c"])
    scores = model.similarity(vectors, vectors[0])
    assert scores.shape == (3, 1)
    np.testing.assert_allclose(scores[:, 0], vectors @ vectors[0], rtol=0, atol=1e-6)


# -- the shipped model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Embedder:
    return thalweg.load()


def test_the_shipped_model_is_small_and_knows_related_from_unrelated(shipped: Embedder) -> None:
    assert sum(f.stat().st_size for f in model_folder().rglob("*")) <= 40 * 10**6
    assert shipped.name == MODEL_NAME
    a, b, c = shipped.encode(
        ["The boat ran aground on a sandbar.", "A ship got stuck on a shoal.", "Interest rates rose again in March."]
    )
    assert a @ b > a @ c + 0.2


@pytest.mark.slow
def test_stock_modules_of_sentence_transformers_give_the_shipped_model_the_same_vectors(tmp_path: Path) -> None:
    """But for the dimensions of its lexicon, of which they know nothing (tests/pooling/test_lexicon.py)."""
    from sentence_transformers import SentenceTransformer

    texts = ["", "A single sentence.", book().read_text(encoding="utf-8")[:20_000]]
    model = thalweg.load()
    want = model.encode(texts, truncate_dim=model.model.d_model)
    model.embedding_config = replace(model.embedding_config, lexicon=None)
    model.save(tmp_path / "stock", format="stock")
    theirs = SentenceTransformer(str(tmp_path / "stock"), device="cpu")
    vectors = np.stack([theirs.encode([text], show_progress_bar=False)[0] for text in texts])
    np.testing.assert_allclose(vectors, want, rtol=0, atol=1e-5)


def test_the_shipped_book_streams_through_the_shipped_tokenizer(shipped: Embedder) -> None:
    """Its normaliser has rules of its own: a text longer than a window must be cut where that changes nothing."""
    import tokenizers

    text = book().read_text(encoding="utf-8")[:150_000]
    whole = tokenizers.Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    want = whole.encode(text, add_special_tokens=False).ids
    assert shipped.tokenizer.stream(text).take_all().tolist() == [*want, shipped.tokenizer.eos_token_id]


def test_bfloat16_is_close_to_float32(shipped: Embedder) -> None:
    """Stated: cosine at least 0.999 (measured on these: 0.99990 and more)."""
    texts = [make_text(n) for n in (3, 30, 300, 3000)]
    low = thalweg.load(dtype="bfloat16")
    assert ((low.encode(texts) * shipped.encode(texts)).sum(1) >= 0.999).all()


def test_ids_give_the_vectors_of_their_texts(shipped: Embedder) -> None:
    texts = ["A single sentence.", "", "the river " * 300]
    ids = shipped.tokenize(texts, "query: ")
    assert [len(row) for row in shipped.tokenize(["", "x"])] == [1, 2]
    raw = shipped.encode_ids(ids, vertical_chunk_size=50)
    want = shipped.encode(texts, prompt="query: ", normalize_embeddings=False)
    np.testing.assert_allclose(raw, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert shipped.encode_ids([]).shape == (0, shipped.dimension)
    with pytest.raises(InvalidInputError, match="has no tokens"):
        shipped.encode_ids([np.array([], dtype=np.int32)])
