"""Streamed ids and offsets are those of the whole text, whatever the cuts; EOS exactly once; bounded memory."""

import importlib
import io
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers

import thalweg.tokenization.tokenizer
from tests.examples import examples
from thalweg.errors import CheckpointError, InvalidInputError, MissingExtraError, TokenizationError
from thalweg.tokenization.cuts import KNOWN_PATTERNS, CutRules
from thalweg.tokenization.library import LibraryBackend
from thalweg.tokenization.tokenizer import Tokenizer, TokenStream
from thalweg.tokenization.windows import WindowEncoder, find_mismatch

EOS = 0
BYTES = pre_tokenizers.ByteLevel.alphabet()
TRAINING_TEXT = [
    "The thalweg is the line of lowest points along a river bed, and boats that draw much water keep to it.",
    "It's said that she'll come; we've heard they're late, I'm sure he'd wait, but don't and can't aren't won't.",
    'In 1904, 12,345 boats passed (so the book says): 3.14 a day -- no more, no less... "Really?" asked the clerk.',
    "def add(a, b):\n    return a + b\n\n\tif x == 1:\r\n        print('one')  # two  spaces   three",
    "naïve café, señor Müller; Straße, Ångström, Œuvre, fi, ½, Ⅳ, the end of the river. the the the water waters",
    "你好，世界。日本語のテキストです。我们在河边走。한국어 글 नमस्ते दुनिया Привет, мир",
    '{"name":"river","length":1230,"mouths":["a","b"],"deep":true}',
]


def train(model: models.Model, trainer: Any, pre_tokenizer: Any, normalizer: Any = None) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(TRAINING_TEXT * 3, trainer)
    return tokenizer


def byte_level(pre_tokenizer: Any, normalizer: Any = None) -> tokenizers.Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=BYTES, special_tokens=["<|endoftext|>", "<|padding|>"], show_progress=False
    )
    return train(models.BPE(), trainer, pre_tokenizer, normalizer)


def split(*patterns: str) -> Any:
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt_neox() -> tokenizers.Tokenizer:
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC())
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True) for count in range(24, 1, -1)])
    return tokenizer


def shipped() -> tokenizers.Tokenizer:
    uncased = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    replaced = {
        r"[\u2018\u2019\u02bc]": "'",
        r"[\u201c\u201d]": '"',
        r"[\u2010\u2011]": "-",
        r"[\u00ad\u200b\ufeff]": "",
    }
    replace = [normalizers.Replace(Regex(pattern), content) for pattern, content in (replaced | {r"\s+": " "}).items()]
    normalizer = normalizers.Sequence([*uncased, *replace, normalizers.Strip()])
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), normalizer)


