"""The local suite scores as mteb does, and as the definitions say."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg
from thalweg.errors import CorpusError

pytest.importorskip("mteb")
pytest.importorskip("sklearn")

import mteb
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

from thalweg.evaluation.local import local_tasks, needle_tasks
from thalweg.evaluation.models import Contestant, other_models, our_model
from thalweg.evaluation.needles import Haystacks
from thalweg.evaluation.run import evaluate

from .by_hand import hand_written_tasks
from .tiny import BOOK, CORPUS, QRELS, QUERIES, STS, TEST, TRAIN

pytestmark = [
    pytest.mark.filterwarnings("ignore:The `get_sentence_embedding_dimension` method:FutureWarning"),  # by mteb
    pytest.mark.filterwarnings("ignore:The fill_missing parameter:DeprecationWarning"),  # by mteb, of its own
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning"),  # a bad classifier, rightly so
]

NAMES = ["local-sts-pairs", "local-classification-topics", "local-clustering-topics", "local-retrieval-notes"]


def scores(contestants: list[Contestant], tasks: list[Any], folder: Path) -> dict[tuple[str, str], float]:
    outcomes = evaluate(contestants, tasks, folder)
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    return {(o.model, o.task.metadata.name): o.result.get_score() for o in outcomes if o.result}


def test_a_folder_becomes_tasks(data: Path) -> None:
    tasks = local_tasks(data, [512, 64], documents=4, queries=2)
    needles = [f"local-{kind}-{length}" for length in (64, 512) for kind in ("needle", "passkey")]
    assert [task.metadata.name for task in tasks] == NAMES + needles
    assert len({task.metadata.revision for task in tasks}) == len(tasks)


def test_every_score_is_the_one_of_its_definition(data: Path, tiny: thalweg.Embedder, tmp_path: Path) -> None:
    measured = scores([our_model(tiny)], local_tasks(data), tmp_path / "out")

    def of(name: str) -> float:
        return measured["tiny", name]

    a, b = tiny.encode([row[0] for row in STS]), tiny.encode([row[1] for row in STS])
    spearman = spearmanr((a * b).sum(axis=1), [row[2] for row in STS])[0]
    assert of("local-sts-pairs") == pytest.approx(spearman, abs=1e-6)

    classifier = LogisticRegression(C=10, max_iter=1000)
    classifier.fit(tiny.encode([row["text"] for row in TRAIN]), [row["label"] for row in TRAIN])
    accuracy = classifier.score(tiny.encode([row["text"] for row in TEST]), [row["label"] for row in TEST])
    assert of("local-classification-topics") == pytest.approx(accuracy, abs=1e-6)

    documents = tiny.encode([f"{row['title']} {row['text']}".strip() for row in CORPUS])
    similar = tiny.similarity(tiny.encode([row["text"] for row in QUERIES]), documents)
    assert of("local-retrieval-notes") == pytest.approx(ndcg(similar), abs=1e-5), "mteb rounds"


def ndcg(similar: Any) -> float:
    """nDCG@10 by its definition."""
    values = []
    for query, row in zip(QUERIES, similar, strict=True):
        grades = {str(r["doc"]): int(str(r["relevance"])) for r in QRELS if r["query"] == query["id"]}
        ranked = [grades.get(CORPUS[i]["id"], 0) for i in np.argsort(-row)]
        best = sorted(grades.values(), reverse=True)
        gain, ideal = (sum(g / math.log2(i + 2) for i, g in enumerate(list_[:10])) for list_ in (ranked, best))
        values.append(gain / ideal)
    return sum(values) / len(values)


@pytest.mark.slow
def test_minilm_scores_as_in_mteb_with_hand_written_tasks(data: Path, minilm: Any, tmp_path: Path) -> None:
    """sentence-transformers' own object, given to mteb, with tasks that know nothing of the local suite."""
    hay = {kind: Haystacks(kind, 200, [BOOK * 20], 12, 6) for kind in ("needle", "passkey")}  # type: ignore[arg-type]
    theirs = hand_written_tasks(hay)

    ours = [*local_tasks(data), *needle_tasks([BOOK * 20], [200], 12, 6)]
    contestant = other_models(["all-MiniLM-L6-v2"])[0]
    measured = scores([contestant], ours, tmp_path / "out")
    for mine, task in zip(ours, theirs, strict=True):
        result = mteb.evaluate(minilm, task, cache=None, co2_tracker=False, show_progress_bar=False).task_results[0]
        name = mine.metadata.name
        assert measured[contestant.label, name] == pytest.approx(result.get_score(), abs=1e-3), name


