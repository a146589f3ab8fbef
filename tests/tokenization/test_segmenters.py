"""A word symbol by symbol gives the ids of the library, for every kind of model and every setting that is supported."""

import json
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, trainers

from tests.tokenization.shapes import BYTES, TRAINING_TEXT, last_token_modules
from thalweg.tokenization.segmenters import Path, Segmenter, Symbols, UnprovenError, make_segmenter

WORDS = [word for text in TRAINING_TEXT for word in text.split()]
ALPHABETS = [
    "ab",
    "ACGT",
    "river thalweg",
    "0123456789",
    "你好世界日本語",
    "กขคงจ",
    "aé\U0001f600\ue000",
    "\U0001f600\U0001f601",
]


def trained(model: models.Model, trainer: Any, **settings: Any) -> tokenizers.Tokenizer:
    """A model of words as they are, with settings that differ from those of the training."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    file = json.loads(tokenizer.to_str())
    file["added_tokens"] = []
    file["model"] |= settings
    return tokenizers.Tokenizer.from_str(json.dumps(file))


def bpe(special: tuple[str, ...] = ("<unk>",), **settings: Any) -> tokenizers.Tokenizer:
    affixes = {key: settings[key] for key in ("continuing_subword_prefix", "end_of_word_suffix") if key in settings}
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(special), limit_alphabet=50, show_progress=False, **affixes
    )
    return trained(models.BPE(**affixes), trainer, **settings)


def unigram(**settings: Any) -> tokenizers.Tokenizer:
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False)
    return trained(models.Unigram(), trainer, **settings)


BYTE_TOKENS = ("<unk>", *(f"<0x{byte:02X}>" for byte in range(256)))
MODELS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "unknown": lambda: bpe(unk_token="<unk>"),
    "unknown, fused": lambda: bpe(unk_token="<unk>", fuse_unk=True),
    "bytes": lambda: bpe(BYTE_TOKENS, unk_token="<unk>", fuse_unk=True, byte_fallback=True),
    "prefix": lambda: bpe(unk_token="<unk>", continuing_subword_prefix="##"),
    "suffix": lambda: bpe(unk_token="<unk>", end_of_word_suffix="</w>"),
    "prefix and suffix, fused": lambda: bpe(
        unk_token="<unk>", fuse_unk=True, continuing_subword_prefix="@", end_of_word_suffix="</w>"
    ),
    "merges ignored": lambda: bpe(unk_token="<unk>", ignore_merges=True),
    "unigram": unigram,
    "unigram, bytes": lambda: unigram(byte_fallback=True),
}


def random_word(draw: random.Random, length: int) -> str:
    if draw.random() < 0.4:
        return "".join(draw.choices(WORDS, k=length))[:length]
    return "".join(draw.choices(draw.choice(ALPHABETS).replace(" ", ""), k=length))


def given(segmenter: Segmenter, text: str, draw: random.Random) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of a word that comes in pieces; in the middle its path is saved and restored."""
    path = Path()
    blocks = []
    cuts = sorted(draw.randint(0, len(text)) for _ in range(draw.randint(0, 4)))
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        symbols = segmenter.symbols(text[start:stop], first=start == 0, last=stop == len(text))
        chars = np.repeat(np.arange(start, stop), [len(of_one) for of_one in symbols])
        flat = np.array([symbol for of_one in symbols for symbol in of_one], dtype=np.int32)
        blocks.append(segmenter.extend(path, Symbols(flat, chars, chars + 1)))
        path = segmenter.restored(json.loads(json.dumps(path.plain())))
    before = path.copy()
    blocks.append(segmenter.finish(path))
    assert segmenter.finish(before).ids.tolist() == blocks[-1].ids.tolist()  # a copy is independent
    offsets = np.concatenate([block.offsets for block in blocks if block.offsets is not None])
    return [int(id_) for block in blocks for id_ in block.ids], [(start, stop) for start, stop in offsets.tolist()]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("module", last_token_modules())
