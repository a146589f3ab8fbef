"""Short queries while long documents are embedded: latency, throughput and memory of `thalweg serve` on loopback.

Clients of short queries ask one after the other, first alone, then beside documents that go round in the engine all the
time. The same tokens offline (`encode`) are what the server's throughput is compared with.

    python benchmarks/serve_load.py [--clients 64] [--seconds 20] [--documents 4] [--tokens 300000] [--model DIR]
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np

import thalweg
from common import report
from thalweg.assets import book

WORDS = 15
"""Words of a query."""


@contextmanager
def served(model: str | None) -> Iterator[tuple[str, subprocess.Popen[str], int]]:
    """A server's URL, its process, and the bytes of its plan."""
    command = [sys.executable, "-m", "thalweg.cli", "serve", "--port", "0", *(["--model", model] if model else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    said = ""
    try:
        while not (found := re.search(r"Serving on (\S+)", said)):
            said += (line := process.stdout.readline())
            assert line, "the server did not start"
        total = re.search(r"^total +([\d,.]+) MiB", said, re.MULTILINE)
        assert total is not None
        url = found[1]
        while not _is_ready(url):
            time.sleep(0.05)
        yield url, process, int(float(total[1].replace(",", "")) * 2**20)
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(url: str) -> bool:
    try:
        return _connection(url, 5).request("GET", "/ready") is None
    except OSError:
        return False


def _connection(url: str, timeout: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)


def _ask(connection: http.client.HTTPConnection, text: str, user: str) -> int:
    """The tokens of a text that was embedded."""
    body = json.dumps({"input": text, "user": user, "encoding_format": "base64"})
    connection.request("POST", "/v1/embeddings", body)
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {content[:200]!r}")
    return int(json.loads(content)["usage"]["total_tokens"])


def query(url: str, number: int, words: list[str], seconds: float, begin: Any, results: Any) -> None:
    """One client of short queries, which begins together with the others."""
    chance, connection = random.Random(number), _connection(url, 60)
    times, tokens = [], 0
    begin.wait()
    end = time.time() + seconds
    while time.time() < end:
        start = chance.randrange(len(words) - WORDS)
        began = time.perf_counter()
        tokens += _ask(connection, " ".join(words[start : start + WORDS]), f"query {number}")
        times.append(time.perf_counter() - began)
    results.put((times, tokens))


def embed_documents(url: str, number: int, text: str, done: Any) -> None:
    """One client of a long document, over and over; it breaks off in the end."""
    connection = _connection(url, 3600)
    while not done.is_set():
        _ask(connection, text, f"document {number}")


def run(url: str, clients: int, seconds: float, words: list[str], documents: list[str]) -> dict[str, Any]:
    """Latencies of queries, and the tokens of all that was run."""
    context = multiprocessing.get_context("spawn")
    results, done = context.Queue(), context.Event()
    long = [context.Process(target=embed_documents, args=(url, n, text, done)) for n, text in enumerate(documents)]
    for process in long:
        process.start()
    while documents and _metric(url, "thalweg_documents_in_flight") < len(documents):
        time.sleep(0.1)
    begin = context.Barrier(clients + 1)
    short = [context.Process(target=query, args=(url, n, words, seconds, begin, results)) for n in range(clients)]
    for process in short:
        process.start()
    begin.wait()
    before = _metric(url, "thalweg_tokens_total")
    began = time.perf_counter()
    time.sleep(0.9 * seconds)
    tokens = (_metric(url, "thalweg_tokens_total") - before) / (time.perf_counter() - began)
    found = [results.get(timeout=seconds + 120) for _ in short]
    done.set()
    for process in (*short, *long):
        process.terminate()
        process.join()
    times = 1000 * np.array([each for client, _ in found for each in client])
    return {
        "queries": len(times),
        "p50_ms": float(np.percentile(times, 50)),
        "p99_ms": float(np.percentile(times, 99)),
        "max_ms": float(times.max()),
        "tokens_per_s": tokens,
    }


def _metric(url: str, name: str) -> float:
    connection = _connection(url, 10)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(f"{name}{{"))


def peak_bytes(process: subprocess.Popen[str]) -> int | None:
    """The largest resident memory of a process so far; None where the system does not say."""
    try:
        with open(f"/proc/{process.pid}/status") as status:
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=300_000, help="of a document")
    parser.add_argument("--model")
    args = parser.parse_args()
    model = thalweg.load(args.model, special_tokens="text")
    text = book().read_text(encoding="utf-8")
    words = text.split()
    per_char = len(model.tokenize([text[:100_000]])[0]) / 100_000
    n_chars = int(args.tokens / per_char)
    document = (text * (n_chars // len(text) + 1))[:n_chars]
    began = time.perf_counter()
    part = document[: n_chars // 10]
    model.encode([part] * args.documents)
    offline = len(model.tokenize([part])[0]) * args.documents / (time.perf_counter() - began)
    with served(args.model) as (url, process, plan):
        idle = peak_bytes(process)
        alone = run(url, args.clients, args.seconds, words, [])
        beside = run(url, args.clients, args.seconds, words, [document] * args.documents)
        peak = peak_bytes(process)
    report(
        "serve_load",
        {
            "clients": args.clients,
            "documents": args.documents,
            "document_tokens": args.tokens,
            "offline_tokens_per_s": offline,
            "alone": alone,
            "beside_documents": beside,
            "p99_over_p50_alone": beside["p99_ms"] / alone["p50_ms"],
            "throughput_of_offline": beside["tokens_per_s"] / offline,
            "plan_bytes": plan,
            "peak_bytes": peak,
            "peak_bytes_before": idle,
        },
    )


if __name__ == "__main__":
    main()
