"""Every row has a key of its own, whatever the ids."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.corpus.keys import Keys

IDS = st.lists(st.text("a~#12", max_size=5) | st.sampled_from(["1", "a", "a~2", "a~~2", "a#0", "\ud800"]), max_size=40)


@settings(max_examples=300, deadline=None)
@given(ids=IDS, per_batch=st.integers(1, 7), n_sections=st.none() | st.integers(1, 3))
def test_keys_are_unique_and_begin_with_the_id(ids: list[str], per_batch: int, n_sections: int | None) -> None:
    keys = Keys(len(ids))
    for begin in range(0, len(ids), per_batch):
        keys.learn(begin, ids[begin : begin + per_batch])
    repeated = keys.finish().tolist()
    assert repeated == [number for number, id_ in enumerate(ids) if id_ in ids[:number]]
    sections = [None] if n_sections is None else list(range(n_sections))
    made = [keys.key(number, id_, section) for number, id_ in enumerate(ids) for section in sections]
    assert max(Counter(made).values(), default=1) == 1
    for number, id_ in enumerate(ids):
        if number not in repeated:
            assert keys.key(number, id_, None) == id_
            assert keys.key(number, id_, 7) == f"{id_}#7"
        assert keys.key(number, id_, None).startswith(id_)


def test_repeated_ids_are_numbered() -> None:
    keys = Keys(5)
    keys.learn(0, ["1", "b", "1", "1", "b"])
    assert np.array_equal(keys.finish(), [2, 3, 4])
    assert [keys.key(number, id_, None) for number, id_ in enumerate("1b11b")] == ["1", "b", "1~2", "1~3", "b~2"]
    assert keys.key(3, "1", 0) == "1~3#0"


def test_an_id_that_looks_like_a_key_gets_no_twin() -> None:
    keys = Keys(3)
    keys.learn(0, ["a", "a", "a~2"])
    keys.finish()
    assert [keys.key(number, id_, None) for number, id_ in enumerate(["a", "a", "a~2"])] == ["a", "a~~2", "a~2"]
