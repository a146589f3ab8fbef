"""What is run once: an instruction before short queries, and what documents of a corpus have in common.

Queries of 15 tokens with an instruction of about 60, and documents that share four fifths of their text with others of
their kind, in random order. Both are timed with and without prefix states, in turn, and vectors are compared.

    python benchmarks/prefixes.py [--queries 4000] [--documents 240] [--words 2000] [--repeat 3] [--model DIR]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable

import numpy as np

import thalweg
from common import report
from thalweg.assets import book
from thalweg.bench.meter import seconds

KINDS = 4
"""Kinds of documents, each with a beginning of its own."""


def in_turns(repeat: int, functions: dict[str, Callable[[], np.ndarray]]) -> tuple[dict[str, float], float]:
    """The shortest time of each, and the largest difference between what they give."""
    times = dict.fromkeys(functions, float("inf"))
    found: dict[str, np.ndarray] = {}
    for _ in range(repeat):
        for name, function in functions.items():

            def run(name: str = name, function: Callable[[], np.ndarray] = function) -> None:
                found[name] = function()

            times[name] = min(times[name], seconds(run))
    first, second = found.values()
    return times, float(np.abs(first - second).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=4000)
    parser.add_argument("--documents", type=int, default=240)
    parser.add_argument("--words", type=int, default=2000, help="of a document")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--model")
    args = parser.parse_args()
    model = thalweg.load(args.model)
    words = book().read_text(encoding="utf-8").split()
    chance = random.Random(0)

    def piece(n: int) -> str:
        start = chance.randrange(len(words) - n)
        return " ".join(words[start : start + n])

    instruction = f"Instruct: {piece(38)}\nQuery: "
    queries = [piece(11) for _ in range(args.queries)]
    heads = [piece(args.words * 4 // 5) for _ in range(KINDS)]
    documents = [f"{heads[n % KINDS]} {piece(args.words // 5)}" for n in range(args.documents)]
    chance.shuffle(documents)

    def encode(texts: list[str], max_bytes: int, **options: object) -> np.ndarray:
        model.limit_prefixes(max_bytes)
        vectors: np.ndarray = model.encode(texts, **options)  # type: ignore[arg-type]
        return vectors

    rows = {}
    for name, texts, options in (
        ("instruction", queries, {"prompt": instruction}),
        ("shared_beginnings", documents, {"share_prefixes": True}),
    ):
        plain = {key: value for key, value in options.items() if key == "prompt"}
        functions = {
            "again": lambda texts=texts, plain=plain: encode(texts, 0, **plain),
            "once": lambda texts=texts, options=options: encode(texts, 1 << 28, **options),
        }
        times, difference = in_turns(args.repeat, functions)
        n_tokens = [len(ids) for ids in model.tokenize(texts[:200])]
        rows[name] = {
            "texts": len(texts),
            "mean_tokens": float(np.mean(n_tokens)),
            "seconds": times,
            "ratio": times["again"] / times["once"],
            "largest_difference": difference,
        }
        print(name, rows[name])
    report("prefixes", {"instruction_tokens": len(model.tokenize([instruction])[0]) - 1, **rows})


if __name__ == "__main__":
    main()
