"""Scores by document length, from within mteb's own evaluation.

mteb hands a retrieval task the scores of each query (`task_specific_scores`) and stores what comes back with the
result. There the queries are grouped by the length of the documents they seek.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mteb.abstasks import AbsTaskRetrieval

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

BYTES_PER_TOKEN = 4
"""Bytes of UTF-8 that count as a token where documents have to be the same for every model. It is close to the truth
for English (4.2) and for Chinese (3 to a character)."""

EDGES = (0, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
"""Where the groups begin, in tokens."""

_KEY = re.compile(r"length_(\d+)_(.+)")
_PYTREC = {
    "ndcg": "ndcg_cut_{}",
    "map": "map_cut_{}",
    "recall": "recall_{}",
    "precision": "P_{}",
    "hit_rate": "success_{}",
}


def tokens(text: str) -> int:
    """The length of a text by the measure of this module."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def score_by_length(task: AbsTask) -> None:
    """Have a retrieval task store its main score by document length, too.

    Other tasks stay as they are, and so do those whose documents are meant to have `one_length`.
    """
    one_length = getattr(task, "one_length", False)
    if isinstance(task, AbsTaskRetrieval) and not one_length and "task_specific_scores" not in vars(task):
        task.task_specific_scores = _Grouped(task)  # type: ignore[method-assign]


class _Grouped:
    """The scores that a task adds of its own, and those by length."""

    def __init__(self, task: AbsTaskRetrieval) -> None:
        self._task, self._own = task, task.task_specific_scores
        kind, _, k = task.metadata.main_score.partition("_at_")
        kind, k = (kind, k) if kind in _PYTREC and k else ("ndcg", "10")
        self._name, self._measure = f"{kind}_at_{k}", _PYTREC[kind].format(k)

    def __call__(
        self, scores: dict[str, dict[str, float]], qrels: Any, results: Any, hf_split: str, hf_subset: str
    ) -> dict[str, float]:
        lengths = _lengths(self._task.dataset[hf_subset][hf_split]["corpus"])
        groups: dict[int, list[float]] = defaultdict(list)
        for query, of_query in scores.items():
            sought = [lengths[id_] for id_, grade in qrels[query].items() if grade > 0 and id_ in lengths]
            if sought:
                groups[_edge(fmean(sought))].append(of_query[self._measure])
        found = dict(self._own(scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset))
        for edge, values in sorted(groups.items()):
            found[f"length_{edge}_{self._name}"] = fmean(values)
            found[f"length_{edge}_queries"] = len(values)
        return found


def by_length(scores: Mapping[str, Any]) -> dict[int, tuple[float, int]]:
    """Out of a result of mteb: the first length of a group to its score and its number of queries."""
    groups: dict[int, dict[str, float]] = defaultdict(dict)
    for key, value in scores.items():
        if match := _KEY.fullmatch(key):
            groups[int(match[1])]["queries" if match[2] == "queries" else "score"] = value
    return {edge: (group["score"], int(group["queries"])) for edge, group in sorted(groups.items())}


def _lengths(corpus: Any) -> dict[str, int]:
    return {row["id"]: tokens(f"{row.get('title') or ''} {row['text']}".strip()) for row in corpus}


def _edge(length: float) -> int:
    return max(edge for edge in EDGES if edge <= length)
