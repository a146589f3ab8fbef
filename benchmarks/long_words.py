"""Texts without a place to cut: characters a second, and peak memory of 1 million and of 100 million characters.

The text comes in pieces, random characters of one kind over and over, and its ids are dropped as they are taken. One
process per run; peak resident memory is the kernel's figure for that process, from which the self-check and the library
are not taken off.

    python benchmarks/long_words.py [--most 100000000] [--tokenizer tokenizer.json] [--repeat 3]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

import thalweg
from common import report
from thalweg.assets import model_folder
from thalweg.bench.meter import peak_rss, spread
from thalweg.tokenization.library import LibraryBackend
from thalweg.tokenization.tokenizer import Tokenizer

KINDS = {
    "chinese": [chr(code) for code in range(0x4E00, 0x9FA6)],
    "thai": [chr(code) for code in (*range(0xE01, 0xE3B), *range(0xE40, 0xE4F))],
    "dna": "ACGT",
    "digits": "0123456789",
}
FEW = 1_000_000


def pieces(kind: str, count: int) -> Iterator[str]:
    """So many characters, 100,000 at a time."""
    draw = random.Random(kind)
    some = ["".join(draw.choices(KINDS[kind], k=100_000)) for _ in range(7)]
    for number in range(count // 100_000):
        yield some[number % 7]


def run(file: Path, kind: str, count: int) -> dict[str, float]:
    """One text in this process, after one that is long enough for the self-check."""
    tokenizer = Tokenizer(LibraryBackend(tokenizers.Tokenizer.from_file(str(file))), eos_token_id=None)
    tokenizer.stream(pieces(kind, 200_000)).take_all()
    begun, ids, last = time.perf_counter(), 0, False
    stream = tokenizer.stream(pieces(kind, count))
    while not last:
        some, last = stream.take(4096)
        ids += len(some)
    return {"characters_per_s": count / (time.perf_counter() - begun), "tokens": ids, "peak_mib": peak_rss() / 2**20}


def in_a_process(file: Path, kind: str, count: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--tokenizer", str(file), "--one", kind, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=100_000_000)
    parser.add_argument("--tokenizer", type=Path, default=model_folder() / "tokenizer.json")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(args.tokenizer, args.one[0], int(args.one[1]))))
        return
    found = {}
    for kind in KINDS:
        few = [in_a_process(args.tokenizer, kind, FEW) for _ in range(args.repeat)]
        many = in_a_process(args.tokenizer, kind, args.most)
        found[kind] = {
            "characters_per_s": spread([each["characters_per_s"] for each in few]),
            "characters_per_s_of_most": many["characters_per_s"],
            "tokens_of_most": many["tokens"],
            "peak_mib": spread([each["peak_mib"] for each in few]),
            "peak_mib_of_most": many["peak_mib"],
            "peak_of_most_over_few": many["peak_mib"] / max(each["peak_mib"] for each in few),
        }
        print(kind, found[kind], flush=True)
    report("long_words", {"few": FEW, "most": args.most, "version": thalweg.__version__, "kinds": found})


if __name__ == "__main__":
    main()
