"""A folder of invented data for the local suite, and tasks of mteb on the same data, written without it."""

from __future__ import annotations

import gzip
import json
from itertools import product
from pathlib import Path
from typing import Any

STS = [
    ("A man is rowing a boat.", "A man rows his boat across the lake.", 4.6),
    ("The bakery opens at six.", "You can buy bread from six o'clock on.", 4.1),
    ("It snowed all night.", "The streets were white in the morning.", 3.0),
    ("The cat sleeps on the sofa.", "A dog barks at the postman.", 0.8),
    ("She plays the violin.", "She is repairing a bicycle.", 0.4),
    ("The train was late.", "The train did not arrive on time.", 4.9),
    ("He reads a novel.", "A novel lies on the table.", 2.1),
    ("Interest rates have risen.", "Borrowing has become more expensive.", 3.6),
]

_TOPICS = {
    "weather": ["rain", "snow", "sunshine", "fog", "thunder"],
    "cooking": ["soup", "bread", "pancakes", "stew", "salad"],
    "boats": ["canoes", "ferries", "sails", "oars", "barges"],
}
_FRAMES = (
    "Tell me something about {}.",
    "Yesterday we talked about {} for an hour.",
    "I have read that {} matter a great deal.",
    "My neighbour knows all there is to know of {}.",
)

TRAIN = [
    {"text": frame.format(word), "label": topic}
    for topic, words in _TOPICS.items()
    for frame, word in product(_FRAMES[:3], words)
]
TEST = [{"text": _FRAMES[3].format(word), "label": topic} for topic, words in _TOPICS.items() for word in words]

CORPUS = [
    {"id": f"d{i}", "title": title, "text": text}
    for i, (title, text) in enumerate(
        [
            ("Lock keepers", "The lock keeper opens the gates when a barge has paid its toll."),
            ("Sourdough", "Flour and water are left to stand until wild yeast makes them rise."),
            ("", "Fog forms over the river when cold air lies above warm water."),
            ("Violins", "The back of a violin is carved out of maple, its top out of spruce."),
            ("Swans", "A pair of swans comes back to the same nest every spring."),
            ("", "Trains on the branch line are drawn by engines that burn coal. " * 80),
        ]
    )
]
QUERIES = [
    {"id": "q0", "text": "Who lets boats through the gates?"},
    {"id": "q1", "text": "How does dough rise without bought yeast?"},
    {"id": "q2", "text": "Why is there mist above the water?"},
    {"id": "q3", "text": "What burns coal?"},
]
QRELS = [
    {"query": "q0", "doc": "d0", "relevance": 2},
    {"query": "q0", "doc": "d4", "relevance": 1},
    {"query": "q1", "doc": "d1", "relevance": 1},
    {"query": "q2", "doc": "d2", "relevance": 1},
    {"query": "q3", "doc": "d5", "relevance": 1},
]

BOOK = (
    "The boat left the quay before dawn. Nobody had slept! “Will it hold?” asked the pilot. Grey water ran past the "
    "stones, and the children counted swans until the bridge was out of sight. "
)


def write_data(folder: Path) -> Path:
    """The folder of `thalweg.evaluation.local`."""
    rows: dict[str, list[dict[str, Any]]] = {
        "sts/pairs.jsonl": [{"sentence1": a, "sentence2": b, "score": str(score)} for a, b, score in STS],
        "classification/topics-train.jsonl.gz": TRAIN,
        "classification/topics-test.jsonl.gz": TEST,
        "retrieval/notes/corpus.jsonl.gz": CORPUS,
        "retrieval/notes/queries.jsonl": QUERIES,
        "retrieval/notes/qrels.jsonl": QRELS,
        "books.jsonl.gz": [{"title": "Dawn", "text": BOOK * 20}, {"title": "Dusk", "text": BOOK[::2] * 3}],
    }
    for name, content in rows.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in content).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return folder


TASK_FILE = '''
"""Tasks of a user, as mteb's documentation has them."""
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClustering, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata


def metadata(name, kind, score):
    dataset = {"path": "mine", "revision": "1"}
    return TaskMetadata(
        name=name, description=name, dataset=dataset, type=kind, eval_langs=["eng-Latn"], main_score=score
    )


class Pairs(AbsTaskSTS):
    metadata = metadata("MyPairs", "STS", "cosine_spearman")

    def load_data(self, **kwargs):
        rows = [("a boat", "a ship", 5.0), ("a boat", "an owl", 0.0), ("rain", "drizzle", 4.0), ("rain", "bread", 1.0)]
        columns = dict(zip(("sentence1", "sentence2", "score"), map(list, zip(*rows))))
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True


class Notes(AbsTaskRetrieval):
    metadata = metadata("MyNotes", "Retrieval", "ndcg_at_10")

    def load_data(self, **kwargs):
        texts = ["the river", "the bread", "snow"]
        corpus = [{"id": str(i), "title": "", "text": text} for i, text in enumerate(texts)]
        queries = [{"id": "q", "text": "water"}]
        split = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries)}
        self.dataset = {"default": {"test": {**split, "relevant_docs": {"q": {"0": 1}}, "top_ranked": None}}}
        self.data_loaded = True
'''
