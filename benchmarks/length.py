"""Peak memory and time per token against the length of one document, from 16 thousand to 1 million tokens.

The shipped model reads a text that a generator makes as it goes: tokenisation, schedule and pooling are all in. One
process per length; peak resident memory is the kernel's figure for that process.

    python benchmarks/length.py [--most 1000000] [--model DIR] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import thalweg
from common import RESULTS, peak_rss, report
from thalweg.assets import book


def text(n_tokens: int, tokens_per_char: float) -> Iterator[str]:
    """The shipped book over and over, about n_tokens long."""
    source = book().read_text(encoding="utf-8")
    left = round(n_tokens / tokens_per_char)
    while left > 0:
        for start in range(0, len(source), 65536):
            piece = source[start : min(start + 65536, start + left)]
            yield piece
            left -= len(piece)
            if left <= 0:
                return


def measure(model_name: str | None, n_tokens: int) -> None:
    """Embed one document in this process and print what it took."""
    model = thalweg.load(model_name)
    sample = book().read_text(encoding="utf-8")[:200_000]
    density = len(model.tokenizer.stream(sample).take_all()) / len(sample)
    list(model.encode_stream(["warm up " * 2000]))
    begun = time.perf_counter()
    (embedding,) = model.encode_stream([text(n_tokens, density)])
    taken = time.perf_counter() - begun
    figures = {"tokens": embedding.n_tokens, "seconds": taken, "us_per_token": 1e6 * taken / embedding.n_tokens}
    print(json.dumps({**figures, "peak_rss": peak_rss()}))


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
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs of each length below 100,000 tokens; the median counts"
    )
    parser.add_argument("--plot", default=str(RESULTS / "length.png"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(args.model, args.one)
        return
    rows = []
    for length in (16_000, 64_000, 250_000, 1_000_000):
        if length > args.most:
            break
        command = [sys.executable, __file__, "--one", str(length), *(["--model", args.model] if args.model else [])]
        runs = []
        for _ in range(args.repeat if length < 100_000 else 1):
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(printed.splitlines()[-1]))
        row = sorted(runs, key=lambda run: run["us_per_token"])[len(runs) // 2]
        rows.append(row)
        print(
            f"{row['tokens']:>9,} tokens: {row['peak_rss'] / 2**20:,.0f} MiB, {row['us_per_token']:.1f} us a token",
            flush=True,
        )
    RESULTS.mkdir(exist_ok=True)
    plot(rows, args.plot)
    first, last = rows[0], rows[-1]
    report(
        "length",
        {
            "rows": rows,
            "memory_ratio": last["peak_rss"] / first["peak_rss"],
            "time_per_token_ratio": last["us_per_token"] / first["us_per_token"],
        },
    )


if __name__ == "__main__":
    main()
