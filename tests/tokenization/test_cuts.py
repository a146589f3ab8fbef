"""Where a text may be cut, and where never."""

import random

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from tests.tokenization.shapes import (
    ATOMS,
    Splitting,
    byte_level,
    from_library,
    known,
    reference,
    through_windows,
    with_awkward_tokens,
)
from thalweg.tokenization.added_tokens import AddedTokens
from thalweg.tokenization.cuts import CutRules
from thalweg.tokenization.patterns import KNOWN_PATTERNS


@pytest.mark.slow
@pytest.mark.parametrize("pattern", sorted(KNOWN_PATTERNS))
def test_known_patterns(pattern: str) -> None:
    tokenizer = with_awkward_tokens(lambda: byte_level(known(pattern)))()
    assert CutRules(tokenizer).refusal is None
    streamed = from_library(tokenizer)
    draw = random.Random(1)
    for _ in range(100):
        text = "".join(draw.choices(ATOMS, k=40))
        stream = streamed.stream(text, window_chars=draw.randint(1, 40))
        assert stream.take_all().tolist() == tokenizer.encode(text).ids


@pytest.mark.parametrize(
    ("allowed", "pairs"),
    [
        (True, ["e ", ". ", "e\n", ".\n", "1\t", "字\r", "글 ", "e.", "字。", "1，", 'e"']),
        (True, ["ab", "a1", "12", "1a", "aA", "字字", "ก\u0e34", "字\u0301", "글글", "a☃"]),
        (False, [" e", "  ", "..", ".a", "字A", "\u1100\u1161", "가\u11a8", "か\u3099"]),
        (False, ["e'", "e’", "e＇"]),  # part of a contraction
        (False, ["e=", "e<", "e>"]),  # ≠ if a combining mark follows
        (False, ["\u0301 ", "é ", "\ufe70 ", "\u200b ", "\ufffd "]),  # what normalizers take away or change
        (False, ["e\u00a0", "e\u3000", "e\u2017", "e\u0301"]),
    ],
)
def test_where_cuts_are_allowed(allowed: bool, pairs: list[str]) -> None:
    rules = CutRules(reference("gpt_neox, awkward added tokens"))
    assert {pair: rules.allows(*pair) for pair in pairs} == dict.fromkeys(pairs, allowed)


def assert_streams_exactly(backend: tokenizers.Tokenizer, text: str) -> None:
    rules = CutRules(backend)
    assert rules.refusal is None
    for window in range(1, len(text)):
        assert through_windows(Splitting(backend, rules), text, window).ids.tolist() == backend.encode(text).ids


@pytest.mark.parametrize(
    ("text", "place", "lies"),
    [
        ("Two Words", 3, True),
        ("TWO\tw", 3, True),  # as one once normalised
        ("two", 2, True),
        ("twe", 1, True),
        ("owe", 2, False),
        ("no Words", 2, False),
        ("a b", 1, True),
        ("A b", 1, False),  # looked for as it is
        ("a b c", 3, True),
        ("<|end", 2, True),
        ("a|end", 2, False),
        ("x" * 500 + "Two Words", 503, True),
        ("\u0301" * 500 + "wo", 501, True),  # hardly anything is left of it
    ],
)
def test_added_tokens_over_a_place(text: str, place: int, lies: bool) -> None:
    library = byte_level(
        pre_tokenizers.ByteLevel(),
        normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
    )
    library.add_tokens([AddedToken("Two Words", normalized=True), AddedToken("a b c", normalized=False)])
    assert AddedTokens(library).may_lie_over(text, place) == lies


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