@pytest.mark.slow
def test_the_mean_of_chunks_sees_what_a_cut_text_hides(tmp_path: Path, minilm: Any) -> None:
    cut, chunks = other_models(["all-MiniLM-L6-v2"])
    tasks = needle_tasks([BOOK * 20], [1024], 6, 6)
    measured = scores([cut, chunks], tasks, tmp_path)
    assert measured[chunks.label, "local-passkey-1024"] > measured[cut.label, "local-passkey-1024"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("sts/pairs.jsonl", '{"sentence1": "a", "sentence2": "b"}', "'score' must be a number"),
        ("sts/pairs.jsonl", '{"sentence1": "a"', "line 1: not JSON"),
        ("sts/pairs.jsonl", "", "is empty"),
        ("classification/topics-test.jsonl.gz", '{"text": "a", "label": "birds"}', "'birds' does not occur"),
        ("classification/topics-train.jsonl.gz", '{"text": 3, "label": "birds"}', "'text' must be a text"),
        ("retrieval/notes/qrels.jsonl", '{"query": "q0", "doc": "d77", "relevance": 1}', "'d77' is not among"),
    ],
)
def test_a_wrong_file_is_named(
    data: Path, tiny: thalweg.Embedder, tmp_path: Path, name: str, content: str, words: str
) -> None:
    (data / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    outcomes = evaluate([our_model(tiny)], local_tasks(data), tmp_path / "out")
    errors = [outcome.error for outcome in outcomes if outcome.error]
    assert errors
    assert all(words in error and Path(name).name in error for error in errors)
    assert any(outcome.result for outcome in outcomes), "the other tasks go on"


def test_a_folder_without_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="has no sts/"):
        local_tasks(tmp_path)
    (tmp_path / "retrieval" / "half").mkdir(parents=True)
    with pytest.raises(CorpusError, match=r"corpus\.jsonl"):
        local_tasks(tmp_path)


def test_needles_without_books_are_refused(data: Path) -> None:
    (data / "books.jsonl.gz").unlink()
    assert len(local_tasks(data)) == len(local_tasks(data, None)) == 4
    with pytest.raises(CorpusError, match=r"books\.jsonl"):
        local_tasks(data, [256])


def test_changed_data_is_another_task(data: Path) -> None:
    before = {task.metadata.name: task.metadata.revision for task in local_tasks(data)}
    path = data / "sts" / "pairs.jsonl"
    path.write_text(path.read_text() + json.dumps({"sentence1": "x", "sentence2": "y", "score": 1}) + "\n")
    after = {task.metadata.name: task.metadata.revision for task in local_tasks(data)}
    assert {name for name in before if before[name] != after[name]} == {"local-sts-pairs"}


def test_marks_numeric_ids_and_every_format_are_taken(data: Path, tiny: thalweg.Embedder, tmp_path: Path) -> None:
    """As `thalweg embed` takes them: the scores are those of the same rows in plain JSON lines."""
    numbers = {id_: number for number, id_ in enumerate([row["id"] for row in (*CORPUS, *QUERIES)], 100)}
    before = scores([our_model(tiny)], local_tasks(data), tmp_path / "out")
    folder = data / "retrieval" / "notes"
    for path in folder.iterdir():
        path.unlink()
    mark = b"\xef\xbb\xbf"
    corpus = [{**row, "id": numbers[row["id"]]} for row in CORPUS]
    (folder / "corpus.json").write_bytes(mark + json.dumps(corpus, indent=1).encode())
    lines = "".join(json.dumps({**row, "id": str(numbers[row["id"]])}) + "\n" for row in QUERIES)
    (folder / "queries.ndjson.gz").write_bytes(gzip.compress(mark + lines.encode()))
    rows = [f"{numbers[str(row['query'])]};{numbers[str(row['doc'])]};{row['relevance']}\n" for row in QRELS]
    (folder / "qrels.csv").write_bytes(mark + ("query;doc;relevance\n" + "".join(rows)).encode())
    pairs = data / "sts" / "pairs.jsonl"
    pairs.write_bytes(mark + pairs.read_bytes())
    assert scores([our_model(tiny)], local_tasks(data), tmp_path / "again") == before


def test_ids_that_repeat_are_refused(data: Path, tiny: thalweg.Embedder, tmp_path: Path) -> None:
    path = data / "retrieval" / "notes" / "queries.jsonl"
    path.write_text(path.read_text() + json.dumps(QUERIES[0]) + "\n")
    (outcome,) = [each for each in evaluate([our_model(tiny)], local_tasks(data), tmp_path / "out") if each.error]
    assert "queries.jsonl: 1 ids come more than once, such as 'q0'" in str(outcome.error)