def llama3() -> tokenizers.Tokenizer:
    return byte_level(split(pattern_with(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*", "(?i:'s")))


def pattern_with(part: str, start: str) -> str:
    (pattern,) = [pattern for pattern in KNOWN_PATTERNS if part in pattern and pattern.startswith(start)]
    return pattern


def sentencepiece_bpe(settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """As converted from sentencepiece: byte fallback, and settings that differ from those of the training."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, limit_alphabet=60, show_progress=False)
    model = models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    file = json.loads(train(model, trainer, pre_tokenizers.Metaspace(prepend_scheme="first")).to_str()) | settings
    file["added_tokens"] = file["added_tokens"][:3]
    return tokenizers.Tokenizer.from_str(json.dumps(file))


def llama() -> tokenizers.Tokenizer:
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer = {"type": "Sequence", "normalizers": [prepend, replace]}
    return sentencepiece_bpe({"normalizer": normalizer, "pre_tokenizer": None})


def mistral() -> tokenizers.Tokenizer:
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return sentencepiece_bpe({"pre_tokenizer": metaspace})


def bert() -> tokenizers.Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    model = models.WordPiece(unk_token="[UNK]")
    return train(model, trainer, pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer())


def unigram() -> tokenizers.Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    spaces = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    return train(models.Unigram(), trainer, pre_tokenizers.Metaspace(), spaces)


def with_awkward_tokens(make: Callable[[], tokenizers.Tokenizer]) -> Callable[[], tokenizers.Tokenizer]:
    def made() -> tokenizers.Tokenizer:
        tokenizer = make()
        tokenizer.add_tokens(
            [
                AddedToken("<mask>", lstrip=True, special=True, normalized=False),
                AddedToken("<tail>", rstrip=True, special=True, normalized=False),
                AddedToken("[both]", lstrip=True, rstrip=True, normalized=False),
                AddedToken("river", single_word=True, normalized=True),
                AddedToken("Two Words", normalized=True),
                AddedToken("é!", normalized=True),
                AddedToken("a b c", normalized=False),
            ]
        )
        return tokenizer

    return made


PLAIN_SHAPES = {
    make.__name__: make for make in (gpt_neox, shipped, llama3, llama, mistral, bert, unigram)
}  # fmt: skip
SHAPES = PLAIN_SHAPES | {
    f"{name}, awkward added tokens": with_awkward_tokens(make) for name, make in PLAIN_SHAPES.items()
}


@cache
def shape_json(name: str) -> str:
    return SHAPES[name]().to_str()


@cache
def reference(name: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(shape_json(name))


def from_library(
    library: tokenizers.Tokenizer, *, eos_token_id: int | None = None, bos_token_id: int | None = None
) -> Tokenizer:
    return Tokenizer(LibraryBackend(library), eos_token_id=eos_token_id, bos_token_id=bos_token_id)


def library(tokenizer: Tokenizer) -> LibraryBackend:
    assert isinstance(tokenizer._backend, LibraryBackend)
    return tokenizer._backend


@cache
def ours(name: str, eos_token_id: int | None = EOS) -> Tokenizer:
    return from_library(tokenizers.Tokenizer.from_str(shape_json(name)), eos_token_id=eos_token_id)


ATOMS = [
    *"aAbcé x .,!?'’-_()[]<>|/\"`@#$019½Ⅳ①ßİſ你好世。，、한글नि",
    *(" ", "  ", "   ", " " * 30, "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u200b", "\ufeff", "\x00"),
    *(
        "e\u0301",
        "\u0301",
        " \u0308",
        ",\u0301",
        "=\u0338",
        "\ufe70",
        "\ufb01",
        "\u2121",
        "\ufffd",
        "\u0600 ",
        "ｶﾞ",
        "…",
    ),
    *("\U0001f600", "\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "A\U0001f3fb", "3\ufe0f\u20e3"),
    *(
        "'s",
        "'ll",
        "'S",
        "don't",
        "the",
        " the",
        "River",
        "river",
        "rivers",
        "AAA",
        "日本語",
        "12345",
        "1,234.5",
        ").\n\n",
    ),
    *("<|endoftext|>", "<|endof", "text|>", "<s>", "</s>", "[SEP]", "<unk>", "<0x0A>", "▁"),
    *(
        "<mask>",
        " <mask> ",
        "<tail>",
        "<tail>   ",
        "[both]",
        "two words",
        "Two Words",
        "é!",
        "e\u0301!",
        "a b c",
        "a b",
    ),
]
TEXTS = st.lists(st.sampled_from(ATOMS) | st.characters(exclude_categories=["Cs"]), max_size=60).map("".join)


def pieces(text: str | bytes, cuts: list[int]) -> Iterator[Any]:
    """`text` cut at the given places, with empty pieces where they coincide."""
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    yield from (text[start:stop] for start, stop in itertools.pairwise(places))


def drain(stream: TokenStream, sizes: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """All ids and offsets, by takes of the given sizes in turn; each is full unless it is the last."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    last = False
    turn = 0
    while not last:
        size = sizes[turn % len(sizes)]
        new, spans, last = stream.take_with_offsets(size)
        assert new.dtype == np.int32
        assert spans.dtype == np.int64
        assert spans.shape == (len(new), 2)
        assert len(new) == size or last
        ids += new.tolist()
        offsets += [(start, stop) for start, stop in spans.tolist()]
        turn += 1
    assert stream.take(1)[0].tolist() == []
    assert stream.take(1)[1] is True
    return ids, offsets


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
    assert library(ours(name)).rules.refusal is None  # exact because it was cut well, not because it was not cut


@examples(100)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 10_000), max_size=30), window=st.integers(1, 40))
def test_bytes_may_be_cut_inside_a_character(text: str, cuts: list[int], window: int) -> None:
    stream = ours("shipped").stream(pieces(text.encode(), cuts), window_chars=window)
    assert stream.take_all().tolist() == [*reference("shipped").encode(text).ids, EOS]


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


@pytest.mark.parametrize("pattern", sorted(KNOWN_PATTERNS))
def test_known_patterns(pattern: str) -> None:
    tokenizer = with_awkward_tokens(lambda: byte_level(split(pattern)))()
    assert CutRules(tokenizer).refusal is None
    streamed = from_library(tokenizer)
    draw = random.Random(1)
    for _ in range(100):
        text = "".join(draw.choices(ATOMS, k=40))
        stream = streamed.stream(text, window_chars=draw.randint(1, 40))
        assert stream.take_all().tolist() == tokenizer.encode(text).ids


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


@pytest.mark.parametrize(
    ("allowed", "pairs"),
    [
        (True, ["e ", ". ", "e\n", ".\n", "1\t", "字\r", "글 ", "e.", "字。", "1，", 'e"']),
        (False, [" e", "  ", "ab", "..", "a1", ".a"]),
        (False, ["e'", "e’", "e＇"]),  # part of a contraction
        (False, ["e=", "e<", "e>"]),  # ≠ if a combining mark follows
        (False, ["\u0301 ", "é ", "\ufe70 ", "\u200b ", "\ufffd "]),  # what normalizers take away or change
        (False, ["e\u00a0", "e\u3000", "e\u2017", "e\u0301"]),
        (False, ["o ", "O ", "o\t", "a b"[:2]]),  # within an added token, or as one once normalised
    ],
)
def test_where_cuts_are_allowed(allowed: bool, pairs: list[str]) -> None:
    rules = CutRules(reference("gpt_neox, awkward added tokens"))
    assert {pair: rules.allows(*pair) for pair in pairs} == dict.fromkeys(pairs, allowed)


def assert_streams_exactly(backend: tokenizers.Tokenizer, text: str) -> None:
    rules = CutRules(backend)
    assert rules.refusal is None
    for window in range(1, len(text)):
        blocks = list(WindowEncoder(backend, lambda: rules, iter(text), window_chars=window).blocks())
        assert [int(id_) for block in blocks for id_ in block.ids] == backend.encode(text).ids


def test_marks_beyond_the_window_cannot_move_a_cut() -> None:
    """BERT splits before = but not before ≠, and which it is shows only at the combining mark."""
    characters = ["[UNK]", *"abc=≠", "##≠", "##b", "a≠"]
    backend = tokenizers.Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(characters)}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    assert_streams_exactly(backend, "a=\u0338b a b a=\u0338 c")


@pytest.mark.parametrize("y", [",", "▁"])
def test_merges_beyond_the_window_cannot_move_a_cut(y: str) -> None:
    """With "ab" merged first, then ",a", then "e,": whether e|, stays apart depends on whether a b follows."""
    vocabulary = {token: i for i, token in enumerate([*dict.fromkeys(f"abe,▁{y}"), "ab", f"{y}a", f"e{y}"])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("a", "b"), (y, "a"), ("e", y)]))
    backend.normalizer = normalizers.Replace(" ", "▁")
    assert_streams_exactly(backend, "e,ab e,a e, e ab e,ab e a,ab ee,ab")


