"""Texts without a place to cut give the ids of the whole text, in memory that does not grow with them."""

import json
import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers

from tests.tokenization import fuzz_segments
from tests.tokenization.shapes import PLAIN_SHAPES, SHAPES, byte_level, from_library, library, llama3, ours, split
from thalweg.errors import CheckpointError, TokenizationError
from thalweg.tokenization import last_tokens, segmenters
from thalweg.tokenization.cuts import CutRules
from thalweg.tokenization.library import LibraryBackend


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_every_kind_of_row(name: str) -> None:
    backend = library(ours(name))
    assert not isinstance(backend.splitter.words, str)
    for kind in fuzz_segments.KINDS:
        draw = random.Random(f"{name} {kind}")
        for text in fuzz_segments.texts(kind, 2000, draw):
            assert fuzz_segments.check(backend, text, draw) is None, (kind, text)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN_SHAPES)
def test_without_what_is_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenters, "_kernels", lambda: last_tokens)
    backend = LibraryBackend(PLAIN_SHAPES[name]())
    assert not isinstance(backend.splitter.words, str)
    draw = random.Random(name)
    for kind in ("chinese", "dna", "rows"):
        for text in fuzz_segments.texts(kind, 1500, draw):
            assert fuzz_segments.check(backend, text, draw) is None, (kind, text)


def test_the_environment_chooses_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.kernels.enabled", lambda: ())
    assert segmenters._kernels() is last_tokens


@pytest.mark.parametrize("name", ["gpt_neox", "llama3", "unigram"])
def test_a_copy_goes_on_by_itself_and_a_state_is_plain(name: str) -> None:
    backend = library(ours(name))
    draw = random.Random(name)
    start, one_end, other_end = ("".join(draw.choices("ACGT的一是不", k=3000)) for _ in range(3))
    window = backend.window(with_offsets=True, skip=0, window_chars=64, max_uncut_chars=1000)
    given = [block for char in start for block in window.push(char)]
    copies = [(window.copy(), one_end), (backend.restored(json.loads(json.dumps(window.state()))), other_end)]
    for copy, end in copies:
        blocks = [*given, *copy.push(end), *copy.finish()]
        ids = [int(id_) for block in blocks for id_ in block.ids]
        assert ids == backend.splitter.library.encode(start + end, add_special_tokens=False).ids


def test_a_row_with_characters_that_the_normalizer_takes_away() -> None:
    text = "क" * 3 + "ि" * 60 + "कि" * 2000
    stream = ours("shipped", None).stream(text, window_chars=64, max_uncut_chars=300)
    assert stream.take_all().tolist() == library(ours("shipped")).splitter.library.encode(text).ids


def test_a_model_that_cannot_be_followed_is_refused_by_name() -> None:
    """BPE without an entry for every character, and none for unknown ones."""
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    stream = from_library(backend).stream("ab" * 40 + "x" * 400, window_chars=16, max_uncut_chars=100)
    with pytest.raises(TokenizationError, match=r"max_uncut_chars=100"):
        stream.take_all()


def test_a_failed_self_check_keeps_to_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_tokens, "shared", lambda lengths, live: np.zeros(0, dtype=np.int32))
    monkeypatch.setattr(segmenters, "_kernels", lambda: last_tokens)
    backend = llama3()
    tokenizer = from_library(tokenizers.Tokenizer.from_str(backend.to_str()))
    text = "some words, " * 40
    assert tokenizer.stream(text, window_chars=16).take_all().tolist() == backend.encode(text).ids
    with pytest.raises(TokenizationError, match="its self-check failed"):
        tokenizer.stream("a" * 500, window_chars=16, max_uncut_chars=100).take_all()


def two_spaces_as_a_token(normalizer: normalizers.Normalizer) -> tokenizers.Tokenizer:
    backend = byte_level(split(r"\p{N}{1,3}"), normalizer)
    backend.add_tokens([AddedToken("  ", normalized=True)])
    return backend


def test_an_added_token_that_is_normalized_to_nothing_is_refused() -> None:
    """The library would panic at a text with other letters than ASCII, or allocate memory until there is none."""
    with pytest.raises(CheckpointError, match=r"leaves nothing of its added token '  '.*\"normalized\": false"):
        LibraryBackend(two_spaces_as_a_token(normalizers.Strip()))
    LibraryBackend(two_spaces_as_a_token(normalizers.NFC()))


@pytest.mark.parametrize("place", ["windows", "self_check"])
def test_a_panic_of_the_library_is_an_error_of_ours(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is no Exception, as Python has it."""
    panic = type("PanicException", (BaseException,), {})

    class Panics:
        def encode(self, text: str, add_special_tokens: bool) -> None:
            raise panic("AddedVocabulary bad split")

    tokenizer = from_library(llama3())
    backend = library(tokenizer)
    if place == "windows":
        assert not isinstance(backend.splitter.words, str)
    rules = CutRules(backend.splitter.library)
    monkeypatch.setattr(backend.splitter, "library", Panics())
    if place == "self_check":
        monkeypatch.setattr("thalweg.tokenization.splitting.CutRules", lambda library: rules)
        monkeypatch.setattr("thalweg.tokenization.self_check._awkward_texts", lambda library: iter(["a b"]))
        assert "self-check failed: 'a b'" in (backend.splitter.rules.refusal or "")
    with pytest.raises(TokenizationError, match="bad split"):
        tokenizer.stream("word " * 20, window_chars=16).take_all()


MEMORY_SCRIPT = """
import sys
import tokenizers
from thalweg.bench.meter import peak_rss
from thalweg.tokenization.library import LibraryBackend
from thalweg.tokenization.tokenizer import Tokenizer
backend = LibraryBackend(tokenizers.Tokenizer.from_str(sys.stdin.read()))
part = "ACGTTGCA" * 12_500
def take(count):
    stream, ids, last = Tokenizer(backend, eos_token_id=0).stream(part for _ in range(count)), 0, False
    while not last:
        block, last = stream.take(1000)
        ids += len(block)
    return ids, peak_rss()
print(*take(10), *take(int(sys.argv[1])))
"""


@pytest.mark.subprocess
@pytest.mark.memory
@pytest.mark.parametrize("make", [llama3, PLAIN_SHAPES["unigram"]])
def test_memory_does_not_grow_with_a_word(make: Callable[[], tokenizers.Tokenizer]) -> None:
    """A million letters without a space, and ten million."""
    command = [sys.executable, "-c", MEMORY_SCRIPT, "100"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, input=make().to_str())
    ids, small, more_ids, large = map(int, run.stdout.split())
    assert ids > 50_000
    assert more_ids > 9.9 * ids
    assert large <= 1.02 * small
