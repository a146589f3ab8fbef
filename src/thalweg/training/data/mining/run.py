"""All of a mining run in order: texts embedded to the disk, then blocks of queries against blocks of documents."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from thalweg.corpus.manifest import Manifest
from thalweg.corpus.settings import Mode
from thalweg.errors import CorpusError
from thalweg.training.data import build as building
from thalweg.training.data.load import DUPLICATE, select_rows
from thalweg.training.data.mining.embed import MiningEmbedder
from thalweg.training.data.mining.neighbours import nearest
from thalweg.training.data.mining.output import write_output
from thalweg.training.data.mining.passages import Passages, write_passages
from thalweg.training.data.mining.rule import Rule, choose
from thalweg.training.data.mining.texts import Texts
from thalweg.training.data.mining.vectors import VectorStore
from thalweg.training.data.mining.work import Blocks, check_out, working
from thalweg.training.data.sources import Source, resolve, resolve_specs

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = 2048
"""Rows of a block whose negatives are looked for at a time; a crash costs no more than that many."""


@dataclass(frozen=True)
class Mined:
    """What came of a run.

    rows: in the output; queries, documents: different ones; negatives: mined; without: rows that have none, as no text
    passes the rule; duplicates: rows left out; replaced: negatives that rows had before; remade: saved files that were
    damaged, and made again.
    """

    rows: int
    queries: int
    documents: int
    negatives: int
    without: int
    duplicates: int
    replaced: int
    remade: tuple[str, ...] = ()


class MiningStatus(NamedTuple):
    """How far a run is: `done` of `total` texts embedded, or rows searched, by `stage`."""

    stage: Literal["queries", "documents", "rows"]
    done: int
    total: int


def mine_hard_negatives(
    spec: str,
    out: str | Path,
    model: Any,
    rule: Rule | None = None,
    *,
    corpus: str | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    mode: Mode = "new",
    on_status: Callable[[MiningStatus], None] | None = None,
) -> Mined:
    """Write the pairs of one data set with negatives: query, positive, negatives, scores, and instruction if any.

    Never taken for a query: its own positives in any row, and texts that equal it or one of those up to case, white
    space and forms of characters. Negatives that rows had are replaced. Rows for which nothing is left are written
    without negatives.

    Args:
        spec: one data set, as for `load_training_data`.
        out: .parquet or .jsonl; it appears whole or not at all.
        model: of `thalweg.load`, or a `SentenceTransformer`.
        rule: which of the nearest are taken; None is a random one of the 10 nearest.
        corpus: more texts to search, besides all positives: files with a column text, passage, document or contents.
        query_prompt, document_prompt: put before texts; None is the instruction of the row, else the model's own.
        mode: "resume" goes on with what a run left that was broken off, "overwrite" drops it.
        on_status: called after each block.

    Raises:
        CorpusError: data that cannot be used, or an output that is there.
        InvalidInputError: a rule or model that makes no sense.
        MissingExtraError: datasets is not installed.
    """
    out = Path(out)
    check_out(out, mode)
    run = _Run(spec, out, MiningEmbedder(model), rule or Rule(), corpus, query_prompt, document_prompt)
    with working(out, run.manifest(), mode) as blocks:
        return run.write(blocks, on_status or (lambda status: None))


class _Run:
    """The data, model and settings of a run."""

    def __init__(
        self,
        spec: str,
        out: Path,
        embedder: MiningEmbedder,
        rule: Rule,
        corpus: str | None,
        query_prompt: str | None,
        document_prompt: str | None,
    ) -> None:
        self._out, self._embedder, self._rule = out, embedder, rule
        self._query_prompt = query_prompt
        self._document_prompt = embedder.prompt("document") if document_prompt is None else document_prompt
        self._source = _one_source(spec)
        self._corpus = resolve(corpus) if corpus is not None else []

    def manifest(self) -> Manifest:
        """What a resumed run must agree in."""
        settings = {
            "model": self._embedder.fingerprint,
            "query_prompt": self._query_prompt,
            "document_prompt": self._document_prompt,
            "instructions": list(self._source.instructions),
            "weight": self._source.weight,
            "output": self._out.suffix,
            **asdict(self._rule),
        }
        files = (*self._source.files, *(file for source in self._corpus for file in source.files))
        return Manifest(settings, files)

    def write(self, blocks: Blocks, on_status: Callable[[MiningStatus], None]) -> Mined:
        options = building.Options(self._rule.seed, max_negatives=0, instructions="column")
        built = building.build(self._source, options)
        if not built.parts:
            raise CorpusError(f"data set {self._source.name!r} has no row that can be used")
        rows, counts = select_rows(built.parts[0], self._source, self._rule.seed, deduplicate=True)
        corpus = write_passages(self._corpus, blocks) if self._corpus else None
        texts = Texts(rows, Passages(corpus))
        queries, documents = self._embed(blocks, texts, on_status)
        n_negatives = without = 0
        for begin in range(0, len(rows), ROWS):
            end = min(begin + ROWS, len(rows))
            if not blocks.has(_found(begin)):
                blocks.write(_found(begin), self._search(texts, queries, documents, begin, end))
            with np.load(blocks.path(_found(begin))) as found:
                taken = found["documents"] >= 0
            n_negatives += int(taken.sum())
            without += int((~taken.any(axis=1)).sum())
            on_status(MiningStatus("rows", end, len(rows)))
        write_output(self._out, _mined_rows(blocks, rows, texts))
        return Mined(
            rows=len(rows),
            queries=len(queries),
            documents=len(documents),
            negatives=n_negatives,
            without=without,
            duplicates=counts.get(DUPLICATE, 0),
            replaced=built.notes.get(building.BEYOND_MAXIMUM, 0),
            remade=tuple(blocks.remade),
        )

    def _embed(
        self, blocks: Blocks, texts: Texts, on_status: Callable[[MiningStatus], None]
    ) -> tuple[VectorStore, VectorStore]:
        dimension, encode = self._embedder.dimension, self._embedder.encode
        queries = VectorStore(blocks, "queries", len(texts.query_rows), dimension)
        documents = VectorStore(blocks, "documents", len(texts.document_rows), dimension)
        queries.fill(
            lambda begin, end: texts.queries(begin, end, self._before_query),
            encode,
            lambda done: on_status(MiningStatus("queries", done, len(queries))),
        )
        documents.fill(
            lambda begin, end: [self._document_prompt + text for text in texts.documents(np.arange(begin, end))],
            encode,
            lambda done: on_status(MiningStatus("documents", done, len(documents))),
        )
        return queries, documents

    def _before_query(self, instruction: str) -> str:
        if self._query_prompt is not None:
            return self._query_prompt
        return building.query_prompt(instruction) or self._embedder.prompt("query")

    def _search(self, texts: Texts, queries: VectorStore, documents: VectorStore, begin: int, end: int) -> memoryview:
        """The negatives of the rows from `begin` to `end`, as the content of an .npz file."""
        vectors = queries.rows(texts.query_of_row[begin:end])
        positives = documents.rows(texts.document_of_row[begin:end])
        positive_scores = np.einsum("rd,rd->r", vectors, positives)
        found = nearest(vectors, documents.blocks(), self._rule.range_max, texts.masked(begin, end))
        draw = np.random.default_rng([self._rule.seed, begin])
        chosen = choose(found, positive_scores, self._rule, draw)
        arrays = {"documents": chosen.documents, "scores": chosen.scores, "positive_scores": positive_scores}
        data = io.BytesIO()
        np.savez(data, **arrays)
        return data.getbuffer()


def _one_source(spec: str) -> Source:
    sources = resolve_specs([spec])
    if len(sources) > 1:
        names = ", ".join(source.name for source in sources)
        raise CorpusError(f"{spec!r} is {len(sources)} data sets ({names}); mine one at a time")
    return sources[0]


def _mined_rows(blocks: Blocks, rows: Dataset, texts: Texts) -> Iterator[list[dict[str, Any]]]:
    """The rows of the output, block by block."""
    for begin in range(0, len(rows), ROWS):
        batch = rows[begin : begin + ROWS]
        with np.load(blocks.path(_found(begin))) as found:
            chosen, scores, positive_scores = found["documents"], found["scores"], found["positive_scores"]
        taken = chosen >= 0
        negatives = iter(texts.documents(chosen[taken]))
        yield [
            {
                **({"instruction": instruction} if instruction else {}),
                "query": query,
                "positive": positive,
                "negatives": [next(negatives) for _ in range(int(taken[i].sum()))],
                "positive_score": float(positive_scores[i]),
                "negative_scores": scores[i][taken[i]].tolist(),
            }
            for i, (instruction, query, positive) in enumerate(
                zip(batch["instruction"], batch["anchor"], batch["positive"], strict=True)
            )
        ]


def _found(begin: int) -> str:
    return f"found-{begin // ROWS:05d}.npz"
