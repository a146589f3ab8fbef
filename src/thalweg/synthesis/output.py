"""Examples to the rows that training reads: a file for each type, as a batch is to come from one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from thalweg.synthesis.settings import Settings
from thalweg.synthesis.store import DATA, MINED, PAIRS, REPORT, Store
from thalweg.synthesis.tasks import KINDS, SCALE, TaskType

if TYPE_CHECKING:
    from thalweg.synthesis.mining import Mining


def training_row(name: TaskType, record: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a saved example: `query`, `positive`, `negatives`, `instruction`, where it comes from, and for the two
    symmetric types `similarities` from 0 to 5 of the query with the positive and each negative."""
    kind, fields, attributes = KINDS[name], record["fields"], record["attributes"]
    by_role: dict[str, list[str]] = {"query": [], "positive": [], "negative": []}
    for field in kind.fields:
        by_role[field.role].append(fields[field.name])
    row = {
        "id": record["id"],
        "query": by_role["query"][0],
        "positive": by_role["positive"][0],
        "negatives": by_role["negative"],
        "instruction": kind.instruction or record["task"],
        "task_type": name,
        "languages": [attributes[key] for key in ("language", "other_language") if key in attributes],
        "attributes": {key: value for key, value in attributes.items() if "language" not in key},
    }
    if "high" in attributes:
        row["similarities"] = [float(attributes["high"]), float(attributes["low"])]
    return row


def graded_pairs(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The pairs of a row with `similarities`, scores from 0 to 1, for losses on pairs."""
    texts = [row["positive"], *row["negatives"]]
    for text, similarity in zip(texts, row["similarities"], strict=True):
        yield {
            "sentence1": row["query"],
            "sentence2": text,
            "score": similarity / SCALE,
            "task_type": row["task_type"],
            "languages": row["languages"],
        }


def training_rows(store: Store, name: TaskType, places: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows of a type, in order."""
    for place in places:
        yield training_row(name, store.examples.read(place))


def write_results(
    store: Store,
    settings: Settings,
    places: Mapping[TaskType, Sequence[int]],
    report: dict[str, Any],
    mining: Mining | None = None,
    on_mining: Callable[[TaskType, str], None] = lambda name, told: None,
) -> None:
    """All files of the result, each at once."""
    for name, where in places.items():
        rows = partial(training_rows, store, name, where)
        if mining is not None and where and name in mining.types:
            from thalweg.synthesis.mining import with_mined

            told = partial(on_mining, name)
            content = with_mined(name, rows, mining.embedder, settings.seed, store.folder / MINED, told)
        else:
            content = rows()
        store.write(f"{DATA}/{name}.jsonl", content)
    graded = [name for name in places if "high" in KINDS[name].attributes]
    if graded:
        store.write(
            PAIRS,
            (pair for name in graded for row in training_rows(store, name, places[name]) for pair in graded_pairs(row)),
        )
    store.write_json(REPORT, report)
