"""The data of `tiny` as tasks of mteb, written the way mteb's documentation has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskClustering, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from sklearn.linear_model import LogisticRegression

from thalweg.evaluation.needles import Haystacks

from .tiny import CORPUS, QRELS, QUERIES, STS, TEST, TRAIN


def _metadata(name: str, kind: Any, score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description=name,
        dataset={"path": "by hand", "revision": "1"},
        type=kind,
        eval_langs=["eng-Latn"],
        main_score=score,
    )


class Pairs(AbsTaskSTS):
    metadata = _metadata("HandPairs", "STS", "cosine_spearman")

    def load_data(self, **_: Any) -> None:
        columns = {name: [row[i] for row in STS] for i, name in enumerate(("sentence1", "sentence2", "score"))}
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})  # type: ignore[assignment]
        self.data_loaded = True


class Topics(AbsTaskClassification):
    metadata = _metadata("HandTopics", "Classification", "accuracy")
    evaluator_model = LogisticRegression(C=10, max_iter=1000)
    n_experiments, samples_per_label = 1, 10_000

    def load_data(self, **_: Any) -> None:
        splits = {"train": Dataset.from_list(TRAIN), "test": Dataset.from_list(TEST)}
        self.dataset = DatasetDict(splits)  # type: ignore[assignment]
        self.data_loaded = True


class Clusters(AbsTaskClustering):
    metadata = _metadata("HandClusters", "Clustering", "v_measure")
    max_fraction_of_documents_to_embed = None

    def load_data(self, **_: Any) -> None:
        columns = {"sentences": [row["text"] for row in TEST], "labels": [row["label"] for row in TEST]}
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})  # type: ignore[assignment]
        self.data_loaded = True


def _retrieval(name: str, score: str, corpus: Any, queries: Any, qrels: Any) -> AbsTask:
    class Retrieval(AbsTaskRetrieval):
        metadata = _metadata(name, "Retrieval", score)

        def load_data(self, **_: Any) -> None:
            self.corpus, self.queries, self.relevant_docs = {"test": corpus}, {"test": queries}, {"test": qrels}
            self.data_loaded = True

    return Retrieval()


def hand_written_tasks(hay: Mapping[str, Haystacks]) -> list[AbsTask]:
    """In the order of the local suite."""
    qrels: dict[str, dict[str, int]] = {}
    for row in QRELS:
        qrels.setdefault(str(row["query"]), {})[str(row["doc"])] = int(str(row["relevance"]))
    corpus = {row["id"]: {"title": row["title"], "text": row["text"]} for row in CORPUS}
    queries = {row["id"]: row["text"] for row in QUERIES}
    found = [Pairs(), Topics(), Clusters(), _retrieval("HandNotes", "ndcg_at_10", corpus, queries, qrels)]
    for kind, haystacks in hay.items():
        asked = list(haystacks.questions())
        documents = {str(i): {"text": text} for i, text in enumerate(haystacks.texts())}
        questions = {f"q{i}": question for i, question in asked}
        judged = {f"q{i}": {str(i): 1} for i, _ in asked}
        found.append(_retrieval(f"Hand{kind}", "ndcg_at_1", documents, questions, judged))
    return found
