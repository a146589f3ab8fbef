"""The reference and the compiled last tokens against BPE and Viterbi by their definitions, on random tables."""

import itertools
import random
from types import ModuleType

import numpy as np
import pytest
import tokenizers
from tokenizers import models

from tests.tokenization.shapes import last_token_modules

MODULES = last_token_modules()


def random_merges(draw: random.Random) -> tuple[list[str], list[tuple[str, str]]]:
    """Entries, letters first, and merges in an order in which no training would find them."""
    letters = "abcd"[: draw.randint(2, 4)]
    entries = list(letters)
    merges: set[tuple[str, str]] = set()
    for _ in range(draw.randint(1, 40)):
        pair = draw.choice(entries), draw.choice(entries)
        if len("".join(pair)) < 8:
            merges.add(pair)
            if "".join(pair) not in entries:
                entries.append("".join(pair))
    ordered = sorted(merges)
    draw.shuffle(ordered)
    return entries, ordered


def flat(entries: list[str]) -> tuple[np.ndarray, np.ndarray]:
    symbols = np.array([ord(char) - ord("a") for entry in entries for char in entry], dtype=np.int32)
    return symbols, np.cumsum([0, *map(len, entries)], dtype=np.int64)


def chain(tokens: np.ndarray, lengths: np.ndarray) -> list[int]:
    found, place = [], len(tokens)
    while place:
        found.append(int(tokens[place - 1]))
        place -= int(lengths[place - 1])
    return found[::-1]


@pytest.mark.parametrize("module", MODULES)
def test_bpe(module: ModuleType) -> None:
    draw = random.Random(1)
    for _ in range(60):
        entries, merges = random_merges(draw)
        ids = {entry: i for i, entry in enumerate(entries)}
        library = tokenizers.Tokenizer(models.BPE(ids, merges))
        triples = np.array([(ids[a], ids[b], ids[a + b]) for a, b in merges], dtype=np.int32).reshape(-1, 3)
        bpe = module.Bpe(triples, *flat(entries))
        letters = [entry for entry in entries if len(entry) == 1]
        for length in (1, 7, 30, 90):
            text = "".join(draw.choices(letters, k=length))
            word = np.array([ids[char] for char in text], dtype=np.int32)
            tokens, lengths = np.zeros(length, dtype=np.int32), np.zeros(length, dtype=np.int32)
            half = draw.randint(0, length)
            assert bpe.extend(word[:half], tokens[:half], lengths[:half], -1, 0) == half
            assert bpe.extend(word, tokens, lengths, -1, half) == length
            assert chain(tokens, lengths) == library.encode(text).ids
            prefix = draw.randint(1, length)
            assert chain(tokens[:prefix], lengths[:prefix]) == library.encode(text[:prefix]).ids


@pytest.mark.parametrize("module", MODULES)
def test_unigram(module: ModuleType) -> None:
    """Against all ways to divide a word, with scores that often tie."""
    draw = random.Random(2)
    for _ in range(60):
        entries = sorted({"".join(draw.choices("abc", k=draw.randint(1, 4))) for _ in range(draw.randint(1, 20))})
        scores = np.array([-float(draw.randint(1, 6)) / 2 for _ in entries])
        unigram = module.Unigram(*flat(entries), scores, len(entries), scores.min() - 10.0)
        scored = [*zip(entries, scores.tolist(), strict=True), ("?", -0.5)]
        library = tokenizers.Tokenizer(models.Unigram(scored, len(entries), False))
        for length in (1, 5, 40):
            text = "".join(draw.choices("abcd", k=length))
            word = np.array([ord(char) - ord("a") for char in text], dtype=np.int32)
            tokens, lengths, best = np.zeros(length, np.int32), np.zeros(length, np.int32), np.zeros(length + 1)
            half = draw.randint(0, length)
            unigram.extend(word[:half], tokens[:half], lengths[:half], best[: half + 1], 0)
            unigram.extend(word, tokens, lengths, best, half)
            pairs = itertools.pairwise([-1, *chain(tokens, lengths)])
            fused = [token for before, token in pairs if not before == token == len(entries)]
            assert fused == library.encode(text).ids


def test_shared_is_what_all_chains_have() -> None:
    draw = random.Random(3)
    for _ in range(300):
        n = draw.randint(1, 40)
        lengths = np.array([draw.randint(1, min(i + 1, 5)) for i in range(n)], dtype=np.int32)
        live = draw.randint(1, 8)
        ends = [set() for _ in range(live)]
        for chained, place in zip(ends, range(n, n - live, -1), strict=True):
            while place > 0:
                chained.add(place)
                place -= int(lengths[place - 1])
        expected = sorted(set.intersection(*ends)) if live <= n else []
        for module in MODULES:
            assert module.shared(lengths, live).tolist() == expected
