"""How long an exact search takes, and what memory it needs, beside FAISS's flat index where that is installed.

An artificial corpus (random unit vectors, 400 characters of text each) is written once in every format. Each is then
searched in a process of its own: one question and 32 at once, as sections and as documents, and with conditions that
one row in 1, 10, … 10,000 passes. Times are from the question's text to the rows found. Memory is the largest anonymous
resident memory during the searches, with the model and the libraries (`base_mib`) in it; what is mapped from the file
can be dropped at any time and does not count.

    python benchmarks/search.py                                       1,000,000 × 768; about 12 GB of disk
    python benchmarks/search.py --rows 50000 --repeat 5               a quick look
    python benchmarks/search.py --folder kept --formats npy           keeps the files for the next time

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import thalweg
from common import report
from thalweg.corpus.rows import COLUMNS, Metadata, list_column, output_schema
from thalweg.corpus.writers import write_output

K = 10
MANY = 32
SELECTIVITIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
SCALE = 1_000_000
"""Values of the column that conditions ask for."""
WORDS = ("river", "bed", "line", "spring", "sea", "boats", "drift", "slowly", "past", "grey", "stones", "swans")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=768, help="at most the 768 of the shipped model")
    parser.add_argument("--repeat", type=int, default=20, help="searches of each kind")
    parser.add_argument("--formats", nargs="+", default=["parquet", "npy"], choices=["parquet", "npy", "jsonl"])
    parser.add_argument("--precision", default="float32", choices=["float32", "int8", "uint8", "binary", "ubinary"])
    parser.add_argument("--folder", type=Path, help="where the files are kept; a temporary one if not given")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--faiss", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measured = flat_index if arguments.faiss else searches
        print(json.dumps(measured(arguments.measure, arguments)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        result: dict[str, Any] = {
            name: getattr(arguments, name) for name in ("rows", "dimension", "repeat", "precision")
        } | {"k": K}
        for name in arguments.formats:
            path = corpus_file(folder, name, arguments)
            result[name] = {"file_mib": round(path.stat().st_size / 2**20), **child(path)}
            print(name, json.dumps(result[name]), file=sys.stderr)
        if find_spec("faiss") is not None:
            path = corpus_file(folder, "npy", arguments)
            result["faiss_flat"] = child(path, "--faiss")
            print("faiss", json.dumps(result["faiss_flat"]), file=sys.stderr)
    report("search", result)


def child(path: Path, *options: str) -> dict[str, Any]:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", str(path), *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def corpus_file(folder: Path, suffix: str, arguments: argparse.Namespace) -> Path:
    """The corpus in one format, made if it is not there."""
    shape = f"{arguments.rows}x{arguments.dimension}-{arguments.precision}"
    path = folder / f"{shape}.{suffix}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    embedder = thalweg.load(device="cpu")
    d, precision = arguments.dimension, arguments.precision
    limit = 1.0 / np.sqrt(d) * 6
    metadata = Metadata(
        model=embedder.name,
        revision=None,
        fingerprint=embedder.fingerprint,
        dimension=d,
        precision=precision,
        normalized=True,
        similarity=embedder.embedding_config.similarity,
        prompt="",
        section_size=None,
        version=thalweg.__version__,
        rows=arguments.rows,
        documents=-(-arguments.rows // 10),
        tokens=arguments.rows,
        failed=0,
        ranges=[[-limit] * d, [limit] * d] if precision in ("int8", "uint8") else None,
        run={},
    )
    with tempfile.TemporaryDirectory(dir=folder) as work:
        write_output(path, Path(work), metadata, batches(arguments.rows, metadata), with_text=True)
    return path


def batches(n: int, metadata: Metadata) -> Iterator[Any]:
    """Rows as a run writes them: ten sections a document, and in `n_tokens` a number that conditions ask for."""
    rng = np.random.default_rng(0)
    names = output_schema(metadata, with_text=True).names
    for first in range(0, n, 1024):
        numbers = range(first, min(n, first + 1024))
        vectors = rng.standard_normal((len(numbers), metadata.dimension), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        values = {
            "key": [f"{at // 10}#{at % 10}" for at in numbers],
            "id": [str(at // 10) for at in numbers],
            "path": ["corpus.jsonl"] * len(numbers),
            "row": [at // 10 for at in numbers],
            "section": [at % 10 for at in numbers],
            "char_start": [400 * (at % 10) for at in numbers],
            "char_end": [400 * (at % 10) + 400 for at in numbers],
            "n_tokens": rng.integers(0, SCALE, len(numbers)).tolist(),
            "text": [" ".join(rng.choice(WORDS, 90).tolist())[:400].ljust(400, ".") for _ in numbers],
        }
        columns = [pa.array(values[name], COLUMNS[name]) for name in COLUMNS]
        yield pa.record_batch([*columns, list_column(vectors)], names=names)


def questions(n: int) -> list[str]:
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(WORDS, 8).tolist()) for _ in range(n)]


def searches(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of `Corpus.search`."""
    import pyarrow.compute as pc

    corpus = thalweg.open_corpus(path)
    embedder = corpus.embedder
    many = questions(MANY)
    embedder.encode_query(many)
    base = anonymous_mib()
    with Peak() as peak:
        result: dict[str, Any] = {
            "one": times(arguments.repeat, lambda: corpus.search(many[0], K)),
            f"of_{MANY}": times(arguments.repeat, lambda: corpus.search(many, K)),
            "one_by_document": times(arguments.repeat, lambda: corpus.search(many[0], K, by="document")),
            "encode_one": times(arguments.repeat, lambda: embedder.encode_query(many[0])),
            "where": {},
        }
        for share in SELECTIVITIES:
            condition = pc.field("n_tokens") < share * SCALE
            passing = len(corpus.search(many[0], arguments.rows if share < 1e-3 else K, where=condition))
            result["where"][str(share)] = {
                **times(arguments.repeat, lambda condition=condition: corpus.search(many[0], K, where=condition)),
                "found": min(K, passing),
            }
    return {**result, "base_mib": base, "peak_mib": peak.mib}


