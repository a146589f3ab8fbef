"""The order of rows that were saved in any order, and which documents they complete."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from thalweg.corpus.index import Done, Index
from thalweg.corpus.manifest import Manifest
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
    parts.begin(Manifest({}, ()))
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
        for _, batch in parts.slices(index, ["id", "row", "section", "text", "vector"])
        for item in batch.to_pylist()
    ]
    complete = sorted(document for document in documents if document[3])
    assert found == [(f, r, s, str(s), [f, r, s]) for f, r, n, _ in complete for s in range(n)]
    done = Done(index)
    assert done.n_documents == len(complete)
    for file, number, n, is_complete in documents:
        assert done.has(file, number) is is_complete
        assert done.sections(file, number) == frozenset(() if is_complete else range(n))
    assert not done.has(9, 0)
    assert not done.sections(9, 0)
    parts.close()


@examples(50)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.sets(st.integers(0, 3))), max_size=12),
    rows=st.integers(1, 5),
    size=st.integers(0, 8),
)
def test_a_document_with_a_gap_is_not_complete(sizes: list[tuple[int, set[int]]], rows: int, size: int) -> None:
    """Of each document some sections may be lost, with the part that they were in; what is left of it is known."""
    there = [
        (number, section, section == n - 1)
        for number, (n, lost) in enumerate(sizes)
        for section in range(n)
        if section not in lost
    ]
    random.Random(rows).shuffle(there)
    columns = {
        "key_file": pa.array([0] * len(there), pa.int32()),
        "key_row": pa.array([number for number, *_ in there], pa.int64()),
        "key_last": pa.array([last for *_, last in there], pa.bool_()),
        "section": pa.array([section for _, section, _ in there], pa.int32()),
    }
    lengths = np.array([1 + number % 3 for number, *_ in there], np.int32)
    index = Index.build([(pa.record_batch(columns), lengths)] if there else [])
    done = Done(index)
    whole = [number for number, (n, lost) in enumerate(sizes) if lost.isdisjoint(range(n))]
    for number, (n, lost) in enumerate(sizes):
        assert done.has(0, number) is (number in whole)
        if number not in whole:
            assert done.sections(0, number) == set(range(n)) - lost
    slices = list(index.slices(rows, size))
    assert [int(index.row[at]) for each in slices for at in each] == [n for n in whole for _ in range(sizes[n][0])]
    assert all(len(each) == 1 or (len(each) <= rows and index.size[each].sum() <= size) for each in slices)
    assert all(len(each) for each in slices)
