"""Peak memory and time per token against the length of one document, from 16 thousand to 1 million tokens.

The shipped model reads a text that a generator makes as it goes: tokenisation, schedule and pooling are all in. With
`--family`, two layers of that family at width 768 (random weights) read random tokens. One process per run; peak
resident memory is the kernel's figure for that process. Machines throttle and are disturbed, so lengths take turns, and
what is compared is the median over stretches of 4,096 tokens, long after the first step or right after it; the time of
the whole run stands beside it.

    python benchmarks/length.py [--most 1000000] [--model DIR | --family rwkv7] [--repeat 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise

import torch

import thalweg
from common import RESULTS, report
from thalweg.assets import book
from thalweg.bench.meter import peak_rss
from thalweg.bench.shapes import SHAPES
from thalweg.bench.subjects import RandomTokens
from thalweg.bench.weights import recurrent_model
from thalweg.engine.engine import Engine
from thalweg.families import FAMILIES

STRETCH = 4096


class Clock:
    """The time of every stretch of a run."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.stamps = [(0.0, self.begun)]

    def tick(self, tokens: float) -> None:
        """So many tokens are done."""
        if tokens - self.stamps[-1][0] >= STRETCH:
            self.stamps.append((tokens, time.perf_counter()))

    def times(self, tokens: int) -> dict[str, float]:
        """Microseconds a token: of the whole run, and the median of its stretches."""
        whole = 1e6 * (time.perf_counter() - self.begun) / tokens
        each = [1e6 * (after - before) / (n - m) for (m, before), (n, after) in pairwise(self.stamps)]
        return {"us_per_token": statistics.median(each), "us_per_token_whole_run": whole}


def text(n_tokens: int, tokens_per_char: float, clock: Clock) -> Iterator[str]:
    """The shipped book over and over, about n_tokens long."""
    source = book().read_text(encoding="utf-8")
    n_chars, done = round(n_tokens / tokens_per_char), 0
    while done < n_chars:
        for start in range(0, len(source), 4096):
            clock.tick(done * tokens_per_char)
            piece = source[start : min(start + 4096, start + n_chars - done)]
            yield piece
            done += len(piece)
            if done >= n_chars:
                return


def measure_text(model_name: str | None, n_tokens: int) -> dict[str, float]:
    """Embed one text with a model and its tokenizer."""
    model = thalweg.load(model_name)
    sample = book().read_text(encoding="utf-8")[:200_000]
    density = len(model.tokenizer.stream(sample).take_all()) / len(sample)
    list(model.encode_stream(["warm up " * 2000]))
    clock = Clock()
    (embedding,) = model.encode_stream([text(n_tokens, density, clock)])
    return {"tokens": embedding.n_tokens, **clock.times(embedding.n_tokens)}


def measure_family(family: str, n_tokens: int) -> dict[str, float]:
    """Embed random tokens with two layers of a family."""
    vocab_size = 4096
    shape = next(shape for shape in SHAPES.values() if shape.family == family)
    model = recurrent_model(shape, torch.float32, layers=2, vocabulary=vocab_size)
    list(Engine(model, "last").run([RandomTokens(5000, vocab_size)]))
    clock = Clock()
    run = Engine(model, "last").run([RandomTokens(n_tokens, vocab_size)], on_step=lambda done: clock.tick(done.tokens))
    list(run)
    return {"tokens": n_tokens, **clock.times(n_tokens)}


def plot(rows: list[dict[str, float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lengths = [row["tokens"] for row in rows]
    figure, (memory, speed) = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    memory.plot(lengths, [row["peak_rss"] / 2**20 for row in rows], "o-", color="#1f6f8b")
    memory.set(title="peak resident memory, MiB", xlabel="tokens of the document", xscale="log")
    speed.plot(lengths, [row["us_per_token"] for row in rows], "o-", color="#1f6f8b")
    speed.set(title="time per token, µs", xlabel="tokens of the document", xscale="log")
    for axis in (memory, speed):
        axis.set_ylim(0, 1.25 * axis.get_ylim()[1])
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--model")
    parser.add_argument("--family", choices=[family.name for family in FAMILIES])
    parser.add_argument("--repeat", type=int, default=3, help="runs of each length below 100,000 tokens")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        found = measure_family(args.family, args.one) if args.family else measure_text(args.model, args.one)
        print(json.dumps(found | {"peak_rss": peak_rss()}))
        return
    lengths = [length for length in (16_000, 64_000, 250_000, 1_000_000) if length <= args.most]
    chosen = [*(["--model", args.model] if args.model else []), *(["--family", args.family] if args.family else [])]
    runs: dict[int, list[dict[str, float]]] = {length: [] for length in lengths}
    for turn in range(args.repeat):
        for length in lengths:
            if turn and length > 100_000:
                continue
            command = [sys.executable, __file__, "--one", str(length), *chosen]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            run = json.loads(printed.splitlines()[-1])
            runs[length].append(run)
            print(
                f"{run['tokens']:>9,} tokens: {run['peak_rss'] / 2**20:,.0f} MiB, {run['us_per_token']:.1f} us a token",
                flush=True,
            )
    rows = [{key: statistics.median(run[key] for run in found) for key in found[0]} for found in runs.values()]
    name = f"length-{args.family}" if args.family else "length"
    RESULTS.mkdir(exist_ok=True)
    plot(rows, str(RESULTS / f"{name}.png"))
    first, last = rows[0], rows[-1]
    report(
        name,
        {
            "rows": rows,
            "memory_ratio": last["peak_rss"] / first["peak_rss"],
            "time_per_token_ratio": last["us_per_token"] / first["us_per_token"],
        },
    )


if __name__ == "__main__":
    main()
