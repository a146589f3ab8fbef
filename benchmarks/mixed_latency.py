"""A query beside a long text: how long does it wait?

LangChain's `aembed_query` with the shipped model, alone and while another coroutine embeds a text of 300,000 tokens.
Vectors of both are compared with those of the same calls alone.

    python benchmarks/mixed_latency.py [--tokens 300000] [--queries 600]
"""

from __future__ import annotations

import argparse
import asyncio
import time

import numpy as np

from common import report
from thalweg.assets import book
from thalweg.integrations.langchain import ThalwegEmbeddings

QUERIES = ("who steered the boat?", "what does the river look like at night?", "a race between two steamboats")


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {"p50_ms": float(np.percentile(seconds, 50)) * 1e3, "p99_ms": float(np.percentile(seconds, 99)) * 1e3}


async def ask(model: ThalwegEmbeddings, n: int, seconds: list[float]) -> list[list[float]]:
    """The vectors of queries, one after the other, and how long each took."""
    vectors = []
    for number in range(n):
        began = time.perf_counter()
        vectors.append(await model.aembed_query(QUERIES[number % len(QUERIES)]))
        seconds.append(time.perf_counter() - began)
    return vectors


async def measure(tokens: int, n: int) -> dict[str, object]:
    model = ThalwegEmbeddings()
    text = book().read_text(encoding="utf-8")
    long = (text * (1 + tokens * 6 // len(text)))[: tokens * 9 // 2]  # about 4.5 characters a token
    await ask(model, 20, [])
    alone: list[float] = []
    want = await ask(model, n, alone)
    began = time.perf_counter()
    (want_long,) = await model.aembed_documents([long])
    long_alone = time.perf_counter() - began
    beside: list[float] = []
    began = time.perf_counter()
    task = asyncio.create_task(model.aembed_documents([long]))
    await asyncio.sleep(0.3)
    got = await ask(model, n, beside)
    was_beside = not task.done()
    (got_long,) = await task
    long_beside = time.perf_counter() - began
    return {
        "tokens": len(model._shared.embedder.tokenize([long])[0]),
        "queries": n,
        "alone": percentiles(alone),
        "beside_a_long_text": percentiles(beside),
        "p99_beside_over_p50_alone": float(np.percentile(beside, 99) / np.percentile(alone, 50)),
        "all_queries_were_beside_it": was_beside,
        "long_text_seconds": {"alone": long_alone, "beside_queries": long_beside},
        "largest_difference": float(
            max(np.abs(np.subtract(want, got)).max(), np.abs(np.subtract(want_long, got_long)).max())
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--queries", type=int, default=600)
    args = parser.parse_args()
    report("mixed_latency", asyncio.run(measure(args.tokens, args.queries)))


if __name__ == "__main__":
    main()
