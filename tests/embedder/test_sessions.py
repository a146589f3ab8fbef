"""Texts that grow: at any time the vector of the whole text, whatever the family, the pooling, the tokenizer and the
cuts."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import thalweg
from tests.checkpoints.formats import write_tokenizer as write_words
from tests.checkpoints.registry import CHECKPOINTS
from tests.corpus.tiny import make_text
from tests.embedder.session_models import (
    TEXT,
    VARIANTS,
    assert_same,
    check_growing,
    load,
    n_tokens,
    pieces,
    write_model,
)
from tests.examples import examples
from tests.ops.harness import with_kernels
from thalweg import InvalidInputError, TokenizationError
from thalweg.embedder.embedder import Embedder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sessions")


@pytest.fixture(scope="module")
def model(folder: Path) -> Embedder:
    return load(folder / "mamba2")


@pytest.mark.slow
@pytest.mark.parametrize("on", [True, False], ids=["kernels", "PyTorch alone"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family(variant: str, pooling: str, dtype: str, on: bool, folder: Path, tmp_path: Path) -> None:
    """Random pieces, forks that go different ways, idle ones on disk, saved and restored ones."""
    rng = random.Random(variant)
    with with_kernels(on):
        model = load(folder / f"{variant} {pooling}", variant, dtype=dtype, pooling=pooling)
        check_growing(model, list(pieces(TEXT, rng)), TEXT, dtype)
        half, rest = TEXT[: len(TEXT) // 2], TEXT[len(TEXT) // 2 :]
        session = model.session()
        for piece in pieces(half, rng):
            session.append(piece)
        restored = model.restore(session.save(tmp_path / "session"))
        fork = session.fork()
        model.limit_sessions(model.plan_memory().state)
        for each, more in ((session, rest), (fork, "别的 way"), (restored, rest), (fork.fork(), "")):
            for piece in pieces(more, rng):
                each.append(piece)
        assert_same(session.vector(), model.encode(TEXT), dtype, pooling)
        assert_same(fork.vector(), model.encode(half + "别的 way"), dtype, pooling)
        assert_same(restored.vector(), model.encode(TEXT), dtype, pooling)
        assert np.abs(session.vector() - fork.vector()).max() > 1e-4


POOLINGS: dict[str, dict[str, Any]] = {
    "mean": {},
    "mean, no EOS": {"append_eos": False},
    "mean, 3 EOS": {"n_eos": 3},
    "lexicon": {"pooling": "lexicon"},
    "last": {"pooling": "last"},
    "last, 3 EOS": {"pooling": "last", "n_eos": 3},
    "last, no EOS": {"pooling": "last", "append_eos": False},
    "last 3, no EOS": {"pooling": "last", "append_eos": False, "n_eos": 3},
    "not normalised": {"normalize": False, "pooling": "last"},
}


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["bpe", "few", "world"])
@pytest.mark.parametrize("name", POOLINGS)
def test_every_pooling(name: str, tokenizer: str, folder: Path) -> None:
    model = load(folder / f"{name}, {tokenizer}", tokenizer=tokenizer, **POOLINGS[name])
    rng = random.Random(name)
    session = model.session()
    so_far = ""
    for piece in ["", *TEXT[:80], TEXT[80:300], "", TEXT[300:]]:
        session.append(piece)
        so_far += piece
        if (so_far and rng.random() < 0.5) or piece == TEXT[300:]:
            assert session.tokens == n_tokens(model, so_far)
            assert_same(session.vector(), model.encode(so_far))
    check_growing(model, list(pieces(TEXT, rng)), TEXT)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_format(name: str, tmp_path: Path) -> None:
    """With what only some have: BOS, embedding heads."""
    _, write = CHECKPOINTS[name]
    write(tmp_path)
    if not {"tokenizer.json", "rwkv_vocab_v20230424.txt"} & {path.name for path in tmp_path.iterdir()}:
        write_words(tmp_path)
    model = thalweg.load(tmp_path, device="cpu", dtype="float32")
    if model.heads:
        model = thalweg.load(tmp_path, device="cpu", dtype="float32", head=model.heads[0])
    text = "the river runs along its thalweg down to the sea " * 30
    check_growing(model, list(pieces(text, random.Random(name))), text)


def test_bos_comes_once(folder: Path) -> None:
    model = load(folder / "bos")
    model.tokenizer = type(model.tokenizer)(model.tokenizer._backend, eos_token_id=0, bos_token_id=1)
    check_growing(model, list(pieces(TEXT, random.Random(3))), TEXT)
    assert model.session().tokens == 2


def test_without_a_text(folder: Path) -> None:
    for name in ("mean", "last", "mean, no EOS", "last 3, no EOS"):
        model = load(folder / f"{name}, bpe", **POOLINGS[name])
        session = model.session()
        for _ in range(2):
            assert session.tokens == n_tokens(model, "")
            assert_same(session.vector(), model.encode(""))
            session.append("")
            session.append(b"")
        session.append("now there is")
        assert_same(session.vector(), model.encode("now there is"))


HARD = {
    "spaces": " " * 9000,
    "chinese": "".join(random.Random(0).choices("的一是不了人我在有他这为之大来以个中上们", k=6000)),
    "digits": "".join(random.Random(1).choices("0123456789", k=9000)),
    "dna": "".join(random.Random(2).choices("ACGT", k=9000)),
    "marks": "e\u0301" * 2000 + "🙂‍↔️" * 500,
    "prose": make_text(3000),
}


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["bpe", "world"])
@pytest.mark.parametrize("kind", HARD)
def test_texts_without_a_place_to_cut(kind: str, tokenizer: str, folder: Path, tmp_path: Path) -> None:
    model = load(folder / f"mean, {tokenizer}", tokenizer=tokenizer)
    text = "before it: " + HARD[kind] + " and after it"
    rng = random.Random(kind)
    session = model.session()
    at = 0
    while at < len(text):
        end = at + rng.choice([1, 7, 500, 3000])
        session.append(text[at:end])
        if rng.random() < 0.2:
            session = model.restore(session.save(tmp_path / "session"))
        at = end
    assert session.tokens == n_tokens(model, text)
    assert_same(session.vector(), model.encode(text))


def test_a_text_that_cannot_be_cut_is_refused_as_in_encode(folder: Path, tmp_path: Path) -> None:
    """And the session stays as it was, whatever comes next."""
    model = load(folder / "mean, bpe")
    session = model.session(max_uncut_chars=16_384)
    session.append("x" + " " * 10_000)
    before = session.vector()
    with pytest.raises(TokenizationError, match="max_uncut_chars=16384"):
        session.append(" " * 20_000)
    np.testing.assert_array_equal(session.vector(), before)
    session.append("and on")
    assert_same(session.vector(), model.encode("x" + " " * 10_000 + "and on"))


PROMPTS = {"short": "find: ", "long": make_text(2000, seed=5), "joins": "the riv", "spaces": "q:  "}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(name: str, folder: Path) -> None:
    path = folder / f"prompts {name}"
    model = load(path, pooling="last", prompts={name: PROMPTS[name]}, default_prompt_name=name)
    for text in ("", "er", " er and on", make_text(30)):
        for session in (model.session(), model.session(prompt=PROMPTS[name]), model.session(prompt_name=name)):
            for char in text:
                session.append(char)
            assert session.tokens == n_tokens(model, text, PROMPTS[name])
            assert_same(session.vector(), model.encode(text))
    with pytest.raises(InvalidInputError, match="no prompt named 'other'"):
        model.session(prompt_name="other")


@pytest.mark.parametrize("special_tokens", ["text", "token"])
def test_literals_of_special_tokens_cut_anywhere(special_tokens: Any, model: Embedder) -> None:
    literal = "<|endoftext|>"
    text = f"{make_text(5)}{literal}{literal} and </s>{make_text(5)}{literal}"
    want = model.encode(text, special_tokens=special_tokens)
    size = len(model.tokenizer.with_settings(special_tokens).encode_batch([text])[0])
    places = [text.index(literal), text.rindex(literal)]
    for cut, place in itertools.product(range(len(literal) + 1), places):
        session = model.session(special_tokens=special_tokens)
        session.append(text[: place + cut])
        session.append(text[place + cut :])
        assert session.tokens == size
        assert_same(session.vector(), want)
    other = model.encode(text, special_tokens="token" if special_tokens == "text" else "text")
    assert np.abs(want - other).max() > 1e-4


@examples(60)
@given(data=st.data())
def test_bytes_cut_anywhere(data: st.DataObject, model: Embedder) -> None:
    text = data.draw(st.text(st.sampled_from("aé 中🙂\n1<|endoftext|>")), label="text")
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    check_growing(model, [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)], text)


def test_settings_are_those_of_encode(model: Embedder) -> None:
    session = model.session(normalize_embeddings=False, truncate_dim=7)
    session.append(TEXT)
    want = model.encode(TEXT, normalize_embeddings=False, truncate_dim=7)
    np.testing.assert_allclose(session.vector(), want, rtol=1e-5)
    assert session.fork().vector().shape == (7,)
    for bad in (0, 25, "7"):
        with pytest.raises(InvalidInputError, match="truncate_dim"):
            model.session(truncate_dim=bad)  # type: ignore[arg-type]


# -- many at once -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thousand_sessions(model: Embedder) -> None:
    texts = [make_text(1 + i % 40, seed=i) for i in range(1000)]
    sessions = [model.session() for _ in texts]
    rng = random.Random(0)
    cuts = [sorted(rng.choices(range(len(text) + 1), k=2)) for text in texts]
    for first, last in (
        (lambda c: 0, lambda c: c[0]),
        (lambda c: c[0], lambda c: c[1]),
        (lambda c: c[1], lambda c: None),
    ):
        pairs = [(s, t[first(c) : last(c)]) for s, t, c in zip(sessions, texts, cuts, strict=True)]
        rng.shuffle(pairs)
        model.append_many(pairs)
    assert_same(model.session_vectors(sessions), model.encode(texts))
    assert [session.tokens for session in sessions] == [n_tokens(model, text) for text in texts]
    model.limit_sessions(100 * model.plan_memory().state)
    model.append_many((session, b" more") for session in reversed(sessions))
    assert_same(model.session_vectors(sessions), model.encode([f"{text} more" for text in texts]))
    model.limit_sessions(None)


def test_a_session_named_twice_gets_its_texts_in_order(model: Embedder) -> None:
    one, two = model.session(), model.session()
    model.append_many([(one, "a "), (two, "x"), (one, b"b \xc3"), (one, b"\xa9"), (two, " y")])
    vectors = model.session_vectors([one, two, one])
    assert_same(vectors, model.encode(["a b é", "x y", "a b é"]))
    assert model.session_vectors([]).shape == (0, model.dimension)
    model.append_many([])


def test_sessions_of_different_settings_together(model: Embedder) -> None:
    plain, text = model.session(), model.session(special_tokens="text", normalize_embeddings=False)
    model.append_many([(plain, "a<|endoftext|>"), (text, "a<|endoftext|>")])
    got = model.session_vectors([plain, text])
    assert_same(got[0], model.encode("a<|endoftext|>"))
    want = model.encode("a<|endoftext|>", special_tokens="text", normalize_embeddings=False)
    np.testing.assert_allclose(got[1], want, rtol=1e-5, atol=1e-6)
    with pytest.raises(InvalidInputError, match="vectors of 5 and 24 dimensions"):
        model.session_vectors([plain, model.session(truncate_dim=5)])


# -- what fails -------------------------------------------------------------------------------------------------------

BAD_TEXTS: dict[str, tuple[Any, type[Exception], str]] = {
    "no UTF-8": (b"fine \xff", TokenizationError, "not valid UTF-8"),
    "a lone surrogate": ("fine \ud800", TokenizationError, "lone surrogate"),
    "not a text": (3, InvalidInputError, "must be str or bytes, got int: 3"),
    "a list": (["a"], InvalidInputError, "must be str or bytes, got list"),
    "None": (None, InvalidInputError, "must be str or bytes, got NoneType"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_a_bad_text_leaves_the_session_as_it_was(name: str, model: Embedder) -> None:
    bad, error, match = BAD_TEXTS[name]
    session, other = model.session(), model.session()
    session.append(TEXT)
    with pytest.raises(error, match=match):
        session.append(bad)
    if error is TokenizationError:  # what is no text at all is seen before anything is done
        with pytest.raises(error, match=match):
            model.append_many([(session, "this too, "), (other, "the other goes on"), (session, bad)])
        assert_same(other.vector(), model.encode("the other goes on"))
    assert session.tokens == n_tokens(model, TEXT)
    session.append(" and on")
    assert_same(session.vector(), model.encode(f"{TEXT} and on"))


def test_errors_that_are_returned(model: Embedder) -> None:
    """By session, in the order in which they were named; the others have read on."""
    one, two, three = (model.session() for _ in range(3))
    assert model.append_many([(one, "the river "), (two, "runs "), (three, "down ")], on_error="return") == {}
    pairs = [(three, b"\xff"), (one, "and the sea"), (two, "\ud800")]
    errors = model.append_many(pairs, on_error="return")
    assert list(errors) == [three, two]
    assert all(isinstance(error, TokenizationError) for error in errors.values())
    assert_same(model.session_vectors([one, two, three]), model.encode(["the river and the sea", "runs ", "down "]))
    with pytest.raises(InvalidInputError, match="on_error must be one of raise, return"):
        model.append_many([], on_error="yield")  # type: ignore[arg-type]


def test_half_a_character(model: Embedder) -> None:
    session = model.session()
    session.append("naïve"[:3].encode()[:-1])
    for ask in (session.vector, lambda: session.tokens):
        with pytest.raises(TokenizationError, match="byte 2"):
            ask()
    with pytest.raises(TokenizationError, match="byte 2"):
        session.append("a str after it")
    assert repr(session) == "Session(0 tokens read, 0.0 MiB)"
    fork = session.fork()
    fork.append(b"\xafve")
    assert_same(fork.vector(), model.encode("naïve"))
    session.append(b"\xaa")
    assert_same(session.vector(), model.encode("na" + "ê"))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_numbers_that_are_none(pooling: str, tmp_path: Path) -> None:
    """A poisoned token: its session stays before it, the others go on, and its vector is an error too."""
    model = load(tmp_path / "model", pooling=pooling)
    bad = "🦢"
    poisoned = model.tokenize([bad])[0][0]
    model.model.embeddings.weight.data[poisoned] = float("nan")
    session, other = model.session(), model.session()
    session.append("the river")
    with pytest.raises(thalweg.NumericalError):
        model.append_many([(session, f" runs {bad}{make_text(30)}"), (other, "the other")])
    assert_same(other.vector(), model.encode("the other"))
    session.append(" runs")
    assert_same(session.vector(), model.encode("the river runs"))
    session.append(bad.encode()[:-1])
    session.append(bad.encode()[-1:])
    with pytest.raises(thalweg.NumericalError):
        session.vector()


def test_sessions_of_others(model: Embedder, folder: Path) -> None:
    other = load(folder / "last, bpe", pooling="last")
    session = model.session()
    for call in (
        lambda: other.append_many([(session, "a")]),
        lambda: other.session_vectors([session]),
        lambda: model.append_many([("a", "b")]),  # type: ignore[list-item]
        lambda: model.session_vectors(["a"]),  # type: ignore[list-item]
    ):
        with pytest.raises(InvalidInputError, match="a session of this model is wanted"):
            call()


# -- what it costs ----------------------------------------------------------------------------------------------------


def counted(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many tokens have gone through the model since the last time it was asked."""
    seen = 0
    forward = type(model.model).forward

    def counting(self: Any, tokens: Any, *args: Any, **options: Any) -> Any:
        nonlocal seen
        seen += len(tokens)
        return forward(self, tokens, *args, **options)

    def take() -> int:
        nonlocal seen
        was, seen = seen, 0
        return was

    monkeypatch.setattr(type(model.model), "forward", counting)
    return take


