"""Sections of texts, whatever they are cut by and however the text arrives, against what they are by definition."""

from __future__ import annotations

import functools
import io
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import thalweg
from tests.corpus.tiny import make_text, write_model
from tests.examples import examples
from tests.tokenization.test_world import ours as world_tokenizer
from thalweg import Embedder, Embedding, Failure, InvalidInputError, Sections, TokenizationError
from thalweg.checkpoints import EmbeddingConfig, save_checkpoint
from thalweg.embedder import isolated
from thalweg.embedder.boundaries import make_boundaries
from thalweg.embedder.paragraphs import BLANK
from thalweg.embedder.sectioned_ids import SectionedIds
from thalweg.embedder.sectioned_stream import SectionedStream
from thalweg.families import FAMILIES
from thalweg.packing import Packing
from thalweg.pooling.vectors import finish
from thalweg.tokenization import tokenizer

BOUNDS = {"vertical_chunk_size": 37, "max_tokens_per_step": 90, "max_in_flight": 2}


def prose(n_words: int, seed: int = 0) -> str:
    """Headings, paragraphs and sentences."""
    words = make_text(n_words, seed).split()
    units = []
    for i in range(0, len(words), 7):
        line = " ".join(words[i : i + 7]).capitalize()
        units.append(f"\n\n# {line}\n\n" if i % 28 == 0 else f"{line}.{'  ' if i % 3 else chr(10) * 2}")
    return "".join(units)


def write_family(folder: Path, variant: str, pooling: Any, *, append_eos: bool = True) -> Path:
    """A tiny model of a family, with the tokenizer of the tiny Mamba2."""
    write_model(folder.with_name(f"{folder.name}-base"))
    source = folder.with_name(f"{folder.name}-base-tokenizer")
    family = next(family for family in FAMILIES if variant in family.tiny)
    config = {**family.tiny[variant], "vocab_size": 400}
    if variant == "rwkv7":  # as the format that it is saved in implies it
        config["head_norm_eps"] = config["head_dim"] * 1e-5
    torch.manual_seed(0)
    model = family.build(config)
    embedding = EmbeddingConfig(pooling=pooling, append_eos=append_eos)
    save_checkpoint(model, folder, tokenizer_folder=source, embedding=embedding, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module", params=["mean", "last"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return thalweg.load(write_model(tmp_path_factory.mktemp("model"), pooling=request.param))


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return thalweg.load(write_model(tmp_path_factory.mktemp("model"), pooling="mean"))


def hidden(model: Embedder, text: str, prompt: str = "") -> tuple[np.ndarray, np.ndarray]:
    """All hidden vectors (N, D) of a text in one run, and the characters (N, 2) of its tokens."""
    ids, offsets, _ = model.tokenizer.stream(text, prompt, with_offsets=True).take_with_offsets(10**9)
    with torch.inference_mode():
        vectors = model.model.forward(torch.from_numpy(ids.astype(np.int64)), Packing.whole([len(ids)]))[0]
    return vectors.float().numpy(), offsets


def cuts_of(text: str, by: Any, every: int = 1) -> list[int]:
    """The boundaries in a text that is there."""
    boundaries = make_boundaries(by, every)
    return [*boundaries.push(text), *boundaries.finish()]


def token_sections(text: str, offsets: np.ndarray, cuts: Iterable[int]) -> list[tuple[int, int, int]]:
    """First token, the one after the last, and the character of the end, of each section but the last."""
    begins = [i for i, (start, end) in enumerate(offsets) if end > start]
    found: list[tuple[int, int, int]] = []
    first = 0
    for cut in cuts:
        stop = next((i for i in begins if offsets[i, 1] > cut and not text[offsets[i, 0] : cut].strip(BLANK)), None)
        if stop is None or stop == begins[0]:
            continue
        if found and found[-1][1] == stop:
            found[-1] = (*found[-1][:2], cut)
            continue
        found.append((first, stop, cut))
        first = stop
    return found


def check_mean(model: Embedder, results: list[Embedding], text: str, cuts: list[int], look_ahead: int = 0) -> None:
    vectors, offsets = hidden(model, text)
    wanted = token_sections(text, offsets, cuts)
    first = wanted[-1][1] if wanted else 0
    wanted.append((first, len(vectors), len(text)))
    assert [r.char_end for r in results] == [char for _, _, char in wanted]
    assert [r.char_start for r in results] == [0, *(r.char_end for r in results[:-1])]
    assert [r.section for r in results] == list(range(len(results)))
    assert [r.last for r in results] == [False] * (len(results) - 1) + [True]
    for r, (start, stop, _) in zip(results, wanted, strict=True):
        assert r.n_tokens == stop - start
        want = vectors[start : stop + look_ahead].mean(axis=0, dtype=np.float64)
        np.testing.assert_allclose(r.vector, finish(want[None].astype(np.float32), normalize=True)[0], atol=1e-5)


@pytest.mark.parametrize("by", ["paragraph", "sentence", "heading"])
@pytest.mark.parametrize(("every", "look_ahead"), [(None, 0), (3, 0), (2, 9), (1, 10_000)])
def test_a_section_is_the_mean_over_the_tokens_that_begin_in_it(
    model: Embedder, by: Any, every: int | None, look_ahead: int
) -> None:
    text = prose(500)
    results = list(model.encode_sections(text, by=by, every=every, mode="mean", look_ahead=look_ahead, **BOUNDS))
    assert len(results) > 2
    check_mean(model, results, text, cuts_of(text, by, every or 1), look_ahead)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "mean", "prefix", "isolated"])
