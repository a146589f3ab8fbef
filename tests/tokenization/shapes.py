"""Small tokenizers of every kind, awkward texts, and how the tests take ids."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import tokenizers
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers

from thalweg.tokenization import last_tokens
from thalweg.tokenization.backend import Block
from thalweg.tokenization.cuts import CutRules
from thalweg.tokenization.library import LibraryBackend
from thalweg.tokenization.long_words import LongWords
from thalweg.tokenization.patterns import AFTER_NUMBERS_ARE_APART, KNOWN_PATTERNS, NUMBERS
from thalweg.tokenization.tokenizer import Tokenizer, TokenStream
from thalweg.tokenization.windows import LibraryWindow

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


def known(pattern: str) -> Any:
    """A pre-tokenizer of one known pattern, and of what must come before it."""
    return split(NUMBERS, pattern) if pattern in AFTER_NUMBERS_ARE_APART else split(pattern)


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


class Splitting:
    """How a text can be split by these rules, without a self-check."""

    def __init__(self, library: tokenizers.Tokenizer, rules: CutRules | None = None, rows: bool = False) -> None:
        self.library = library
        self.rules = rules or CutRules(library)
        self.words = LongWords(library, self.rules) if rows else "not asked for"


def through_windows(splitting: Splitting, pieces: Iterable[str], window_chars: int) -> Block:
    window = LibraryWindow(splitting, with_offsets=True, window_chars=window_chars)
    return Block.join([block for piece in pieces for block in window.push(piece)] + window.finish())


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


def last_token_modules() -> list[ModuleType]:
    """The reference, and what is compiled, where it is."""
    from thalweg.kernels.native import library, segment

    if library.missing():
        return [last_tokens]

    return [last_tokens, segment]
