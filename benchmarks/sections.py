"""What sections cost: one long document with one vector, and with a vector for every section, by unit and mode.

The document is the shipped book over and over, as a stream of pieces. All ways take turns, `--repeat` times; what is
compared is the median.

    python benchmarks/sections.py [--tokens 1000000] [--model DIR] [--repeat 3]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator

import thalweg
from common import report
from thalweg import Sections
from thalweg.assets import book
from thalweg.bench.meter import seconds

WAYS: dict[str, Sections | None] = {
    "plain": None,
    "512 tokens, mean": Sections(),
    "512 tokens, prefix": Sections(mode="prefix"),
    "512 tokens, isolated": Sections(mode="isolated"),
    "paragraph, mean": Sections("paragraph"),
    "paragraph, prefix": Sections("paragraph", mode="prefix"),
    "paragraph, isolated": Sections("paragraph", mode="isolated"),
    "5 sentences, mean": Sections("sentence", 5),
    "5 sentences, mean, 64 tokens ahead": Sections("sentence", 5, look_ahead=64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--model")
    args = parser.parse_args()
    model = thalweg.load(args.model)
    source = book().read_text(encoding="utf-8")
    density = len(model.tokenizer.stream(source[:200_000]).take_all()) / 200_000
    n_chars = round(args.tokens / density)

    def text() -> Iterator[str]:
        for start in range(0, n_chars, 4096):
            at = start % len(source)
            yield source[at : min(at + 4096, at + n_chars - start)]

    n_vectors: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in WAYS}

    def run(name: str) -> None:
        n_vectors[name] = sum(1 for _ in model.encode_stream([text()], sections=WAYS[name]))

    list(model.encode_stream(["warm up " * 2000]))
    for _ in range(args.repeat):
        for name in WAYS:
            times[name].append(seconds(lambda name=name: run(name)))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name, taken in medians.items():
        print(f"{name:36} {n_vectors[name]:8,} vectors {taken:8.1f} s  {medians['plain'] / taken:6.1%} of plain")
    report(
        "sections",
        {
            "tokens": args.tokens,
            "vectors": n_vectors,
            "seconds": times,
            "rate_of_plain": {name: medians["plain"] / taken for name, taken in medians.items()},
        },
    )


if __name__ == "__main__":
    main()