@pytest.mark.parametrize("tokenizer", ["bpe", "world"])
def test_one_percent_more_costs_one_percent(tokenizer: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder / f"mean, {tokenizer}", tokenizer=tokenizer)
    text = make_text(9000)
    session = model.session()
    session.append(text)
    total = session.tokens
    take = counted(model, monkeypatch)
    session.append(text[: len(text) // 100])
    session.vector()
    more = take()
    assert more <= 0.012 * total + 60  # at most 60 tokens wait for what comes next
    session.vector()
    assert take() <= 60
    session.append("")
    assert take() == 0


def test_single_characters_cost_their_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder / "mean, bpe")
    take = counted(model, monkeypatch)
    session = model.session()
    for char in make_text(150):
        session.append(char)
    assert take() <= session.tokens


# -- copies -----------------------------------------------------------------------------------------------------------


def test_copies_are_forks_and_pickles_are_refused(model: Embedder) -> None:
    session = model.session()
    session.append("one")
    for other in (copy.copy(session), copy.deepcopy(session), copy.deepcopy({"a": [session]})["a"][0]):
        other.append(" two")
        assert_same(other.vector(), model.encode("one two"))
    assert_same(session.vector(), model.encode("one"))
    with pytest.raises(TypeError, match=r"use its save\(path\)"):
        pickle.dumps(session)


def test_a_copied_model_has_no_sessions_but_their_limits(tmp_path: Path) -> None:
    model = thalweg.load(write_model(tmp_path / "m"))
    session = model.session()
    session.append("one")
    model.limit_sessions(0)
    again = copy.deepcopy(model)
    with pytest.raises(InvalidInputError, match="a session of this model"):
        again.append_many([(session, "a")])
    other = again.session()
    other.append(TEXT)
    assert repr(other).endswith("on disk)")
    restored = again.restore(session.save(tmp_path / "s"))
    assert_same(restored.vector(), model.encode("one"))
