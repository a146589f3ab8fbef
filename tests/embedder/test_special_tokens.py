"""Literals of special tokens in texts, and the bound on texts that cannot be cut, through everything that loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

import thalweg
from tests.corpus.tiny import write_model
from thalweg import Embedder, Failure, InvalidInputError, TokenizationError


@pytest.fixture(scope="module")
def shipped() -> Embedder:
    return thalweg.load()


TEXT = "a text <|endoftext|> in its middle"


def test_the_shipped_model_reads_them_as_text(shipped: Embedder) -> None:
    model, other = shipped, thalweg.load(special_tokens="token")
    eos = model.token_ids.eos
    assert (model.special_tokens, other.special_tokens) == ("text", "token")
    assert [ids.tolist().count(eos) for ids in (model.tokenize([TEXT])[0], other.tokenize([TEXT])[0])] == [1, 2]
    assert model.fingerprint != other.fingerprint
    assert model.fingerprint == thalweg.load(special_tokens="text").fingerprint
    assert not np.allclose(model.encode(TEXT), other.encode(TEXT), atol=1e-3)
    np.testing.assert_array_equal(model.encode(TEXT, special_tokens="token"), other.encode(TEXT))
    (streamed,) = other.encode_stream([iter(TEXT)], special_tokens="text")
    np.testing.assert_allclose(streamed.vector, model.encode(TEXT), atol=1e-6)


def test_transformers_reads_the_shipped_tokenizer_so_too(shipped: Embedder) -> None:
    assert AutoTokenizer.from_pretrained(shipped.folder)(TEXT)["input_ids"] == shipped.tokenize([TEXT])[0].tolist()


def test_what_was_chosen_is_saved(tmp_path: Path) -> None:
    source = thalweg.load(write_model(tmp_path / "source"))
    assert source.special_tokens == "token"
    thalweg.load(source.folder, special_tokens="text").save(tmp_path / "saved")
    saved = thalweg.load(tmp_path / "saved")
    assert saved.special_tokens == "text"
    eos = AutoTokenizer.from_pretrained(source.folder).eos_token
    text = f"the river {eos} and on"
    theirs = [AutoTokenizer.from_pretrained(model.folder)(text)["input_ids"] for model in (source, saved)]
    assert theirs == [model.tokenize([text])[0].tolist() for model in (source, saved)]
    assert theirs[0] != theirs[1]


@pytest.mark.slow
def test_the_bound_is_reachable_everywhere(shipped: Embedder) -> None:
    text = "x" + " " * 40_000 + "\n"
    bounded = thalweg.load(max_uncut_chars=20_000)
    refusal = r"max_uncut_chars=20000 \(of load, encode and encode_stream; --max-uncut-chars\)"
    with pytest.raises(TokenizationError, match=refusal):
        bounded.encode(text)
    with pytest.raises(TokenizationError, match=refusal):
        shipped.encode(text, max_uncut_chars=20_000)
    (failure,) = shipped.encode_stream([iter(text)], max_uncut_chars=20_000, on_error="yield")
    assert isinstance(failure, Failure)
    np.testing.assert_array_equal(bounded.encode(text, max_uncut_chars=50_000), shipped.encode(text))


def test_values_that_cannot_be(shipped: Embedder) -> None:
    with pytest.raises(InvalidInputError, match="special_tokens must be one of token, text, got 'eos'"):
        thalweg.load(special_tokens="eos")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="max_uncut_chars must be at least 16384"):
        shipped.encode("a", max_uncut_chars=1)
