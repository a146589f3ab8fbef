"""Streamed ids and offsets are those of the whole text, whatever the cuts, in bounded memory."""

import contextlib
import copy
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

import thalweg.tokenization.tokenizer
import thalweg.tokenization.windows
from tests.edits import edit_json
from tests.examples import examples
from tests.tokenization.shapes import (
    ATOMS,
    EOS,
    SHAPES,
    TEXTS,
    TRAINING_TEXT,
    Splitting,
    byte_level,
    drain,
    from_library,
    library,
    ours,
    pieces,
    reference,
    split,
    through_windows,
)
from thalweg.errors import TokenizationError
from thalweg.tokenization.backend import WINDOW_CHARS, Block
from thalweg.tokenization.cuts import CutRules
from thalweg.tokenization.library_errors import encode
from thalweg.tokenization.self_check import find_mismatch
from thalweg.tokenization.tokenizer import TokenStream


@pytest.mark.parametrize("name", SHAPES)
@examples(120)
@given(
    text=TEXTS,
    cuts=st.lists(st.integers(0, 10_000), max_size=5),
    window=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
)
def test_streamed_is_whole(name: str, text: str, cuts: list[int], window: int, sizes: list[int]) -> None:
    whole = reference(name).encode(text, add_special_tokens=False)
    stream = ours(name).stream(pieces(text, cuts), with_offsets=True, window_chars=window)
    ids, offsets = drain(stream, sizes)
    assert ids == [*whole.ids, EOS]
    assert offsets == [*whole.offsets, (len(text), len(text))]
    assert (
        library(ours(name)).splitter.rules.refusal is None
    )  # exact because it was cut well, not because it was not cut


@pytest.mark.parametrize("name", SHAPES)
@examples(120)
@given(
    text=TEXTS,
    cuts=st.lists(st.integers(0, 10_000), max_size=8),
    window=st.integers(1, 40),
    what=st.lists(st.sampled_from(["flush", "copy", "save", "none"]), min_size=1, max_size=5),
)
def test_a_window_flushed_copied_and_saved_anywhere(
    name: str, text: str, cuts: list[int], window: int, what: list[str]
) -> None:
    """As sessions do: whatever has been decided early, the ids are those of the whole."""
    whole = reference(name).encode(text, add_special_tokens=False)
    backend = library(ours(name))
    live = backend.window(with_offsets=True, skip=0, window_chars=window, max_uncut_chars=1 << 20)
    blocks = []
    for piece, do in zip(pieces(text, cuts), itertools.cycle(what), strict=False):
        blocks += live.push(piece)
        if do == "flush":
            blocks += live.flush()
        elif do == "copy":
            live.copy().flush()
        elif do == "save":
            live = backend.restored(json.loads(json.dumps(live.state())))
    found = Block.join([*blocks, *live.finish()])
    assert found.ids.tolist() == whole.ids
    assert [tuple(pair) for pair in found.offsets.tolist()] == whole.offsets


def test_after_a_flush_little_is_left_and_time_stays_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """One character at a time, flushed each time: 60 characters are left over at most, and of a text without a cut a
    window is encoded now and then only."""
    encoded = 0

    def counting(library: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
        nonlocal encoded
        encoded += len(text)
        return encode(library, text)

    monkeypatch.setattr(thalweg.tokenization.windows, "encode", counting)
    backend = library(ours("gpt_neox"))
    prose = (TRAINING_TEXT[0] * 40)[:4000]
    for text, most_left, most_encoded in ((prose, 100, 30), (" " * 4000, 4000, 12)):
        encoded = 0
        window = backend.window(with_offsets=False, skip=0, window_chars=4096, max_uncut_chars=1 << 20)
        for char in text:
            window.push(char)
            window.flush()
        assert len(window.state()["text"]) <= most_left
        assert encoded <= most_encoded * len(text)


@examples(100)
@given(prompt=TEXTS, text=TEXTS, window=st.integers(1, 40))
def test_prompt_is_text_without_offsets(prompt: str, text: str, window: int) -> None:
    whole = reference("mistral").encode(prompt + text)
    stream = ours("mistral").stream(text, prompt, with_offsets=True, window_chars=window)
    ids, offsets = drain(stream, [7])
    assert ids == [*whole.ids, EOS]
    clipped = [(max(start - len(prompt), 0), max(stop - len(prompt), 0)) for start, stop in whole.offsets]
    assert offsets == [*clipped, (len(text), len(text))]
    assert ours("mistral").encode_batch([text], prompt)[0].tolist() == ids


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_default_windows_on_a_longer_text(name: str) -> None:
    draw = random.Random(2)
    text = "".join(draw.choices([*TRAINING_TEXT, *ATOMS, " "], k=6000))
    assert len(text) > 40_000
    whole = reference(name).encode(text)
    ids, offsets = drain(ours(name).stream(iter(text), with_offsets=True), [1000])
    assert ids == [*whole.ids, EOS]
    assert offsets[:-1] == whole.offsets


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gpt_neox", '{"name":"river","deep":true},'),
        ("llama3", "https://example.org/a?b=c&d=e,"),
        ("shipped", "日本語のテキストです。我们在河边走，"),
        ("llama", "日本語のテキストです。我们在河边走，"),
        ("mistral", "https://example.org/a?b=c&d=e,"),
        ("bert", "日本語のテキストです。我们在河边走，"),
    ],
)
def test_long_line_without_a_space(name: str, line: str) -> None:
    text = line * 500
    stream = ours(name).stream(text, window_chars=64, max_uncut_chars=256)
    assert stream.take_all().tolist() == [*reference(name).encode(text).ids, EOS]


