"""The literal of a special token in a text: that token, or the text that it is; and every other setting kept."""

import random

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from tests.tokenization import fuzz_segments
from tests.tokenization.shapes import EOS, SHAPES, TEXTS, drain, from_library, library, ours, pieces, shape_json
from tests.tokenization.test_world import ours as world
from thalweg.errors import InvalidInputError, TokenizationError
from thalweg.tokenization.tokenizer import Tokenizer

LITERALS = st.lists(
    st.sampled_from(["<|endoftext|>", "<|endof", "[SEP]", "</s>", "<s>", "<unk>", " ", "river", "好", "1", "x" * 30])
).map("".join)


def whole(name: str) -> tokenizers.Tokenizer:
    read = tokenizers.Tokenizer.from_str(shape_json(name))
    read.encode_special_tokens = True
    return read


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
@examples(60)
@given(text=TEXTS | LITERALS, cuts=st.lists(st.integers(0, 10_000), max_size=3), window=st.integers(1, 40))
def test_streamed_as_text_is_whole(name: str, text: str, cuts: list[int], window: int) -> None:
    expected = whole(name).encode(text, add_special_tokens=False)
    tokenizer = ours(name).with_settings("text")
    ids, offsets = drain(tokenizer.stream(pieces(text, cuts), with_offsets=True, window_chars=window), [9])
    assert ids == [*expected.ids, EOS]
    assert offsets[:-1] == expected.offsets
    assert tokenizer.encode_batch([text])[0].tolist() == ids


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_rows_as_text(name: str) -> None:
    backend = library(ours(name).with_settings("text"))
    assert not isinstance(backend.splitter.words, str)
    for kind in ("rows", "awkward"):
        draw = random.Random(f"{name} {kind}")
        for text in fuzz_segments.texts(kind, 2000, draw):
            assert fuzz_segments.check(backend, text, draw) is None, (kind, text)


def test_both_at_a_time() -> None:
    text = "a <|endoftext|> b"
    token = ours("gpt_neox", None)
    as_text = token.with_settings("text")
    one, other = token.stream(text), as_text.stream(text)
    assert one.take(1)[0].tolist() == other.take(1)[0].tolist()
    assert EOS in one.take_all()
    assert EOS not in other.take_all()
    assert EOS in as_text.with_settings("token").encode_batch([text])[0]
    assert as_text.with_settings().special_tokens == "text"


def test_tokens_that_are_not_special_stay_tokens() -> None:
    backend = tokenizers.Tokenizer.from_str(shape_json("gpt_neox"))
    backend.add_tokens(["<own>"])
    ids = from_library(backend).with_settings("text").encode_batch(["a <own> b"])[0]
    assert backend.token_to_id("<own>") in ids


def test_a_tokenizer_of_rwkv_has_no_literals() -> None:
    assert world().with_settings("text").encode_batch(["a"])[0].tolist() == world().encode_batch(["a"])[0].tolist()


def test_bound_of_a_tokenizer_and_of_a_stream() -> None:
    tokenizer = ours("llama3").with_settings(max_uncut_chars=20_000)
    text = "x" + " " * 50_000
    with pytest.raises(TokenizationError, match=r"max_uncut_chars=20000 \(of load, encode and encode_stream"):
        tokenizer.encode_batch([text])
    assert len(tokenizer.with_settings(max_uncut_chars=60_000).encode_batch([text])[0]) > 1
    assert len(tokenizer.stream(text, max_uncut_chars=60_000).take_all()) > 1


def test_settings_that_cannot_be() -> None:
    tokenizer: Tokenizer = ours("llama3")
    with pytest.raises(InvalidInputError, match="special_tokens must be one of token, text"):
        tokenizer.with_settings("words")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="max_uncut_chars must be at least 16384"):
        tokenizer.with_settings(max_uncut_chars=100)
