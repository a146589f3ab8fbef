"""The order of rows that were saved in any order, and which documents they complete."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from thalweg.corpus.index import Done
from thalweg.corpus.parts import Parts
from thalweg.corpus.rows import Row, part_schema


def row(file: int, number: int, section: int, last: bool) -> Row:
    vector = np.array([file, number, section], np.float32)
    return Row(file, number, last, False, f"{file}:{number}", "p", number, section, 0, 1, 1, f"{section}", vector)


@examples(30)
@given(
    documents=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 200), st.integers(1, 6), st.booleans()),
        unique_by=lambda document: document[:2],
        max_size=30,
    ),
    per_part=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_rows_come_back_in_order_and_only_of_complete_documents(
    tmp_path_factory: object, documents: list[tuple[int, int, int, bool]], per_part: int, seed: int
) -> None:
    folder: Path = tmp_path_factory.mktemp("parts")  # type: ignore[attr-defined]
    parts = Parts(folder / "x.parts", part_schema(3, with_text=True), 1e9)
    # Documents mixed at random, each with its sections in order, as an embedder delivers them.
    queues = [
        [row(file, number, section, complete and section == n - 1) for section in range(n)]
        for file, number, n, complete in documents
    ]
    rng = random.Random(seed)
    saved = 0
    while queues:
        queue = rng.choice(queues)
        parts.append(queue.pop(0))
        saved += 1
        if saved % per_part == 0:
            parts.save()
        if not queue:
            queues.remove(queue)
    parts.save()
    index = parts.index()
    found = [
        (int(item["id"].partition(":")[0]), item["row"], item["section"], item["text"], item["vector"])
        for batch in parts.batches(index, ["id", "row", "section", "text", "vector"], 7)
        for item in batch.to_pylist()
    ]
    complete = sorted(document for document in documents if document[3])
    assert found == [(f, r, s, str(s), [f, r, s]) for f, r, n, _ in complete for s in range(n)]
    done = Done(index)
    assert done.n_documents == len(complete)
    for file, number, n, is_complete in documents:
        assert done.has(file, number) is is_complete
        assert done.sections(file, number) == (0 if is_complete else n)
    assert not done.has(9, 0)
    assert done.sections(9, 0) == 0
    parts.close()