@pytest.mark.parametrize("by", ["tokens", "paragraph", "sentence", "heading", "function", "characters"])
def test_a_stream_cut_anywhere_has_the_sections_of_the_whole(model: Embedder, by: Any, mode: Any) -> None:
    text = "\ufeff" + prose(300, seed=1) + " 🦢 naïve"
    positions = [5, 6, 7, 40, 41, 300, 301, 800]
    cut: dict[str, Any] = {"by": by, "mode": mode, "every": 20 if by == "tokens" else None}
    if by in ("function", "characters"):
        cut["by"] = positions if by == "characters" else lambda whole: [at for at in positions if whole[at:]]
    want = list(model.encode_sections(text, **cut))
    assert len(want) > 2
    assert "".join(text[r.char_start : r.char_end] for r in want) == text
    raw = text.encode()
    forms: list[Any] = [raw]
    if by != "function":
        forms += [
            (text[i : i + 3] for i in range(0, len(text), 3)),
            [raw[i : i + 1] for i in range(len(raw))],
            io.BytesIO(raw),
            io.StringIO(text, newline=""),
        ]
    for form in forms:
        found = list(model.encode_sections(form, **cut, **BOUNDS))
        assert [(r.char_start, r.char_end, r.n_tokens, r.last) for r in found] == [
            (r.char_start, r.char_end, r.n_tokens, r.last) for r in want
        ]
        np.testing.assert_allclose([r.vector for r in found], [r.vector for r in want], rtol=0, atol=1e-5)


