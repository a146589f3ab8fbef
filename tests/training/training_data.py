"""A little data that can be learned: queries and texts that share a rare word."""

from __future__ import annotations

import json
import random
from pathlib import Path

from ..corpus.tiny import SENTENCE


def write_pairs(path: Path, n: int = 64, *, negatives: int = 0, seed: int = 0, words: int = 6) -> Path:
    """`n` rows of {query, positive, negatives}; a query is some of the words of its positive."""
    rng = random.Random(seed)
    rows = []
    for number in range(n):
        texts = [" ".join(rng.choices(SENTENCE.split(), k=words)) for _ in range(1 + negatives)]
        rows.append({"query": f"{number}: {texts[0]}", "positive": f"{texts[0]} {number}", "negatives": texts[1:]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_sts(path: Path, n: int = 12) -> Path:
    """`n` rows of {sentence1, sentence2, score}; the score is the share of equal words."""
    words = SENTENCE.split()
    with path.open("w", encoding="utf-8") as file:
        for number in range(n):
            first = words[number : number + 6]
            second = [*first[: number % 7], *words[20 : 26 - number % 7]]
            row = {"sentence1": " ".join(first), "sentence2": " ".join(second), "score": number % 7}
            file.write(json.dumps(row) + "\n")
    return path