def flat_index(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of FAISS's exact index over the same vectors, all in memory; the same questions."""
    import faiss

    corpus = thalweg.open_corpus(path)
    embedder = corpus.embedder
    many = questions(MANY)
    embedder.encode_query(many)
    base = anonymous_mib()

    def search(texts: list[str]) -> Any:
        vectors = embedder.encode_query(texts)[:, : arguments.dimension]
        return index.search(np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)), K)

    with Peak() as peak:
        began = time.perf_counter()
        index = faiss.IndexFlatIP(arguments.dimension)
        for batch in corpus.vector_batches():
            index.add(np.ascontiguousarray(batch))
        loaded = time.perf_counter() - began
        result = {
            "load_s": round(loaded, 3),
            "one": times(arguments.repeat, lambda: search(many[:1])),
            f"of_{MANY}": times(arguments.repeat, lambda: search(many)),
        }
        found = search(many)[1]
    keys = corpus.to_arrow().column("key").to_pylist() if arguments.rows <= 100_000 else []
    if keys:
        ours = [[keys.index(hit.row["key"]) for hit in hits] for hits in corpus.search(many, K)]
        same = [len({*a} & {*b.tolist()}) / K for a, b in zip(ours, found, strict=True)]
        result["share_of_hits_that_agree"] = float(np.mean(same))
    return {**result, "base_mib": base, "peak_mib": peak.mib}


def times(repeat: int, run: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds, after one run that does not count."""
    run()
    taken = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        taken.append(1000 * (time.perf_counter() - began))
    p50, p95 = np.percentile(taken, [50, 95])
    return {"p50_ms": round(float(p50), 2), "p95_ms": round(float(p95), 2)}


def anonymous_mib() -> float:
    """Resident memory that is not mapped from a file."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise OSError("this system does not tell RssAnon; the benchmark needs Linux")


class Peak:
    """The largest anonymous memory while something runs, looked at every 10 ms."""

    def __enter__(self) -> Peak:
        self.mib = anonymous_mib()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            self.mib = max(self.mib, anonymous_mib())


if __name__ == "__main__":
    main()