@examples(40)
@given(data=st.data())
def test_any_text_any_boundaries_any_pieces(mean: Embedder, data: st.DataObject) -> None:
    """Boundaries inside tokens, inside characters of many tokens, beside each other."""
    chars = st.sampled_from([*"ab .!?\n#🦢éß漢", "\n\n", "river ", "</s>"])
    text = "".join(data.draw(st.lists(chars, max_size=120)))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=12))) if len(text) > 1 else []
    look_ahead = data.draw(st.sampled_from([0, 0, 1, 3, 50]))
    flight = data.draw(st.integers(1, 3))
    bounds = {
        "max_in_flight": flight,
        "max_tokens_per_step": data.draw(st.integers(2 * flight + 1, 60)),
        "vertical_chunk_size": data.draw(st.integers(1, 40)),
    }
    size = data.draw(st.integers(1, 9))
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    results = list(mean.encode_sections(pieces, by=iter(cuts), look_ahead=look_ahead, **bounds))
    check_mean(mean, results, text, cuts, look_ahead)
    alone = list(mean.encode_sections(pieces, by=cuts, mode="isolated", **bounds))
    edges = [0, *cuts, len(text)]
    assert [(r.char_start, r.char_end) for r in alone] == list(itertools.pairwise(edges))
    want = mean.encode([text[r.char_start : r.char_end] for r in alone])
    np.testing.assert_allclose([r.vector for r in alone], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("by", ["paragraph", "heading"])
def test_a_prefix_is_the_text_up_to_there(model: Embedder, by: Any) -> None:
    """At line ends, where the tokenizer joins nothing."""
    text = prose(400, seed=2)
    results = list(model.encode_sections(iter([text]), by=by, mode="prefix", prompt="note: ", **BOUNDS))
    want = model.encode([text[: r.char_end] for r in results], prompt="note: ")
    assert len(results) > 5
    np.testing.assert_allclose([r.vector for r in results], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("look_ahead", [3, 70, 5000])
def test_a_prefix_that_looks_ahead(model: Embedder, look_ahead: int) -> None:
    text = make_text(600)  # a token begins at every word
    ids, offsets, _ = model.tokenizer.stream(text, with_offsets=True).take_with_offsets(10**9)
    results = list(model.encode_sections(text, every=50, mode="prefix", look_ahead=look_ahead, **BOUNDS))
    stop = 0
    for r in results:
        stop += r.n_tokens
        at = min(stop + look_ahead, len(ids))
        vector = model.encode_ids([np.append(ids[:at], ids[-1:] if at < len(ids) else [])], **BOUNDS)
        np.testing.assert_allclose(r.vector, finish(vector, normalize=True)[0], rtol=0, atol=1e-5)
        assert offsets[stop - 1, 1] == r.char_end


@pytest.mark.parametrize("by", ["tokens", "paragraph", "sentence", "heading"])
def test_isolated_sections_are_texts_of_their_own(model: Embedder, monkeypatch: pytest.MonkeyPatch, by: Any) -> None:
    """Also those that are too long to be held whole, first, last and in the middle."""
    text = "".join([make_text(150).replace("\n", " "), ".\n\n# A\n\n", prose(200), make_text(130), prose(50)])
    monkeypatch.setattr(isolated, "HELD_CHARS", 300)
    for form in (text, iter(text)):
        results = list(model.encode_sections(form, by=by, mode="isolated", prompt="note: ", every=60, **BOUNDS))
        assert "".join(text[r.char_start : r.char_end] for r in results) == text
        assert [r.section for r in results] == list(range(len(results)))
        assert [r.last for r in results] == [False] * (len(results) - 1) + [True]
        want = model.encode([text[r.char_start : r.char_end] for r in results], prompt="note: ")
        np.testing.assert_allclose([r.vector for r in results], want, rtol=0, atol=1e-5)
        if by == "tokens":
            (ids,) = model.tokenizer.encode_batch([text])
            assert len(results) == -(-(len(ids) - 1) // 60)


def test_isolated_sections_of_many_documents(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "HELD_CHARS", 200)
    texts = [prose(100), "", prose(300, 1), make_text(3)]
    documents: list[Any] = [texts[0], "", b"a word.\n\nbad \xff", iter(texts[2]), {"no": "text"}, io.StringIO(texts[3])]
    ticks = []
    results = list(
        model.encode_stream(
            documents,
            sections=Sections("paragraph", mode="isolated"),
            on_error="yield",
            progress=lambda done: ticks.append((done.tokens, done.documents)),
        )
    )
    failures = {r.index: r.error for r in results if isinstance(r, Failure)}
    assert set(failures) == {2, 4}
    assert isinstance(failures[2], TokenizationError)
    assert isinstance(failures[4], InvalidInputError)
    for number, text in zip((0, 1, 3, 5), texts, strict=True):
        mine = [r for r in results if r.index == number and isinstance(r, Embedding)]
        assert [r.char_end for r in mine] == [*cuts_of(text, "paragraph"), len(text)]
        assert [r.last for r in mine] == [False] * (len(mine) - 1) + [True]
        want = model.encode([text[r.char_start : r.char_end] for r in mine])
        np.testing.assert_allclose([r.vector for r in mine], want, rtol=0, atol=1e-5)
    assert ticks == sorted(ticks)
    with pytest.raises(TokenizationError, match="not valid UTF-8"):
        list(model.encode_stream(documents, sections=Sections("paragraph", mode="isolated")))


@pytest.mark.parametrize("mode", ["mean", "isolated"])
def test_a_length_limit(mean: Embedder, monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    """The sections up to the cut are those of the whole text; isolated ones are cut each."""
    monkeypatch.setattr(isolated, "HELD_CHARS", 100)
    text = prose(300)
    cut = list(mean.encode_sections(iter(text), by="sentence", mode=mode, max_length=41))
    if mode == "isolated":
        edges = [0, *cuts_of(text, "sentence"), len(text)]
        assert [r.char_start for r in cut] == edges[:-1]
        want = mean.encode([text[a:b] for a, b in itertools.pairwise(edges)], max_length=41)
        np.testing.assert_allclose([r.vector for r in cut], want, rtol=0, atol=1e-5)
        return
    whole = list(mean.encode_sections(text, by="sentence"))
    assert sum(r.n_tokens for r in cut) == 41
    for a, b in zip(cut[:-1], whole, strict=False):
        assert (a.char_start, a.char_end) == (b.char_start, b.char_end)
        np.testing.assert_allclose(a.vector, b.vector, rtol=0, atol=1e-5)
    assert cut[-1].truncated


VARIANTS = [variant for family in FAMILIES for variant in family.tiny]


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family(tmp_path: Path, variant: str, pooling: Any) -> None:
    embedder = thalweg.load(write_family(tmp_path / "model", variant, pooling))
    text = prose(250, seed=3)
    results = list(embedder.encode_sections(text, by="sentence", mode="mean", every=2, look_ahead=5, **BOUNDS))
    check_mean(embedder, results, text, cuts_of(text, "sentence", 2), 5)
    for mode in ("prefix", "isolated"):
        found = list(embedder.encode_sections(iter(text), by="paragraph", mode=mode, **BOUNDS))
        first = [0 if mode == "prefix" else r.char_start for r in found]
        want = embedder.encode([text[a : r.char_end] for a, r in zip(first, found, strict=True)])
        np.testing.assert_allclose([r.vector for r in found], want, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mean", "prefix", "isolated"])
def test_bfloat16_is_close_to_float32(mode: Any) -> None:
    """Stated: cosine at least 0.999, as for whole texts."""
    text = prose(300)
    high, low = (
        np.stack([r.vector for r in thalweg.load(dtype=dtype).encode_sections(text, by="paragraph", mode=mode)])
        for dtype in ("float32", "bfloat16")
    )
    assert (high * low).sum(axis=1).min() >= 0.999


def test_the_shipped_model_keeps_the_words_of_a_section() -> None:
    """Its lexicon is summed as its hidden vectors are."""
    shipped = thalweg.load()
    lexicon = shipped.embedding_config.lexicon
    assert lexicon is not None
    text = prose(300)
    (ids,) = shipped.tokenizer.encode_batch([text])
    at = 0
    for r in shipped.encode_sections(text, by="sentence", every=4, normalize_embeddings=False):
        codes, words = lexicon.means(ids[at : at + r.n_tokens], [r.n_tokens])[0], r.vector[-lexicon.d_lexicon :]
        np.testing.assert_allclose(words / np.linalg.norm(words), codes / np.linalg.norm(codes), rtol=0, atol=1e-5)
        at += r.n_tokens
    assert at == len(ids)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_model_whose_texts_end_without_eos(tmp_path: Path, pooling: Any) -> None:
    embedder = thalweg.load(write_family(tmp_path / "model", "mamba2", pooling, append_eos=False))
    text = prose(120)
    results = list(embedder.encode_sections(text, by="sentence", mode="mean", **BOUNDS))
    check_mean(embedder, results, text, cuts_of(text, "sentence"))
    results = list(embedder.encode_sections(text, by="paragraph", mode="prefix", **BOUNDS))
    if pooling == "mean":  # with last-token pooling the vector of a section is that of an EOS all the same
        want = embedder.encode([text[: r.char_end] for r in results])
        np.testing.assert_allclose([r.vector for r in results], want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(results[-1].vector, embedder.encode(text), rtol=0, atol=1e-5)


def test_section_size_is_short_for_sections_of_tokens(model: Embedder) -> None:
    text = make_text(300)
    ways: list[Iterator[Any]] = [
        model.encode_stream([text], section_size=30),
        model.encode_stream([text], sections=Sections(every=30)),
        model.encode_sections(text, every=30),
    ]
    want, *others = [[(r.char_end, r.n_tokens, r.vector.tolist()) for r in way] for way in ways]
    assert len(want) > 3
    assert others == [want, want]
    assert [r.n_tokens for r in model.encode_sections(make_text(900))][:2] == [512, 512]


def test_a_stream_of_vectors_of_the_text_so_far(model: Embedder) -> None:
    text = make_text(700)
    (ids,) = model.tokenizer.encode_batch([text])
    found = list(model.stream(iter(text), every=90, truncate_dim=8))
    assert [n for n, _ in found] == [*range(90, len(ids), 90), len(ids)]
    for n, vector in found:
        want = model.encode_ids([np.append(ids[:n], ids[-1:] if n < len(ids) else [])])
        np.testing.assert_allclose(vector, finish(want, normalize=True, truncate_dim=8)[0], rtol=0, atol=1e-5)
    ((n, vector),) = model.stream("")
    np.testing.assert_allclose(vector, model.encode(""), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["mean", "prefix", "isolated"])
def test_vectors_leave_while_the_text_arrives(model: Embedder, mode: Any) -> None:
    """The text goes on only when a vector of its beginning has come."""
    arrived = threading.Event()

    def endless() -> Iterator[str]:
        for i in range(200):
            yield prose(80, i)
        assert arrived.wait(60)

    results = model.encode_sections(endless(), by="paragraph", mode=mode)
    next(results)
    arrived.set()
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.encode_sections("a", by="page"),
            "by must be one of tokens, paragraph, .*got 'page'",
        ),
        (lambda m: m.encode_sections("a", by=7), "by must be one of tokens, .* a function or characters, got 7"),
        (lambda m: m.encode_sections("a", every=0), "every must be at least 1, got 0"),
        (lambda m: m.encode_sections("a", mode="both"), "mode must be one of mean, prefix, isolated, got 'both'"),
        (lambda m: m.encode_sections("a", look_ahead=-1), "look_ahead must be at least 0, got -1"),
        (lambda m: m.encode_sections("a", look_ahead=1, mode="isolated"), "look_ahead=1 is not possible in mode 'isol"),
        (lambda m: m.encode_sections(iter("a"), by=len), "needs a whole text .* got str_.*iterator"),
        (lambda m: m.encode_sections("a", by=len), "must return whole numbers, got 1"),
        (lambda m: m.encode_sections("abc", by=[2, 1]), "must ascend, got 1 after 2"),
        (lambda m: m.encode_sections("abc", by=[3]), "inside the text, which has 3 characters, got 3"),
        (lambda m: m.encode_sections("abc", by=[3], mode="isolated"), "inside the text, which has 3 characters, got 3"),
        (lambda m: m.encode_stream(["ab", "cd"], sections=Sections([1])), "are those of one text"),
        (lambda m: m.encode_stream(["ab", "cd"], sections=Sections([1], mode="isolated")), "are those of one text"),
        (lambda m: m.encode_stream(["ab"], sections=5), r"sections must be thalweg.Sections\(…\), got 5"),
        (lambda m: m.encode_stream(["ab"], section_size=5, sections=Sections()), "exclude each other"),
        (lambda m: m.stream("a", every=0), "every must be at least 1, got 0"),
    ],
)
def test_sections_that_cannot_be(model: Embedder, call: Callable[[Embedder], Iterator[Any]], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        list(call(model))


@pytest.mark.parametrize("mode", ["mean", "isolated"])
def test_a_text_that_breaks_off_has_the_sections_before(model: Embedder, mode: Any) -> None:
    text = prose(3000)
    results = model.encode_sections([text.encode(), b"\xff"], by="paragraph", mode=mode)
    found = []
    with pytest.raises(TokenizationError, match="0xff"):
        found += [next(results) for _ in range(10**6)]
    want = list(model.encode_sections(text, by="paragraph", mode=mode))
    for r in found:
        np.testing.assert_allclose(r.vector, want[r.section].vector, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["tokens", "sentence"])
def test_a_slow_text_is_followed_closely(model: Embedder, by: Any) -> None:
    """Its vectors come with the next piece, not when a window of the tokenizer is full; and they are the same."""
    text = prose(60)
    seen: queue.Queue[Any] = queue.Queue()
    pieces = [text[i : i + 40] for i in range(0, len(text), 40)]

    def slow() -> Iterator[str]:
        for i, piece in enumerate(pieces):
            time.sleep(2 * tokenizer.SLOW)
            yield piece
            if i == len(pieces) // 2:
                assert seen.get(timeout=60)

    found = []
    for r in model.encode_sections(slow(), by=by, every=10 if by == "tokens" else 1):
        found.append(r)
        seen.put(r)
    want = list(model.encode_sections(text, by=by, every=10 if by == "tokens" else 1))
    assert [(r.char_end, r.n_tokens) for r in found] == [(r.char_end, r.n_tokens) for r in want]
    np.testing.assert_allclose([r.vector for r in found], [r.vector for r in want], rtol=0, atol=1e-5)


@examples(40)
@given(data=st.data())
def test_a_text_of_which_every_piece_is_slow(
    mean: Embedder, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(tokenizer, "SLOW", -1)
    text = data.draw(st.sampled_from([prose(40), "", "a", " \n\n", "🦢" * 30, "naïve façade. Ünï!\n\n# B\n" * 4]))
    size = data.draw(st.integers(1, 60))
    by: Any = data.draw(st.sampled_from(["tokens", "paragraph", "sentence", "heading"]))
    mode: Any = data.draw(st.sampled_from(["mean", "prefix"]))
    limit = data.draw(st.none() | st.integers(1, 30))
    options = {"by": by, "mode": mode, "every": data.draw(st.integers(1, 9)), "max_length": limit}
    found = list(mean.encode_sections((text[i : i + size] for i in range(0, len(text), size)), **options))
    want = list(mean.encode_sections(text, **options))
    assert [(r.char_end, r.n_tokens, r.truncated, r.last) for r in found] == [
        (r.char_end, r.n_tokens, r.truncated, r.last) for r in want
    ]
    np.testing.assert_allclose([r.vector for r in found], [r.vector for r in want], rtol=0, atol=1e-5)


@functools.cache
def shipped_tokenizer() -> tokenizer.Tokenizer:
    return thalweg.load().tokenizer


@pytest.mark.parametrize("kind", ["shipped", "world"])
@examples(60)
@given(data=st.data())
def test_tokens_of_other_tokenizers_in_sections(kind: str, data: st.DataObject) -> None:
    """Tokens that begin with blanks, that lie inside of characters, and that hold several sections."""
    tokenize = shipped_tokenizer() if kind == "shipped" else world_tokenizer()
    chars = st.sampled_from([*"ab .\n🦢é", "  ", "! ", "\n\n", "# ", "漢字。", "river ", "The ", "</s>", "\u200b"])
    text = "".join(data.draw(st.lists(chars, max_size=200)))
    by: Any = data.draw(st.sampled_from(["paragraph", "sentence", "heading"]))
    if len(text) > 1 and data.draw(st.booleans()):
        by = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=12)))
    size = data.draw(st.integers(1, 50))
    prompt, eager = data.draw(st.sampled_from(["", "note: "])), data.draw(st.booleans())
    stream = SectionedStream(
        [text[i : i + size] for i in range(0, len(text), size)],
        SectionedIds(make_boundaries(by)),
        functools.partial(tokenize.stream, prompt=prompt, with_offsets=True, eager=eager),
    )
    offsets, last = np.zeros((0, 2), dtype=np.int64), False
    while not last:
        _, more, last = stream.take_with_offsets(data.draw(st.integers(1, 40)))
        offsets = np.concatenate([offsets, more])
    wanted = token_sections(text, offsets, cuts_of(text, by))
    assert [tuple(end) for end in stream.ends] == [(token, char) for _, token, char in wanted]
