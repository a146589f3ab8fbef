"""Tokens a second of the RWKV world tokenizer, against the one of the PyPI package `rwkv`; and of the shipped model's.

python benchmarks/tokenizer.py [--repetitions 7]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import rwkv.rwkv_tokenizer as peer

import thalweg
from common import report
from thalweg.assets import book
from thalweg.bench.meter import seconds, spread
from thalweg.tokenization.world import WorldBackend, read_vocabulary

VOCABULARY = Path(peer.__file__).with_name("rwkv_vocab_v20230424.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    args = parser.parse_args()
    text = book().read_text(encoding="utf-8")
    ours, theirs = WorldBackend(read_vocabulary(VOCABULARY)), peer.TRIE_TOKENIZER(str(VOCABULARY))
    shipped = thalweg.load().tokenizer
    runs: dict[str, Callable[[], Sequence[int]]] = {
        "thalweg": lambda: ours.encode_batch([text])[0],
        "rwkv": lambda: theirs.encode(text),
        "thalweg-small-en": lambda: shipped.encode_batch([text])[0],
    }
    ids = {name: run() for name, run in runs.items()}
    assert list(ids["thalweg"]) == list(ids["rwkv"])
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repetitions):  # in turn: what else the machine does falls on all
        for name, run in runs.items():
            taken[name].append(seconds(run))
    rates = {name: spread([len(ids[name]) / each for each in times]) for name, times in taken.items()}
    report(
        "tokenizer",
        {
            "characters": len(text),
            "tokens": {name: len(each) for name, each in ids.items()},
            "tokens_per_s": rates,
            "thalweg_over_rwkv": rates["thalweg"]["median"] / rates["rwkv"]["median"],
        },
    )


if __name__ == "__main__":
    main()