def test_no_cut_inside_a_token() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a.": 0, "b": 1}, unk_token="b"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoding = backend.encode("a. b")
    rules = CutRules(backend)
    assert rules.allows("a", ".")
    assert [rules.token_at(encoding, "a. b", position) for position in (1, 2, 3)] == [None, 1, None]


def test_replaced_characters_are_never_at_a_cut() -> None:
    rules = CutRules(reference("shipped"))
    pairs = ["e ", "e\n", "e,", "ʼ ", "e‘", "e“", "e\u2011", "e\u00ad", "\u00ad ", "ŉ "]
    assert [rules.allows(*pair) for pair in pairs] == [True] * 3 + [False] * 7


def test_self_check_is_quick_and_passes_for_every_shape() -> None:
    for name in SHAPES:
        backend = reference(name)
        assert find_mismatch(backend, CutRules(backend)) is None


def test_one_word_longer_than_the_bound() -> None:
    for name in ("gpt_neox", "llama", "unigram"):
        at_bound = "some words " + "a" * 89
        stream = ours(name).stream(at_bound, window_chars=16, max_uncut_chars=100)
        assert stream.take_all().tolist() == [*reference(name).encode(at_bound).ids, EOS]
        stream = ours(name).stream("some words, " * 50 + "a" * 200, "prompt: ", window_chars=16, max_uncut_chars=100)
        with pytest.raises(TokenizationError, match=r"from character 5\d\d on .* max_uncut_chars=100"):
            stream.take_all()
        with pytest.raises(TokenizationError):  # never taken for the end of the text
            stream.take(1)


def unknown_pattern() -> tokenizers.Tokenizer:
    return byte_level(
        split(r" ?[^(\s|[.,!?…。，、।۔،])]+")
    )  # BLOOM's: where a piece ends may show two characters later


def unigram_over_the_whole_text() -> tokenizers.Tokenizer:
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer = train(models.Unigram(), trainer, pre_tokenizers.Metaspace())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    return tokenizer


