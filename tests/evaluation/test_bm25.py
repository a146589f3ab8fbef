"""BM25 by its formula."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("mteb")
pytest.importorskip("rank_bm25")

from datasets import Dataset

from thalweg.evaluation.bm25 import BM25Search

CORPUS = [
    {"id": "a", "title": "River", "text": "the RIVER runs, the river rests"},
    {"id": "b", "title": "", "text": "bread and a river of honey and milk and bread and more"},
    {"id": "c", "title": "", "text": "snow"},
]


def search(query: str, top_k: int = 10, top_ranked: dict[str, list[str]] | None = None) -> dict[str, float]:
    model = BM25Search()
    model.index(Dataset.from_list(CORPUS))
    return model.search(Dataset.from_list([{"id": "q", "text": query}]), top_k=top_k, top_ranked=top_ranked)["q"]


def formula(word_counts: dict[str, int], lengths: dict[str, int], k1: float = 1.2, b: float = 0.75) -> dict[str, float]:
    idf = math.log(1 + (3 - len(word_counts) + 0.5) / (len(word_counts) + 0.5))
    mean = sum(lengths.values()) / 3
    return {
        id_: idf * n * (k1 + 1) / (n + k1 * (1 - b + b * lengths[id_] / mean)) if n else 0.0
        for id_, n in {**dict.fromkeys(lengths, 0), **word_counts}.items()
    }


LENGTHS = {"a": 7, "b": 12, "c": 1}


def test_scores_follow_the_formula() -> None:
    assert search("River!") == pytest.approx(formula({"a": 3, "b": 1}, LENGTHS))
    both = {id_: formula({"b": 2}, LENGTHS)[id_] + formula({"c": 1}, LENGTHS)[id_] for id_ in LENGTHS}
    assert search("snow on bread") == pytest.approx(both)


def test_words_of_a_query_count_once() -> None:
    assert search("river river river") == search("river")


def test_the_best_come_first_and_unknown_words_find_nothing() -> None:
    assert list(search("river", top_k=1)) == ["a"]
    assert set(search("zebra").values()) == {0.0}


def test_candidates_of_a_reranking_task_are_all_scored() -> None:
    found = search("river", top_k=1, top_ranked={"q": ["c", "b"]})
    assert found == pytest.approx({id_: formula({"a": 3, "b": 1}, LENGTHS)[id_] for id_ in ("c", "b")})