def test_self_check_is_quick_and_passes_for_every_shape() -> None:
    for name in SHAPES:
        backend = reference(name)
        assert find_mismatch(Splitting(backend)) is None


@pytest.mark.parametrize("name", ["gpt_neox", "llama3", "shipped", "bert"])
def test_no_place_within_the_bound(name: str) -> None:
    """Spaces: whether the last one belongs to what follows, or all of them to a line break, shows only at their end."""
    at_bound = "some words " + " " * 88 + "a"
    stream = ours(name).stream(at_bound, window_chars=16, max_uncut_chars=100)
    assert stream.take_all().tolist() == [*reference(name).encode(at_bound).ids, EOS]
    stream = ours(name).stream("some words, " * 50 + " " * 200, "prompt: ", window_chars=16, max_uncut_chars=100)
    with pytest.raises(TokenizationError, match=r"from character (5|6)\d\d on .* max_uncut_chars=100"):
        stream.take_all()
    with pytest.raises(TokenizationError):  # never taken for the end of the text
        stream.take(1)


def unknown_pattern() -> tokenizers.Tokenizer:
    return byte_level(
        split(r" ?[^(\s|[.,!?…。，、।۔،])]+")
    )  # BLOOM's: where a piece ends may show two characters later


def normalizer_with_a_pattern() -> tokenizers.Tokenizer:
    return byte_level(pre_tokenizers.ByteLevel(), normalizers.Replace(Regex("a.*b"), "c"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (unknown_pattern, "Split.*not among the known"),
        (normalizer_with_a_pattern, "Replace.*across a cut"),
    ],
)
def test_unknown_settings_are_exact_up_to_the_bound_then_refused(
    make: Callable[[], tokenizers.Tokenizer], reason: str
) -> None:
    backend = make()
    tokenizer = from_library(backend)
    text = "a word, or two. " * 20
    assert tokenizer.stream(text, window_chars=16).take_all().tolist() == backend.encode(text).ids
    with pytest.raises(TokenizationError, match=reason):
        tokenizer.stream(text, window_chars=16, max_uncut_chars=100).take(1)


def test_failed_self_check_refuses_long_texts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.tokenization.cuts._is_local", lambda x, y: True)
    monkeypatch.setattr("thalweg.tokenization.cuts._MergeRule.never_joins", lambda self, x, y: True)
    backend = reference("mistral")
    tokenizer = from_library(tokenizers.Tokenizer.from_str(backend.to_str()))
    text = "the river  and the boats\n" * 8
    assert tokenizer.stream(text).take_all().tolist() == backend.encode(text).ids
    with pytest.raises(TokenizationError, match="self-check failed"):
        tokenizer.stream(text, window_chars=16, max_uncut_chars=100).take(1)


