"""The suite over local files: each file becomes a task of mteb's own abstract classes, so mteb's code scores it.

    sts/NAME                                   sentence1, sentence2, score
    classification/NAME-{train,test}           text, label; the test texts are clustered, too
    retrieval/NAME/{corpus,queries,qrels}      id, title, text / id, text / query, doc, relevance
    books                                      title, text: the hay of needle and passkey tasks

Files are JSON lines or any other format that has rows (`thalweg.inputs.formats`), packed or not. The tasks are called
`local-…`: they are measured as mteb measures, but are no part of any benchmark.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskClustering, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from sklearn.linear_model import LogisticRegression

from thalweg.errors import CorpusError
from thalweg.evaluation.needles import LENGTHS, Haystacks, Kind
from thalweg.evaluation.rows import (
    Row,
    digest,
    find_row_file,
    id_of,
    number_of,
    read_rows,
    row_file,
    row_files,
    stem,
    text_of,
    unique_ids,
)


def local_tasks(
    folder: Path, lengths: Sequence[int] | None = (), documents: int = 100, queries: int = 50, seed: int = 0
) -> list[AbsTask]:
    """All tasks of a folder, short texts first.

    lengths: of needle and passkey tasks, in tokens; None for `LENGTHS` if the folder has books. documents, queries,
    seed: see `Haystacks`.

    Raises:
        CorpusError: the folder holds no task, or a file is not as it has to be; the message names it.
        InvalidInputError: a length, or a number of documents or queries, that cannot be.
    """
    tasks: list[AbsTask] = [_sts(path) for path in row_files(folder / "sts")]
    for train in row_files(folder / "classification"):
        if stem(train).endswith("-train"):
            test = train.with_name(train.name.replace("-train.", "-test."))
            tasks += [_classification(train, test), _clustering(test)]
    retrieval = folder / "retrieval"
    tasks += [_retrieval(path) for path in sorted(retrieval.iterdir()) if path.is_dir()] if retrieval.is_dir() else []
    if lengths is None:
        lengths = LENGTHS if find_row_file(folder, "books") else ()
    if lengths:
        path = row_file(folder, "books")
        books = [text_of(row, "text", path) for row in read_rows(path)]
        tasks += needle_tasks(books, lengths, documents, queries, seed)
    if not tasks:
        raise CorpusError(
            f"{folder} has no sts/, classification/, retrieval/ or books with files of rows, such as .jsonl"
        )
    return tasks


def needle_tasks(
    books: Sequence[str], lengths: Sequence[int], documents: int = 100, queries: int = 50, seed: int = 0
) -> list[AbsTask]:
    """A needle and a passkey task of each length."""
    kinds: tuple[Kind, ...] = ("needle", "passkey")
    return [
        _haystack(Haystacks(kind, length, books, documents, queries, seed))
        for length in sorted(set(lengths))
        for kind in kinds
    ]


def _sts(path: Path) -> AbsTask:
    class Task(AbsTaskSTS):
        metadata = _metadata("STS", f"local-sts-{stem(path)}", "cosine_spearman", digest(path))

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            rows = read_rows(path)
            columns: dict[str, Any] = {
                key: [text_of(row, key, path) for row in rows] for key in ("sentence1", "sentence2")
            }
            columns["score"] = [number_of(row, "score", path) for row in rows]
            self.dataset = _splits({"test": columns})
            self.data_loaded = True

    return Task()


def _labelled(path: Path) -> dict[str, list[str]]:
    rows = read_rows(path)
    return {name: [text_of(row, name, path) for row in rows] for name in ("text", "label")}


def _classification(train: Path, test: Path) -> AbsTask:
    class Task(AbsTaskClassification):
        """A logistic regression (C = 10) on the vectors of all training texts."""

        metadata = _metadata(
            "Classification",
            f"local-classification-{stem(train).removesuffix('-train')}",
            "accuracy",
            digest(train, test),
        )
        evaluator_model = LogisticRegression(C=10, max_iter=1000)
        n_experiments = 1

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            splits = {"train": _labelled(train), "test": _labelled(test)}
            number = {label: i for i, label in enumerate(sorted(set(splits["train"]["label"])))}
            unknown = set(splits["test"]["label"]) - number.keys()
            if unknown:
                raise CorpusError(f"{test}: label {min(unknown)!r} does not occur in {train}")
            self.samples_per_label = len(splits["train"]["text"])
            self.dataset = _splits(
                {
                    name: {"text": columns["text"], "label": [number[label] for label in columns["label"]]}
                    for name, columns in splits.items()
                }
            )
            self.data_loaded = True

    return Task()


def _clustering(path: Path) -> AbsTask:
    class Task(AbsTaskClustering):
        """All texts, without leaving a share of them out as mteb does where there are many."""

        metadata = _metadata(
            "Clustering", f"local-clustering-{stem(path).removesuffix('-test')}", "v_measure", digest(path)
        )
        max_fraction_of_documents_to_embed = None

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            columns = _labelled(path)
            self.dataset = _splits({"test": {"sentences": columns["text"], "labels": columns["label"]}})
            self.data_loaded = True

    return Task()


def _retrieval(folder: Path) -> AbsTask:
    paths = {name: row_file(folder, name) for name in ("corpus", "queries", "qrels")}

    class Task(AbsTaskRetrieval):
        metadata = _metadata("Retrieval", f"local-retrieval-{folder.name}", "ndcg_at_10", digest(*paths.values()))

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            corpus = [
                {
                    "id": id_of(row, "id", paths["corpus"]),
                    "title": row.get("title") or "",
                    "text": text_of(row, "text", paths["corpus"]),
                }
                for row in read_rows(paths["corpus"])
            ]
            queries = [
                {"id": id_of(row, "id", paths["queries"]), "text": text_of(row, "text", paths["queries"])}
                for row in read_rows(paths["queries"])
            ]
            unique_ids(corpus, paths["corpus"])
            unique_ids(queries, paths["queries"])
            self.dataset = _collection(Dataset.from_list(corpus), queries, _qrels(paths["qrels"], corpus, queries))
            self.data_loaded = True

    return Task()


def _haystack(haystacks: Haystacks) -> AbsTask:
    class Task(AbsTaskRetrieval):
        """Documents are written to a folder of their own and read from there, since they may be long."""

        metadata = _metadata("Retrieval", f"local-{haystacks.kind}-{haystacks.length}", "ndcg_at_1", haystacks.revision)
        one_length = True

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            self._folder = tempfile.TemporaryDirectory(prefix="thalweg-eval-")
            corpus = Dataset.from_generator(
                partial(_documents, haystacks),
                cache_dir=self._folder.name,
                fingerprint=haystacks.revision,
                writer_batch_size=1,
            )
            asked = list(haystacks.questions())
            queries = [{"id": f"q{number}", "text": question} for number, question in asked]
            self.dataset = _collection(corpus, queries, {f"q{number}": {f"d{number}": 1} for number, _ in asked})
            self.data_loaded = True

        def unload_data(self) -> None:
            super().unload_data()
            self._folder.cleanup()

    return Task()


def _documents(haystacks: Haystacks) -> Iterator[Row]:
    for number, text in enumerate(haystacks.texts()):
        yield {"id": f"d{number}", "title": "", "text": text}


def _collection(corpus: Any, queries: Sequence[Row], qrels: dict[str, dict[str, int]]) -> Any:
    split = {
        "corpus": corpus,
        "queries": Dataset.from_list(list(map(dict, queries))),
        "relevant_docs": qrels,
        "top_ranked": None,
    }
    return {"default": {"test": split}}


def _splits(splits: dict[str, dict[str, Any]]) -> Any:
    return DatasetDict({name: Dataset.from_dict(columns) for name, columns in splits.items()})


def _qrels(path: Path, corpus: Sequence[Row], queries: Sequence[Row]) -> dict[str, dict[str, int]]:
    known = {"doc": {row["id"] for row in corpus}, "query": {row["id"] for row in queries}}
    qrels: dict[str, dict[str, int]] = {}
    for row in read_rows(path):
        found = {key: id_of(row, key, path) for key in known}
        for key, ids in known.items():
            if found[key] not in ids:
                raise CorpusError(f"{path}: {key} {found[key]!r} is not among the ids of its file")
        qrels.setdefault(found["query"], {})[found["doc"]] = int(number_of(row, "relevance", path))
    return qrels


def _metadata(kind: Any, name: str, score: str, revision: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description=f"{name}: local files, no part of a benchmark",
        dataset={"path": "local", "revision": revision},
        type=kind,
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=score,
    )
