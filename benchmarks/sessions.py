"""Live sessions: what appending costs, from memory and from disk, beside embedding the whole text anew.

N sessions of the shipped model, each with a beginning of the shipped book read, within a number of bytes; those that do
not fit wait on disk. Random ones get 100 tokens more and are asked for their vector. All sessions then get more text in
one call. Last, a document of a million tokens grows by 1 %. Vectors are compared with `encode`'s for the whole texts.

    python benchmarks/sessions.py [--sessions 10000] [--tokens 1000] [--megabytes 512] [--asked 500] [--long 1000000]
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import thalweg
from common import report
from thalweg import Embedder, Session
from thalweg.assets import book
from thalweg.system.resident import resident_bytes

CHARACTERS = 4.5  # of a token of the book
MORE = 100  # tokens that are appended


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{p}_ms": float(np.percentile(seconds, p)) * 1e3 for p in (50, 95)}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


class Texts:
    """Pieces of the book, each begun somewhere else."""

    def __init__(self) -> None:
        self._book = book().read_text(encoding="utf-8")

    def of(self, tokens: int, seed: int) -> str:
        n = int(tokens * CHARACTERS)
        start = random.Random(seed).randrange(len(self._book))
        return (self._book[start:] + self._book * (1 + n // len(self._book)))[:n]


def many(model: Embedder, texts: Texts, n: int, tokens: int, max_bytes: int, asked: int) -> dict[str, Any]:
    model.limit_sessions(max_bytes)
    whole = [texts.of(tokens, seed) for seed in range(n)]
    sessions = [model.session() for _ in whole]
    begun, _ = timed(lambda: model.append_many(zip(sessions, whole, strict=True)))
    rng = random.Random(0)
    more = texts.of(MORE, seed=n)
    seconds: dict[str, list[float]] = {"disk": [], "memory": [], "anew": []}
    worst = 0.0

    def grow(session: Session) -> Any:
        session.append(more)
        return session.vector()

    for number in rng.choices(range(n), k=asked):
        session = sessions[number]
        for _ in range(2):  # it may come from disk the first time, and is in memory the second
            whole[number] += more
            where = "memory" if session.place.in_memory else "disk"
            took, vector = timed(lambda session=session: grow(session))
            seconds[where].append(took)
        if len(seconds["anew"]) < 50:
            took, want = timed(lambda number=number: model.encode(whole[number]))
            seconds["anew"].append(took)
            worst = max(worst, float(np.abs(vector - want).max()))
    together, _ = timed(lambda: model.append_many((session, more) for session in sessions))
    n_more = len(model.tokenize([more])[0])
    return {
        "sessions": n,
        "tokens_each": sessions[0].tokens,
        "limit_MiB": max_bytes / 2**20,
        "sessions_in_memory": sum(session.place.in_memory for session in sessions),
        "begun_tokens_per_second": n * tokens / begun,
        "append_100_and_vector": {where: percentiles(times) for where, times in seconds.items() if times},
        "append_many_100": {"seconds": together, "tokens_per_second": n * n_more / together},
        "largest_difference": worst,
    }


def long(model: Embedder, texts: Texts, tokens: int) -> dict[str, Any]:
    whole, more = texts.of(tokens, seed=1), texts.of(tokens // 100, seed=2)
    session = model.session()
    session.append(whole)
    appended, vector = timed(lambda: (session.append(more), session.vector())[1])
    anew, want = timed(lambda: model.encode(whole + more))
    return {
        "tokens": session.tokens,
        "append_1_percent_seconds": appended,
        "anew_seconds": anew,
        "share": appended / anew,
        "largest_difference": float(np.abs(vector - want).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=1000, help="of each session")
    parser.add_argument("--megabytes", type=int, default=512, help="states in memory")
    parser.add_argument("--asked", type=int, default=500, help="sessions that are asked for a vector")
    parser.add_argument("--long", type=int, default=1_000_000, help="tokens of the long document")
    args = parser.parse_args()
    model, texts = thalweg.load(device="cpu"), Texts()
    model.encode(texts.of(5000, seed=0))
    before = resident_bytes() or 0
    found = many(model, texts, args.sessions, args.tokens, args.megabytes << 20, args.asked)
    # The texts themselves, which nothing but this script needs, are a part of it.
    found |= {"state_bytes": model.plan_memory().state, "resident_MiB_more": ((resident_bytes() or 0) - before) / 2**20}
    found["long_document"] = long(model, texts, args.long)
    report("sessions", found)


if __name__ == "__main__":
    main()
