"""`SentenceTransformer.encode` through thalweg's module against the stock modules, on the same exported weights.

Throughput: 2,000 texts of 20 to 400 tokens out of the shipped book, both in turn, each at its best batch size. Memory:
one long text, alone and among 31 short ones, one process a point; the stock modules are given so much memory and no
more, and a point that they cannot do is a result too. Each part can be run on its own; what was measured before stays.

    python benchmarks/sentence_transformers_drop_in.py [--part throughput|memory] [--texts 2000] [--limit-gib 8]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import thalweg
from common import RESULTS, report
from thalweg.assets import book
from thalweg.bench.meter import peak_rss, seconds

NAME = "sentence_transformers_drop_in"
BATCH_SIZES = {"thalweg": (32, 256, 2048), "stock": (1, 4, 8, 32)}
LENGTHS = (2_000, 20_000, 200_000)
SHORT_TOKENS, SHORT_TEXTS = 100, 31
COLOURS = {"thalweg": "#1f6f8b", "stock": "#c2571a"}


def open_as(kind: str, folder: Path) -> Any:
    """The shipped model, exported for one kind of module and opened by it; without lexicon, which stock ones lack."""
    from sentence_transformers import SentenceTransformer

    model = thalweg.load()
    model.embedding_config = replace(model.embedding_config, lexicon=None)
    model.save(folder / kind, format="stock" if kind == "stock" else "sentence-transformers")
    return SentenceTransformer(str(folder / kind), trust_remote_code=kind == "thalweg", device="cpu")


def texts_of(model: thalweg.Embedder, lengths: np.ndarray) -> list[str]:
    """Pieces of the book, about so many tokens long."""
    source = book().read_text(encoding="utf-8")
    chars = len(source) / len(model.tokenizer.stream(source).take_all())
    random = np.random.default_rng(0)
    sizes = [round(chars * length) for length in lengths]
    starts = [int(random.integers(max(1, len(source) - size))) for size in sizes]
    repeated = source * (1 + max(sizes) // len(source))
    return [repeated[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def throughput(n_texts: int) -> dict[str, Any]:
    """Tokens a second of both kinds, in turn, and how far their vectors are apart."""
    with tempfile.TemporaryDirectory() as name:
        models = {kind: open_as(kind, Path(name)) for kind in BATCH_SIZES}
        embedder = models["thalweg"][0].embedder
        texts = texts_of(embedder, np.random.default_rng(0).integers(20, 401, n_texts))
        sample, parts = texts[:: max(1, n_texts // 100)], [list(part) for part in np.array_split(np.array(texts), 4)]
        sample_tokens = sum(map(len, embedder.tokenize(sample)))
        rates: dict[str, dict[int, float]] = {kind: {} for kind in models}
        for kind, model in models.items():
            model.encode(sample[:8])
            for size in BATCH_SIZES[kind]:
                rates[kind][size] = sample_tokens / seconds(
                    lambda model=model, size=size: model.encode(sample, batch_size=size)
                )
                print(f"{kind}, batch size {size}: {rates[kind][size]:,.0f} tokens/s", flush=True)
        best = {kind: max(found, key=found.__getitem__) for kind, found in rates.items()}
        taken = dict.fromkeys(models, 0.0)
        apart = 0.0
        for part in parts:
            vectors = []
            for kind, model in models.items():
                begun = time.perf_counter()
                vectors.append(model.encode(part, batch_size=best[kind]))
                taken[kind] += time.perf_counter() - begun
            apart = max(apart, float(np.abs(vectors[0] - vectors[1]).max()))
        tokens = sum(map(len, embedder.tokenize(texts)))
    return {
        "texts": n_texts,
        "tokens": tokens,
        "best_batch_size": best,
        "tokens_per_s": {kind: tokens / time for kind, time in taken.items()},
        "tokens_per_s_by_batch_size": rates,
        "ratio": taken["stock"] / taken["thalweg"],
        "largest_difference": apart,
    }


def one_point(kind: str, n_tokens: int, among: bool, limit: int) -> dict[str, Any]:
    """Peak memory of one long text, in this process."""
    with tempfile.TemporaryDirectory() as name:
        model, embedder = open_as(kind, Path(name)), thalweg.load()
        lengths = np.array([n_tokens, *([SHORT_TOKENS] * SHORT_TEXTS * among)])
        texts = texts_of(embedder, lengths)
        tokens = len(embedder.tokenize(texts[:1])[0])
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        taken = seconds(lambda: model.encode(texts))
    return {"tokens": tokens, "seconds": taken, "peak_rss": peak_rss()}


def memory(limit_gib: float) -> list[dict[str, Any]]:
    """Every point in a process of its own."""
    rows = []
    for among in (False, True):
        for kind in BATCH_SIZES:
            for n_tokens in LENGTHS:
                row: dict[str, Any] = {"kind": kind, "among": SHORT_TEXTS * among, "asked": n_tokens}
                command = [sys.executable, __file__, "--one", kind, str(n_tokens), "--limit-gib", str(limit_gib)]
                done = subprocess.run(
                    command + ["--among"] * among, capture_output=True, text=True, timeout=600, check=False
                )
                if done.returncode == 0:
                    row |= json.loads(done.stdout.splitlines()[-1])
                else:
                    row |= {"failed": done.stderr.strip().splitlines()[-1][:200]}
                rows.append(row)
                print(row, flush=True)
                if "failed" in row:
                    break
    return rows


def plot(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (speed, alone, among) = plt.subplots(1, 3, figsize=(11, 3.4), constrained_layout=True)
    rates = found["throughput"]["tokens_per_s"]
    bars = speed.bar(list(rates), list(rates.values()), color=[COLOURS[kind] for kind in rates], width=0.6)
    speed.bar_label(bars, fmt="{:,.0f}", padding=2)
    speed.set_title(f"tokens/s, {found['throughput']['texts']:,} texts of 20 to 400", fontsize=10)
    speed.set_ylim(0, 1.2 * max(rates.values()))
    limit = found["limit_gib"] * 2**10
    for axis, others in ((alone, 0), (among, SHORT_TEXTS)):
        for kind, colour in COLOURS.items():
            rows = [row for row in found["memory"] if row["kind"] == kind and row["among"] == others]
            done = [(row["tokens"], row["peak_rss"] / 2**20) for row in rows if "failed" not in row]
            axis.plot(*zip(*done, strict=True), "o-", color=colour, label=kind)
            for row in rows:
                if "failed" in row:
                    axis.plot([done[-1][0], row["asked"]], [done[-1][1], limit], ":", color=colour)
                    axis.plot([row["asked"]], [limit], "x", color=colour, markersize=9)
                    text = f"more than {found['limit_gib']:g} GiB"
                    at = (row["asked"], limit)
                    axis.annotate(text, at, (0, 7), textcoords="offset points", color=colour, ha="center", fontsize=8)
        where = f"among {others} short ones" if others else "alone"
        axis.set_title(f"peak MiB: a long text {where}", fontsize=10)
        axis.set(xlabel="tokens of the long text", xscale="log", yscale="log")
        axis.set_ylim(400, 2 * limit)
        axis.set_xlim(1_200, 500_000)
        axis.set_yticks([500, 1000, 2000, 4000, 8000], ["500", "1,000", "2,000", "4,000", "8,000"])
        axis.minorticks_off()
        axis.legend(frameon=False, loc="center right")
    for axis in (speed, alone, among):
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("throughput", "memory"))
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--limit-gib", type=float, default=8)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--among", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, n_tokens = args.one
        print(json.dumps(one_point(kind, int(n_tokens), args.among, round(args.limit_gib * 2**30))))
        return
    before = RESULTS / f"{NAME}.json"
    found: dict[str, Any] = json.loads(before.read_text()) if args.part and before.exists() else {}
    if args.part != "memory":
        found["throughput"] = throughput(args.texts)
    if args.part != "throughput":
        found |= {"memory": memory(args.limit_gib), "limit_gib": args.limit_gib}
    if {"throughput", "memory"} <= found.keys():
        plot(found, RESULTS / f"{NAME}.png")
    report(NAME, {key: found[key] for key in ("throughput", "memory", "limit_gib") if key in found})


if __name__ == "__main__":
    main()
