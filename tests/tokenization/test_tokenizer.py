"""EOS exactly once, BOS, length limits, batches and wrong arguments."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import processors

from tests.tokenization.shapes import (
    ATOMS,
    EOS,
    SHAPES,
    TRAINING_TEXT,
    drain,
    from_library,
    ours,
    reference,
    shape_json,
)
from thalweg.errors import InvalidInputError


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_eos_once_whatever_the_file_says(name: str) -> None:
    backend = tokenizers.Tokenizer.from_str(shape_json(name))
    backend.post_processor = processors.TemplateProcessing(
        single="[B] $A [E]", special_tokens=[("[B]", 1), ("[E]", EOS)]
    )
    backend.enable_truncation(max_length=4)
    backend.enable_padding(length=50)
    tokenizer = from_library(backend, eos_token_id=EOS, bos_token_id=2)
    end_text = backend.id_to_token(EOS)
    for text in ("", " ", " \n\t ", "a", "some words about the river", f"some words{end_text}"):
        expected = [2, *reference(name).encode(text, add_special_tokens=False).ids, EOS]
        assert tokenizer.encode_batch([text, text])[1].tolist() == expected
        assert tokenizer.stream(text, window_chars=4).take_all().tolist() == expected


def test_offsets_do_not_depend_on_the_post_processor() -> None:
    backend = reference("gpt_neox")
    trimming = tokenizers.Tokenizer.from_str(shape_json("gpt_neox"))
    trimming.post_processor = processors.ByteLevel(trim_offsets=True)
    stream = from_library(trimming).stream("the river", with_offsets=True)
    assert drain(stream, [9])[1] == backend.encode("the river").offsets


def test_no_eos_and_no_text() -> None:
    stream = ours("gpt_neox", None).stream("", with_offsets=True)
    ids, offsets, last = stream.take_with_offsets(5)
    assert (ids.shape, offsets.shape, last) == ((0,), (0, 2), True)
    assert ours("gpt_neox").stream([]).take(5)[0].tolist() == [EOS]


def test_last_is_exact() -> None:
    count = len(ours("gpt_neox").stream("the river and the water").take_all())
    for window in (4, 100):
        stream = ours("gpt_neox").stream("the river and the water", window_chars=window)
        assert stream.take(count - 1)[1] is False
        assert stream.take(1)[1] is True
        stream = ours("gpt_neox").stream("the river and the water", window_chars=window)
        assert stream.take(count)[1] is True


def test_dropout_is_off() -> None:
    backend = tokenizers.Tokenizer.from_str(shape_json("gpt_neox"))
    backend.model.dropout = 0.9
    text = TRAINING_TEXT[0]
    ids = from_library(backend).encode_batch([text])[0]
    assert ids.tolist() == reference("gpt_neox").encode(text).ids


def test_max_length_keeps_eos_and_tells() -> None:
    text = "the river and the water, the boats and the book"
    backend = reference("gpt_neox")
    whole = backend.encode(text)
    tokenizer = from_library(tokenizers.Tokenizer.from_str(backend.to_str()), eos_token_id=EOS, bos_token_id=1)
    full = len(whole.ids) + 2
    for max_length in (*range(2, full + 3), None):
        for window in (6, 1000):
            stream = tokenizer.stream(text, max_length=max_length, with_offsets=True, window_chars=window)
            ids, offsets = drain(stream, [3])
            kept = full if max_length is None else min(max_length, full)
            assert ids == [1, *whole.ids[: kept - 2], EOS]
            assert stream.truncated == (kept < full)
            end = len(text) if kept == full else (whole.offsets[kept - 3][1] if kept > 2 else 0)
            assert offsets == [(0, 0), *whole.offsets[: kept - 2], (end, end)]
        if max_length is not None:
            short, cut = tokenizer.shorten(tokenizer.encode_batch([text])[0], max_length)
            assert short.dtype == np.int32
            assert (short.tolist(), cut) == (ids, stream.truncated)
    with pytest.raises(InvalidInputError, match="max_length must be at least 2, not 1"):
        tokenizer.stream(text, max_length=1)


def test_max_length_stops_reading() -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "the river and the water "

    stream = ours("gpt_neox").stream(endless(), max_length=100, window_chars=256)
    assert len(stream.take_all()) == 100
    assert stream.truncated
    assert read < 200


def test_batch_is_each_text_alone() -> None:
    draw = random.Random(3)
    texts = ["".join(draw.choices([*ATOMS, *TRAINING_TEXT], k=draw.randint(0, 30))) for _ in range(200)]
    texts[50] = " ".join(TRAINING_TEXT) * 40  # longer than a window
    for name in ("shipped", "llama"):
        batch = ours(name).encode_batch(texts)
        assert len(batch) == len(texts)
        for text, ids in zip(texts, batch, strict=True):
            assert ids.dtype == np.int32
            assert ids.tolist() == [*reference(name).encode(text).ids, EOS]
    assert ours("shipped").encode_batch([]) == []


def test_batches_of_many_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.tokenization.tokenizer._BATCH_CHARS", 50)
    batch = ours("shipped").encode_batch(TRAINING_TEXT, "query: ")
    assert [ids.tolist() for ids in batch] == [
        [*reference("shipped").encode("query: " + text).ids, EOS] for text in TRAINING_TEXT
    ]


def test_wrong_arguments(tmp_path: Path) -> None:
    tokenizer = ours("gpt_neox")
    with pytest.raises(InvalidInputError, match="text 1 must be str, not int: 3"):
        tokenizer.encode_batch(["a", 3])  # type: ignore[list-item]
    with pytest.raises(InvalidInputError, match=r"for one text pass \['a text'…\]"):
        tokenizer.encode_batch("a text")
    with pytest.raises(InvalidInputError, match=r"not (Posix|Windows)Path"):
        tokenizer.stream(tmp_path).take(1)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="a piece of text must be str or bytes, not int: 1"):
        tokenizer.stream([1]).take(1)  # type: ignore[list-item]
    with pytest.raises(InvalidInputError, match="positive number of ids, not 0"):
        tokenizer.stream("a").take(0)
    with pytest.raises(InvalidInputError, match="with_offsets=True"):
        tokenizer.stream("a").take_with_offsets(1)
    with pytest.raises(InvalidInputError, match="window_chars must be in 1 … max_uncut_chars=5, not 6"):
        tokenizer.stream("a", window_chars=6, max_uncut_chars=5)
    with pytest.raises(InvalidInputError, match="eos_token_id must be None or a token id, not -1"):
        from_library(reference("gpt_neox"), eos_token_id=-1)


@pytest.mark.parametrize("name", ["gpt_neox", "llama"])
def test_decode(name: str) -> None:
    """As the library does, which has no decoder in these files."""
    tokenizer, library = ours(name, EOS), reference(name)
    ids = tokenizer.encode_batch(["the river and the water"])[0].tolist()
    for part in (ids, ids[:-1], ids[:1], []):
        assert tokenizer.decode(part) == library.decode(part)
        assert tokenizer.decode(np.array(part), skip_special_tokens=False) == library.decode(part, False)
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(InvalidInputError, match=f"there is no token {wrong}"):
            tokenizer.decode([wrong])