def test_a_word_in_pieces_is_the_whole_word(name: str, module: ModuleType) -> None:
    library = MODELS[name]()
    segmenter = make_segmenter(library, module)
    draw = random.Random(name)
    for length in (1, 2, 3, 10, 40, 200):
        for _ in range(8):
            text = random_word(draw, max(length, segmenter.least + 1))
            whole = library.encode(text)
            assert given(segmenter, text, draw) == (whole.ids, whole.offsets)


def test_what_is_decided_is_given_out() -> None:
    """Of a long word no more is held than its live paths need."""
    segmenter = make_segmenter(bpe(unk_token="<unk>"))
    draw = random.Random(5)
    path = Path()
    for start in range(0, 40_000, 1000):
        symbols = segmenter.symbols("".join(draw.choices("ACGT", k=1000)), first=start == 0, last=False)
        chars = np.arange(start, start + 1000)
        segmenter.extend(path, Symbols(np.array(symbols, dtype=np.int32)[:, 0], chars, chars + 1))
        assert path.size < 100


@pytest.mark.parametrize(
    ("model", "at_least"),
    [
        (models.WordPiece({"[UNK]": 7, "a": 1}, unk_token="[UNK]", max_input_chars_per_word=100), 100),
        (models.WordLevel({"[UNK]": 7, "abcde": 1}, unk_token="[UNK]"), 5),
    ],
)
def test_a_word_that_is_too_long_is_one_unknown_token(model: models.Model, at_least: int) -> None:
    library = tokenizers.Tokenizer(model)
    segmenter = make_segmenter(library)
    assert segmenter.least == at_least
    text = "a" * (at_least + 1)
    assert given(segmenter, text, random.Random(1)) == (library.encode(text).ids, library.encode(text).offsets)


def refused(model: models.Model, text: str = "", **settings: Any) -> str:
    file = json.loads(tokenizers.Tokenizer(model).to_str())
    file["model"] |= settings
    with pytest.raises(UnprovenError) as caught:
        make_segmenter(tokenizers.Tokenizer.from_str(json.dumps(file))).symbols(text, first=True, last=False)
    return str(caught.value)


def test_what_cannot_be_proved_is_refused_by_name() -> None:
    letters = {"a": 0, "b": 1, "ab": 2}
    assert refused(models.BPE(letters, [("a", "b")]), "x") == "its model has no entry for 'x' and no unk_token"
    assert "merges its unk_token" in refused(models.BPE(letters, [("a", "b")], unk_token="a"), "x")
    some_bytes = letters | {"<0x41>": 3}
    assert "byte_fallback but no entries for all bytes" in refused(models.BPE(some_bytes, [], byte_fallback=True), "x")
    long = {"a" * (1 << i): i for i in range(12)}
    merges = [("a" * (1 << i), "a" * (1 << i)) for i in range(11)]
    assert "an entry of 2048 symbols" in refused(models.BPE(long, merges))
    assert "no unk_id" in refused(models.Unigram([("a", -1.0)], None, False))
    assert "scores above 0" in refused(models.Unigram([("a", 1.0)], 0, False))
    assert "lacks its unk_token '[UNK]'" in refused(models.WordPiece({"a": 0}, unk_token="[UNK]"))
    assert "do not fit together" in refused(models.BPE({"a": 1 << 25}, []))
    prefixed = {"a": 0, "#": 1, "#b": 2, "ab": 3}
    strange = models.BPE(prefixed, [("a", "#b"), ("a", "#")], continuing_subword_prefix="#")
    assert "its merges make 'a' of different symbols" in refused(strange)


def test_all_bytes_are_letters() -> None:
    """As after ByteLevel: nothing is unknown, so no unk_token is needed."""
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=BYTES, show_progress=False)
    library = trained(models.BPE(), trainer)
    text = "".join(sorted(BYTES)) * 3
    assert given(make_segmenter(library), text, random.Random(2))[0] == library.encode(text).ids
