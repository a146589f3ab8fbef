"""Dev sets: files that a run is scored on while it goes, by sentence-transformers' evaluators.

sentence1, sentence2, score                     similarity: Spearman's correlation of cosines and scores
query (or anchor), positive, negative…          retrieval: each query against all distinct positives and negatives
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    SequentialEvaluator,
)

from thalweg.errors import CorpusError, MeasurementError
from thalweg.evaluation.rows import Row, number_of, read_rows, stem, text_of

BATCH = 64

SPEARMAN, NDCG = "Spearman", "nDCG@10"

_KEYS = {SPEARMAN: "spearman_cosine", NDCG: "cosine_ndcg@10"}

Evaluators = list[Any]
"""`EmbeddingSimilarityEvaluator`s and `InformationRetrievalEvaluator`s."""


def dev_evaluators(paths: Sequence[Path]) -> Evaluators:
    """One for each file of JSON lines (also gzipped), called as the file is.

    Raises:
        CorpusError: a file that is missing or of neither kind, two of the same name, or a row that does not fit.
    """
    evaluators: dict[str, Any] = {}
    for path in paths:
        name = stem(path)
        if not path.is_file():
            raise CorpusError(f"dev set {path} is no file")
        if name in evaluators:
            raise CorpusError(f"two dev sets are called {name!r}; rename {path}")
        evaluators[name] = _evaluator(path, name)
    return list(evaluators.values())


def _evaluator(path: Path, name: str) -> Any:
    rows = read_rows(path)
    if "score" in rows[0]:
        first, second = ([text_of(row, key, path) for row in rows] for key in ("sentence1", "sentence2"))
        scores = [number_of(row, "score", path) for row in rows]
        if len(set(scores)) < 2:
            raise CorpusError(f"{path}: every score is {scores[0]:g}, so there is no order to compare with")
        return EmbeddingSimilarityEvaluator(
            first, second, scores, batch_size=BATCH, main_similarity="cosine", name=name, write_csv=False
        )
    key = next((key for key in ("query", "anchor") if key in rows[0]), None)
    if key is None or "positive" not in rows[0]:
        raise CorpusError(
            f"{path}: a dev set has sentence1, sentence2 and score, or query and positive; its first row has "
            f"{', '.join(rows[0])}"
        )
    return _retrieval(rows, key, path, name)


def _retrieval(rows: list[Row], key: str, path: Path, name: str) -> InformationRetrievalEvaluator:
    ids: dict[str, str] = {}
    queries: dict[str, Any] = {}
    relevant: dict[str, set[str]] = {}
    numbers: dict[str, str] = {}
    for row in rows:
        query = text_of(row, key, path)
        number = numbers.setdefault(query, f"q{len(numbers)}")
        queries[number] = query
        for field, value in row.items():
            if not field.startswith(("positive", "negative")):
                continue
            for text in value if isinstance(value, list) else [value]:
                document = ids.setdefault(text_of({field: text}, field, path), f"d{len(ids)}")
                if field.startswith("positive"):
                    relevant.setdefault(number, set()).add(document)
        if number not in relevant:
            raise CorpusError(f"{path}: the query {query!r:.80} has no positive")
    corpus: dict[str, Any] = {document: text for text, document in ids.items()}
    return InformationRetrievalEvaluator(
        queries,
        corpus,
        relevant,
        batch_size=BATCH,
        mrr_at_k=[10],
        ndcg_at_k=[10],
        accuracy_at_k=[1],
        precision_recall_at_k=[10],
        map_at_k=[100],
        main_score_function="cosine",
        name=name,
        write_csv=False,
    )


def as_one(evaluators: Evaluators) -> SequentialEvaluator:
    """All of them as one."""
    return SequentialEvaluator(evaluators)


def main_scores(evaluators: Evaluators, logged: dict[str, Any]) -> dict[str, float]:
    """The one number that counts for each dev set, by its name, out of all that a trainer logged.

    Raises:
        MeasurementError: there is none.
    """
    scores = {}
    for evaluator in evaluators:
        name = f"eval_{evaluator.name}_{_KEYS[_metric(evaluator)]}"
        if name in logged:
            scores[evaluator.name] = float(logged[name])
            if not math.isfinite(scores[evaluator.name]):
                place = f"{_metric(evaluator)} of the dev set {evaluator.name} in step {logged['step']}"
                raise MeasurementError(f"{place} is {logged[name]}: to the model all of its texts are equally similar")
    return scores


def metrics(evaluators: Evaluators) -> dict[str, str]:
    """What the number is, by the dev set's name."""
    return {evaluator.name: _metric(evaluator) for evaluator in evaluators}


def _metric(evaluator: Any) -> str:
    return SPEARMAN if isinstance(evaluator, EmbeddingSimilarityEvaluator) else NDCG
