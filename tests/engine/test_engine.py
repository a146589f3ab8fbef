"""The engine with a toy model that is no language model at all: it knows the protocol, nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.toy import Toy, expected, ids_of
from tests.examples import examples
from thalweg.engine.engine import Engine
from thalweg.engine.results import Failure, Pooled
from thalweg.engine.schedule import Schedule
from thalweg.engine.sources import Answer, Ids, TokenArray
from thalweg.errors import InvalidInputError, TokenizationError
from thalweg.pooling import LastToken

schedules = st.builds(
    lambda budget, v, flight: Schedule(max(budget, 2 * flight + 1), v, flight),
    st.integers(3, 300),
    st.integers(1, 200),
    st.integers(1, 6),
)


@examples(150)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 40), st.integers(100, 900)), max_size=25),
    schedule=schedules,
    pooling=st.sampled_from(["last", "mean"]),
)
def test_every_document_once_and_right_within_the_bounds(lengths: list[int], schedule: Schedule, pooling: str) -> None:
    documents = [ids_of(n, i) for i, n in enumerate(lengths)]
    toy = Toy()
    engine = Engine(toy, pooling, schedule)
    results = list(engine.run([Ids(ids) for ids in documents]))
    assert sorted(r.key for r in results) == list(range(len(lengths)))
    for result in results:
        assert isinstance(result, Pooled)
        np.testing.assert_allclose(result.vector, expected(documents[result.key], pooling), rtol=1e-6)
    assert engine.progress.tokens == sum(lengths)  # no padding: exactly the documents' tokens
    assert all(p.n_tokens <= schedule.max_tokens_per_step for p in toy.steps)
    assert all(max(p.lengths) <= schedule.vertical_chunk_size for p in toy.steps)
    assert toy.most_states <= schedule.max_in_flight


@examples(100)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    schedule=schedules,
    size=st.integers(1, 90),
    pooling=st.sampled_from(["last", "mean"]),
)
def test_sections_tile_each_document_in_order(lengths: list[int], schedule: Schedule, size: int, pooling: str) -> None:
    probe = 7
    documents = [ids_of(n, i) for i, n in enumerate(lengths)]
    results = list(
        Engine(Toy(), pooling, schedule, probe_id=probe).run([Ids(ids) for ids in documents], section_size=size)
    )
    for index, ids in enumerate(documents):
        mine = [r for r in results if isinstance(r, Pooled) and r.key == index]
        assert [r.section for r in mine] == list(range(len(mine)))
        assert [r.start for r in mine] == [0, *(r.stop for r in mine[:-1])]
        assert mine[-1].stop == len(ids)
        assert [r.last for r in mine] == [False] * (len(mine) - 1) + [True]
        # All sections have the asked size, but for the last; a lone last token is no section of its own.
        assert all(r.stop - r.start == size for r in mine[:-1])
        assert mine[-1].stop - mine[-1].start <= size + 1
        assert len(mine) == 1 or mine[-1].stop - mine[-1].start > 1 or size == 1
        for r in mine:
            count = np.arange(1, len(ids) + 1)
            hidden = np.stack([count, np.cumsum(ids * count)], axis=1)
            want = hidden[r.start : r.stop].mean(axis=0)
            if pooling == "last":
                want = expected(ids if r.last else np.append(ids[: r.stop], probe), "last")
            np.testing.assert_allclose(r.vector, want, rtol=1e-6)


@examples(50)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9), schedule=schedules, n_last=st.integers(2, 7))
def test_the_mean_over_the_last_tokens_wherever_steps_cut(lengths: list[int], schedule: Schedule, n_last: int) -> None:
    documents = [ids_of(n + n_last, i) for i, n in enumerate(lengths)]
    for result in Engine(Toy(), LastToken(n_last), schedule).run([Ids(ids) for ids in documents]):
        assert isinstance(result, Pooled)
        ids = documents[result.key]
        ends = [expected(ids[:stop], "last") for stop in range(len(ids) - n_last + 1, len(ids) + 1)]
        np.testing.assert_allclose(result.vector, np.mean(ends, axis=0), rtol=1e-6)


def test_short_documents_do_not_wait_for_a_long_one() -> None:
    engine = Engine(Toy(), "last", Schedule(100, 50, 2))
    order = [r.key for r in engine.run(Ids(ids_of(n, n)) for n in (5000, 5000, 5000, 3, 4, 5, 6))]
    assert order.index(0) > max(order.index(i) for i in (3, 4, 5, 6))


def test_short_documents_never_own_a_state() -> None:
    toy = Toy()
    list(Engine(toy, "mean", Schedule(64, 32, 4)).run(Ids(ids_of(20, i)) for i in range(100)))
    assert toy.most_states == 0
    assert len(toy.steps) <= 100 // 3 + 1


def test_input_is_pulled_as_it_is_needed() -> None:
    pulled = 0

    def documents() -> Iterator[Ids]:
        nonlocal pulled
        for i in range(10_000):
            pulled += 1
            yield Ids(ids_of(30, i))

    run = Engine(Toy(), "last", Schedule(300, 100, 4)).run(documents())
    for _ in range(20):
        next(run)
    assert pulled < 100


class Broken:
    """A source that fails after `good` tokens."""

    def __init__(self, good: int, error: Exception) -> None:
        self.good = good
        self.error = error

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        if self.good == 0:
            raise self.error
        n = min(n, self.good)
        self.good -= n
        return np.ones(n, dtype=np.int64), Answer.MORE


@pytest.mark.parametrize("good", [0, 10, 500])
@pytest.mark.parametrize("error", [TokenizationError("no text"), FileNotFoundError("gone")])
def test_a_broken_document_is_reported_and_the_others_go_on(good: int, error: Exception) -> None:
    lengths = (300, 5, 400)
    sources = [Ids(ids_of(lengths[0], 0)), Broken(good, error), *(Ids(ids_of(n, n)) for n in lengths[1:])]
    results = {r.key: r for r in Engine(Toy(), "last", Schedule(100, 40, 3)).run(sources)}
    assert isinstance(results[1], Failure)
    assert results[1].error is error
    for index, ids in ((0, ids_of(300, 0)), (2, ids_of(5, 5)), (3, ids_of(400, 400))):
        np.testing.assert_allclose(results[index].vector, expected(ids, "last"), rtol=1e-6)


def test_a_bug_is_not_a_failed_document() -> None:
    with pytest.raises(ZeroDivisionError):
        list(Engine(Toy(), "last").run([Broken(3, ZeroDivisionError())]))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"vertical_chunk_size": 0}, "vertical_chunk_size must be at least 1, got 0"),
        ({"max_in_flight": -1}, "max_in_flight must be at least 1, got -1"),
        ({"max_tokens_per_step": 8}, "max_tokens_per_step=8 is too small for max_in_flight=8"),
    ],
)
def test_bounds_that_cannot_be(bounds: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Schedule(**bounds)