def normalizer_with_a_pattern() -> tokenizers.Tokenizer:
    return byte_level(pre_tokenizers.ByteLevel(), normalizers.Replace(Regex("a.*b"), "c"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (unknown_pattern, "Split.*not among the known"),
        (unigram_over_the_whole_text, "no place whose two sides"),
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
            windows = WindowEncoder(reference(name), lambda rules=rules: rules, iter(text), window_chars=32)
            try:
                ids = np.concatenate([block.ids for block in windows.blocks()])
            except TokenizationError:
                errors += 1
            else:
                assert ids.tolist() == reference(name).encode(text).ids
    assert errors > 100


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


def test_every_kind_of_source(tmp_path: Path) -> None:
    text = "\ufeffthe river, 日本語 and the water\n" * 20
    file = tmp_path / "text.txt"
    file.write_bytes(text.encode())
    expected = [*reference("llama").encode(text).ids, EOS]
    with file.open("rb") as binary, file.open(encoding="utf-8", newline="") as lines:
        sources = [
            text,
            text.encode(),
            bytearray(text.encode()),
            ["", text, ""],
            [b"", text.encode(), b""],
            iter(text),
            (bytes([byte]) for byte in text.encode()),
            io.StringIO(text),
            io.BytesIO(text.encode()),
            binary,
            lines,
        ]
        for source in sources:
            assert ours("llama").stream(source, window_chars=32).take_all().tolist() == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"good \xff bad", r"byte 5 \(0xff\) is not valid UTF-8: invalid start byte"),
        ([b"\xe6\x97", b"\xa5 \xe6\x97", b"x"], r"byte 4 \(0xe6\) is not valid UTF-8: invalid continuation"),
        ([b"abc\xe6\x97"], r"byte 3 \(0xe6\) is not valid UTF-8: unexpected end"),
        ([b"abc\xe6", "\x97"], r"byte 3 \(0xe6\) is not valid UTF-8"),
        (b"a" * 70_000 + b"\x80", r"byte 70000 \(0x80\)"),
        ("lone \ud800 half", r"character 5 is the lone surrogate '\\ud800'"),
        (["some ", "more", "\udfff"], "character 9 is the lone surrogate"),
    ],
)
def test_what_is_not_text(source: Any, message: str) -> None:
    with pytest.raises(TokenizationError, match=message):
        ours("gpt_neox").stream(source).take_all()


def test_text_file_in_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("café".encode("latin-1"))
    with file.open(encoding="utf-8") as lines, pytest.raises(TokenizationError, match=r"latin\.txt.*binary mode"):
        ours("gpt_neox").stream(lines).take(1)


def test_surrogates_elsewhere() -> None:
    with pytest.raises(TokenizationError, match="text 1: character 1 is the lone surrogate"):
        ours("gpt_neox").encode_batch(["fine", "x\udc80"])
    with pytest.raises(TokenizationError, match="the prompt's character 7 is the lone surrogate"):
        ours("gpt_neox").stream("fine", "prompt \udc80")


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


@pytest.mark.memory
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


def test_from_folder_reads_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(shape_json("llama"), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path, eos_token_id=2)
    assert tokenizer.encode_batch(["the river"])[0].tolist() == [*reference("llama").encode("the river").ids, 2]
    assert tokenizer.vocab_size == reference("llama").get_vocab_size()
    assert tokenizer.eos_token_id == 2


@pytest.mark.parametrize("file", sorted(Path(thalweg.__file__).parent.glob("assets/*/tokenizer.json")))
def test_models_in_the_package_can_be_streamed(file: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(file))
    rules = CutRules(backend)
    assert rules.refusal is None
    assert find_mismatch(backend, rules) is None


def test_folders_that_hold_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer \(looked for tokenizer.json, tokenizer.model"):
        Tokenizer.from_folder(tmp_path, eos_token_id=0)
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
    with pytest.raises(CheckpointError, match=r"no tokenizer_config\.json with a tokenizer_class"):
        Tokenizer.from_folder(tmp_path, eos_token_id=0)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no tokenizer that tokenizers"):
        Tokenizer.from_folder(tmp_path, eos_token_id=0)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model.v3").write_bytes(b"")

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match="pip install transformers sentencepiece protobuf"):
        Tokenizer.from_folder(tmp_path, eos_token_id=0)


def test_slow_files_are_converted_and_never_run_code(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "river", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('code of the folder was run')")
    tokenizer = Tokenizer.from_folder(tmp_path, eos_token_id=3)
    assert tokenizer.encode_batch(["The rivers"])[0].tolist() == [5, 6, 7, 3]


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.model.v3"])
def test_sentencepiece_models_are_converted(name: str, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    pytest.importorskip("transformers")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT * 3),
        model_writer=model,
        vocab_size=450,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tmp_path / name).write_bytes(model.getvalue())
    text = "The river, 12  boats\n日本語"
    expected = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode(text)
    assert Tokenizer.from_folder(tmp_path, eos_token_id=2).encode_batch([text])[0].tolist() == [*expected, 2]
