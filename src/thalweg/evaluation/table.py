"""What the results say: a score for each model and task, means over benchmarks, published scores beside them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from statistics import fmean
from typing import Any

from thalweg.evaluation.lengths import by_length
from thalweg.evaluation.run import Outcome

_LENGTH_TASK = re.compile(r"local-(needle|passkey)-(\d+)")
_LENGTH_SPLIT = re.compile(r"test_(\d+)")


@dataclass(frozen=True)
class Score:
    """One model on one task.

    score: mteb's main score, 0 to 1; by_document_length: the first length of a group, in tokens, to its score and
    queries; by_split: of tasks with several splits.
    """

    model: str
    task: str
    type: str
    measure: str
    score: float
    seconds: float | None
    by_document_length: dict[int, tuple[float, int]] = field(default_factory=dict)
    by_split: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, outcome: Outcome) -> Score:
        assert outcome.result is not None
        metadata, result = outcome.task.metadata, outcome.result
        lengths: dict[int, list[tuple[float, int]]] = defaultdict(list)
        for entries in result.scores.values():
            for entry in entries:
                for edge, group in by_length(entry).items():
                    lengths[edge].append(group)
        splits = {split: fmean(entry["main_score"] for entry in entries) for split, entries in result.scores.items()}
        return cls(
            model=outcome.model,
            task=metadata.name,
            type=str(metadata.type),
            measure=metadata.main_score,
            score=float(result.get_score()),
            seconds=result.evaluation_time,
            by_document_length={edge: _pooled(groups) for edge, groups in sorted(lengths.items())},
            by_split=splits if len(splits) > 1 else {},
        )


@dataclass(frozen=True)
class Mean:
    """A model on a whole benchmark, as mteb forms it; 0 to 100."""

    model: str
    benchmark: str
    over_tasks: float
    over_types: float | None
    published: bool = False


@dataclass(frozen=True)
class Table:
    """All of a run.

    incomplete: benchmark to model to the number of its tasks that are missing; such a model has no mean there.
    """

    scores: list[Score]
    means: list[Mean]
    incomplete: dict[str, dict[str, int]]
    failures: list[dict[str, str]]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(score.model for score in self.scores))

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(score.task for score in self.scores))

    def score(self, model: str, task: str) -> Score | None:
        return next((score for score in self.scores if (score.model, score.task) == (model, task)), None)

    def against_length(self) -> dict[str, dict[str, dict[int, float]]]:
        """Tasks made at several lengths: task to model to length in tokens to score."""
        curves: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        for score in self.scores:
            if match := _LENGTH_TASK.fullmatch(score.task):
                curves[match[1]][score.model][int(match[2])] = score.score
            for split, value in score.by_split.items():
                if length := _LENGTH_SPLIT.fullmatch(split):
                    curves[score.task][score.model][int(length[1])] = value
        return {
            task: {model: dict(sorted(line.items())) for model, line in lines.items()} for task, lines in curves.items()
        }

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_table(outcomes: Sequence[Outcome], benchmarks: Mapping[str, Sequence[str]]) -> Table:
    """A table of what came of a run; `benchmarks` names those asked for, with the names of all their tasks."""
    scores = [Score.of(outcome) for outcome in outcomes if outcome.result is not None]
    failures = [
        {"model": outcome.model, "task": outcome.task.metadata.name, "error": outcome.error}
        for outcome in outcomes
        if outcome.error is not None
    ]
    means: list[Mean] = []
    incomplete: dict[str, dict[str, int]] = {}
    for benchmark, tasks in benchmarks.items():
        for model in dict.fromkeys(outcome.model for outcome in outcomes):
            mine = [score for score in scores if score.model == model and score.task in tasks]
            if len(mine) == len(tasks):
                means.append(_mean(model, benchmark, mine))
            else:
                incomplete.setdefault(benchmark, {})[model] = len(tasks) - len(mine)
        means += published(benchmark)
    return Table(scores, means, incomplete, failures)


def published(benchmark: str) -> list[Mean]:
    """Scores that others have published for a benchmark; see the source in `thalweg/assets/published_scores.json`."""
    return [
        Mean(model, benchmark, means[benchmark][0], means[benchmark][1], published=True)
        for model, means in _published()["rows"].items()
        if benchmark in means
    ]


def published_source() -> str:
    """Where those scores come from."""
    return str(_published()["source"])


def _published() -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((files("thalweg.assets") / "published_scores.json").read_text(encoding="utf-8"))
    return raw


def _mean(model: str, benchmark: str, scores: Sequence[Score]) -> Mean:
    types: dict[str, list[float]] = defaultdict(list)
    for score in scores:
        types[score.type].append(100 * score.score)
    over_tasks = fmean(100 * score.score for score in scores)
    return Mean(model, benchmark, over_tasks, fmean(fmean(values) for values in types.values()))


def _pooled(groups: Sequence[tuple[float, int]]) -> tuple[float, int]:
    """One group out of those of several splits and languages; each query counts the same."""
    total = sum(queries for _, queries in groups)
    return sum(score * queries for score, queries in groups) / total, total