def test_wrong_cuts_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the rules ever be wrong about a tokenizer, the overlap of the windows turns wrong ids into an error."""
    monkeypatch.setattr("thalweg.tokenization.cuts._is_local", lambda x, y: True)
    monkeypatch.setattr("thalweg.tokenization.cuts._MergeRule.never_joins", lambda self, x, y: True)
    draw = random.Random(4)
    errors = 0
    for name in SHAPES:
        rules = CutRules(reference(name))
        for _ in range(20):
            text = "".join(draw.choices([*ATOMS, *TRAINING_TEXT], k=60))
            try:
                ids = through_windows(Splitting(reference(name), rules), text, 32).ids
            except TokenizationError:
                errors += 1
            else:
                assert ids.tolist() == reference(name).encode(text).ids
    assert errors > 50


# A model of whole words, so that 50 MB take seconds.
MEMORY_SCRIPT = """
import resource, sys
from tokenizers import Tokenizer as Backend, models, pre_tokenizers
from thalweg.tokenization.library import LibraryBackend
from thalweg.tokenization.tokenizer import Tokenizer
backend = Backend(models.WordLevel({"<unk>": 0, "river": 1}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
line = (b"river " + b"x" * 93 + b"\\n") * 10_000
stream = Tokenizer(LibraryBackend(backend), eos_token_id=0).stream(line for _ in range(int(sys.argv[1])))
ids, last = 0, False
while not last:
    block, last = stream.take(1000)
    ids += len(block)
print(ids, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.subprocess
@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_memory_does_not_grow_with_the_text() -> None:
    def run(megabytes: int) -> tuple[int, int]:
        command = [sys.executable, "-c", MEMORY_SCRIPT, str(megabytes)]
        ids, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return int(ids), int(peak) * (1 if sys.platform == "darwin" else 1024)

    (small_ids, small), (large_ids, large) = run(1), run(50)
    assert (small_ids, large_ids) == (20_001, 1_000_001)
    assert large - small < 4e6


@pytest.mark.parametrize("file", sorted(Path(thalweg.__file__).parent.glob("assets/*/tokenizer.json")))
def test_models_in_the_package_can_be_streamed(file: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(file))
    rules = CutRules(backend)
    assert rules.refusal is None
    assert find_mismatch(Splitting(backend, rules)) is None


ROWS = ["0123456789", "ACGT", "的一是不了人我在有", "ab", "é🙂x"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_a_state_that_somebody_made_up(name: str) -> None:
    """It is refused, or is that of some text, or is found out when it is used; compiled code gets no index from it."""
    rng = random.Random(name)
    backend = library(ours(name))
    states = []
    for row in ROWS * 2:
        window = backend.window(with_offsets=False, skip=0, window_chars=64, max_uncut_chars=2000)
        with contextlib.suppress(TokenizationError):
            window.push("it begins " + "".join(rng.choices(row, k=rng.choice([400, 1500]))))
        window.flush()
        states.append(json.loads(json.dumps(window.state())))
    refused = 0
    for _ in range(600):
        state = copy.deepcopy(rng.choice(states))
        for _ in range(rng.choice([1, 1, 2, 3])):
            edit_json(rng, state)
        try:
            window = backend.restored(state)
        except (ValueError, TypeError, KeyError):
            refused += 1
            continue
        with contextlib.suppress(TokenizationError):
            blocks = window.push("".join(rng.choices(rng.choice([*ROWS, "to be "]), k=rng.choice([5, 500]))))
            blocks += [*window.flush(), *window.finish()]
            ids = Block.join(blocks).ids
            assert not len(ids) or 0 <= ids.min() <= ids.max() < backend.vocab_size
    assert refused > 200


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("with_offsets", [True, False])
def test_a_stream_goes_on_from_its_state(name: str, with_offsets: bool) -> None:
    rng = random.Random(0)
    text = "\n".join(TRAINING_TEXT)
    text *= 4 * WINDOW_CHARS // len(text) + 1
    tokenizer = ours(name)
    n_read = 0

    def watched(start: int) -> Iterator[str]:
        nonlocal n_read
        for n_read in range(start + 100, len(text) + 100, 100):
            yield text[n_read - 100 : n_read]

    def rest(stream: TokenStream) -> tuple[list[int], list[list[int]]]:
        if not with_offsets:
            return stream.take_all().tolist(), []
        ids, offsets, _ = stream.take_with_offsets(sys.maxsize)
        return ids.tolist(), offsets.tolist()

    whole, wherever = rest(tokenizer.stream(text, with_offsets=with_offsets))
    stream = tokenizer.stream(watched(0), with_offsets=with_offsets)
    n = 0
    for at in [*sorted(rng.sample(range(1, len(whole)), 6)), len(whole) - 1]:
        if at > n:
            stream.take(at - n)
            n = at
        state, ids = json.loads(json.dumps(stream.state())), stream.ids.copy()
        stream = tokenizer.resumed(state, ids, watched(n_read), with_offsets=with_offsets)
    assert rest(stream) == (whole[n:], wherever[n:])
    for broken in ({"room": -1}, {"char": None}, {"window": {}}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            tokenizer.resumed({**state, **broken}, ids, "", with_offsets=with_offsets)
    with pytest.raises(ValueError, match="holds the id"):
        tokenizer.resumed(state, ids + tokenizer.vocab_size, "", with_offsets=with_offsets)
