"""The engine driven from outside: documents come and go while it steps, and some wait for their text."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.engine.toy import Toy, expected, ids_of
from thalweg.embedder.in_order import ReorderBuffer
from thalweg.engine.engine import Engine
from thalweg.engine.read_ahead import BlockingSource, ReadAhead
from thalweg.engine.results import DocumentState, Failure, Pooled
from thalweg.engine.runs import MOST_RESULTS
from thalweg.engine.schedule import Schedule
from thalweg.engine.sources import Answer, Ids, TokenArray, TokenSource
from thalweg.errors import InvalidInputError, TokenizationError
from thalweg.pooling import LastToken


class Live:
    """A source that is fed by hand; `asked` counts how often it was pulled."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False
        self.asked = 0
        self.wake: Callable[[], None] = lambda: None
        self.closed = False

    def subscribe(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def close(self) -> None:
        self.closed = True

    def feed(self, ids: TokenArray, *, ended: bool = False) -> None:
        self.ids += ids.tolist()
        self.ended = ended
        self.wake()

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        self.asked += 1
        ids, self.ids = np.array(self.ids[:n], dtype=np.int64), self.ids[n:]
        if self.ids:
            return ids, Answer.MORE
        return ids, Answer.ENDED if self.ended else Answer.WAITING


class Failing:
    """A source that breaks after some tokens."""

    def __init__(self, good: int) -> None:
        self.good = good

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        if not self.good:
            raise TokenizationError("no text")
        n = min(n, self.good)
        self.good -= n
        return np.ones(n, dtype=np.int64), Answer.MORE


def drain(engine: Engine, most: int = 100_000) -> list[Pooled | Failure]:
    """Step until there is nothing to do."""
    results = []
    for _ in range(most):
        if engine.idle:
            return results
        results += engine.step()
    raise AssertionError(f"not idle after {most} steps")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("parked", [0, 3])
def test_documents_come_and_go_while_it_steps(seed: int, parked: int) -> None:
    """1,000 documents added and removed at random: sources that wait, fail and end, of several clients. Each that stays
    has the vector that it has alone, each that is removed has no result from then on."""
    rng = random.Random(seed)
    pooling = rng.choice(["last", "mean"])
    toy = Toy()
    engine = Engine(toy, pooling, Schedule(120, 50, 5, parked))
    wanted: dict[int, TokenArray] = {}
    live: dict[int, tuple[Live, list[TokenArray]]] = {}
    failing: set[int] = set()
    removed: set[int] = set()
    results: dict[int, Pooled | Failure] = {}
    added = 0
    while added < 1000 or live or not engine.idle:
        for _ in range(rng.randint(0, 6) if added < 1000 else 0):
            key, kind = added, rng.random()
            ids = ids_of(rng.choice([1, 3, 20, 49, 50, 51, 200, 700]), key)
            source: TokenSource = Ids(ids)
            if kind < 0.1:
                failing.add(key)
                source = Failing(rng.choice([0, 7, 130]))
            elif kind < 0.4:
                cuts = np.sort(np.array([rng.randint(0, len(ids)) for _ in range(3)]))
                source = Live()
                live[key] = source, np.split(ids, cuts)
            wanted[key] = ids
            engine.add(source, key, client=rng.choice("abc"), priority=rng.choice([0, 0, 0, 1]))
            added += 1
        for key in rng.sample(sorted(live), min(len(live), 3)):
            source, pieces = live[key]
            source.feed(pieces.pop(0), ended=not pieces)
            if not pieces:
                del live[key]
        if rng.random() < 0.2 and wanted:
            key = rng.choice(sorted(wanted))
            was_there = key not in results and key not in removed
            assert engine.remove(key) == was_there
            if was_there:
                removed.add(key)
                live.pop(key, None)
        for result in engine.step():
            assert result.key not in results
            assert result.key not in removed
            results[result.key] = result
    assert len(engine) == 0
    assert set(results) | removed == set(wanted)
    for key, result in results.items():
        assert isinstance(result, Failure) == (key in failing)
        if isinstance(result, Pooled):
            np.testing.assert_allclose(result.vector, expected(wanted[key], pooling), rtol=1e-6)
    assert all(packing.n_tokens <= 120 and max(packing.lengths) <= 50 for packing in toy.steps)
    assert toy.most_states <= 5


def test_a_removed_document_frees_its_row_in_the_next_step() -> None:
    toy = Toy()
    engine = Engine(toy, "last", Schedule(20, 10, 2))
    for key in range(3):
        engine.add(Ids(ids_of(500, key)), key)
    engine.step()
    assert engine.progress.in_flight == 2
    assert engine.remove(0)
    engine.step()
    assert engine.progress.in_flight == 2  # the third has begun
    assert {result.key for result in drain(engine)} == {1, 2}


def test_a_removed_source_is_closed() -> None:
    engine = Engine(Toy(), "mean", Schedule(20, 10, 2))
    source = Live()
    engine.add(source, "a")
    engine.step()
    engine.remove("a")
    engine.step()
    assert source.closed


def test_a_waiting_document_costs_nothing_and_stops_nobody() -> None:
    """It is not asked again until it is woken, no packed run is made for it, and others go on beside it."""
    toy = Toy()
    engine = Engine(toy, "last", Schedule(60, 20, 2))
    slow = Live()
    slow.feed(ids_of(45, 1))
    engine.add(slow, "slow")
    drain(engine)
    steps, asked = len(toy.steps), slow.asked
    for _ in range(100):
        assert engine.step() == []
    assert (len(toy.steps), slow.asked) == (steps, asked)
    assert engine.progress.waiting == 1
    engine.add(Ids(ids_of(300, 2)), "other")
    assert [result.key for result in drain(engine)] == ["other"]
    assert slow.asked == asked
    slow.feed(ids_of(30, 3), ended=True)
    (result,) = drain(engine)
    assert isinstance(result, Pooled)
    np.testing.assert_allclose(result.vector, expected(np.concatenate([ids_of(45, 1), ids_of(30, 3)]), "last"))


def test_wait_returns_when_something_happens() -> None:
    engine = Engine(Toy(), "last")
    assert not engine.wait(0.01)
    threading.Timer(0.05, lambda: engine.add(Ids(ids_of(3, 0)), 0)).start()
    assert engine.wait(10)
    assert [result.key for result in drain(engine)] == [0]


@pytest.mark.parametrize("length", [20, 400])
def test_a_client_with_thousands_of_texts_hardly_delays_another(length: int) -> None:
    """A client that adds 2,000 texts delays another client's single text by two steps at most, short or long."""
    engine = Engine(Toy(), "last", Schedule(120, 50, 4, max_parked=4))
    for key in range(2000):
        engine.add(Ids(ids_of(length, key)), key, client="many")
    for _ in range(10):
        engine.step()
    alone = Engine(Toy(), "last", Schedule(120, 50, 4))
    alone.add(Ids(ids_of(20, 7)), "one")
    assert [result.key for result in alone.step()] == ["one"]
    engine.add(Ids(ids_of(20, 7)), "one", client="few")
    engine.add(Ids(ids_of(400, 7)), "long one", client="few")
    steps = {}
    for step in range(1, 60):
        steps |= {result.key: step for result in engine.step()}
        if {"one", "long one"} <= set(steps):
            break
    assert steps["one"] <= 1 + 2
    # Two clients share a step, so that a long text takes twice the steps that it takes alone, and two more at most.
    assert steps["long one"] <= 2 * (-(-400 // 50)) + 2


def test_long_documents_cost_a_short_one_nothing() -> None:
    """However many are in flight, a short one leaves in the step after it came."""
    engine = Engine(Toy(), "mean", Schedule(100, 50, 8))
    for key in range(20):
        engine.add(Ids(ids_of(5000, key)), key)
    for _ in range(5):
        engine.step()
    engine.add(Ids(ids_of(50, 99)), "short")
    assert "short" in {result.key for result in engine.step()}


def test_short_documents_leave_half_of_a_step_to_long_ones() -> None:
    toy = Toy()
    engine = Engine(toy, "mean", Schedule(100, 50, 2))
    engine.add(Ids(ids_of(500, 0)), "long")
    for key in range(1000):
        engine.add(Ids(ids_of(10, key)), key)
    steps = 0
    while "long" not in {result.key for result in engine.step()}:
        steps += 1
    assert steps <= 500 // 50 + 1


def test_documents_of_a_higher_priority_begin_first() -> None:
    engine = Engine(Toy(), "last", Schedule(30, 10, 2))
    for key in range(50):
        engine.add(Ids(ids_of(10, key)), key)
    engine.add(Ids(ids_of(10, 1)), "urgent", priority=5)
    assert "urgent" in {result.key for result in engine.step()}


def test_documents_that_wait_give_their_rows_to_others_where_they_may_be_parked() -> None:
    engine = Engine(Toy(), "last", Schedule(60, 20, 2, max_parked=2))
    sources = [Live(), Live()]
    for key, source in enumerate(sources):
        source.feed(ids_of(60, key))
        engine.add(source, key)
    drain(engine)
    assert engine.progress.in_flight == 2
    engine.add(Ids(ids_of(200, 9)), "other")
    assert [result.key for result in drain(engine)] == ["other"]
    for key, source in enumerate(sources):
        source.feed(ids_of(60, key + 5), ended=True)
    results = {result.key: result for result in drain(engine)}
    for key in range(2):
        ids = np.concatenate([ids_of(60, key), ids_of(60, key + 5)])
        np.testing.assert_allclose(results[key].vector, expected(ids, "last"))


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("cut", [1, 13, 50, 120])
def test_a_document_goes_on_from_its_state(pooling: str, cut: int) -> None:
    ids = ids_of(200, 3)
    engine = Engine(Toy(), pooling, Schedule(60, 20, 2))
    engine.add(Ids(ids[:cut]), "first", keep_state=True)
    engine.add(Ids(ids_of(500, 4)), "beside")
    results = {result.key: result for result in drain(engine)}
    state = results["first"].state
    assert state is not None
    assert state.n_tokens == cut
    for key in ("second", "again"):  # a state is never used up
        engine.add(Ids(ids[cut:]), key, state=state)
    for result in drain(engine):
        assert isinstance(result, Pooled)
        np.testing.assert_allclose(result.vector, expected(ids, pooling), rtol=1e-6)


def test_sections_while_the_text_arrives() -> None:
    """A section's vector leaves when it is known that the section is complete, not when more text comes."""
    engine = Engine(Toy(), "last", Schedule(60, 20, 2), probe_id=7)
    source = Live()
    engine.add(source, 0, section_size=10)
    ids = ids_of(45, 0)
    source.feed(ids[:33])
    results = drain(engine)
    assert [(result.start, result.stop) for result in results] == [(0, 10), (10, 20), (20, 30)]
    source.feed(ids[33:], ended=True)
    results += drain(engine)
    assert [result.stop for result in results] == [10, 20, 30, 40, 45]
    for result in results[:-1]:
        np.testing.assert_allclose(result.vector, expected(np.append(ids[: result.stop], 7), "last"))


@pytest.mark.slow
def test_any_bounds_with_sections_and_several_end_tokens() -> None:
    """Random schedules: no step is overfull, every section is there, in order. 10,000 have been run (SCHEDULES)."""
    rng = random.Random(0)
    for seed in range(int(os.environ.get("SCHEDULES", "1000"))):
        flight, n_eos, pooling = rng.randint(1, 8), rng.randint(1, 5), rng.choice(["last", "mean"])
        bounds = Schedule(rng.randint(2 * flight + 1, 40), rng.randint(1, 20), flight)
        lengths = [rng.randint(n_eos, 40) for _ in range(rng.randint(1, 4))]
        size = rng.choice([None, rng.randint(1, 30)])
        toy = Toy()
        engine = Engine(toy, LastToken(n_eos) if pooling == "last" else "mean", bounds, probe_id=7)
        if size and pooling == "last" and bounds.max_tokens_per_step < n_eos:
            with pytest.raises(InvalidInputError, match="end tokens of a section"):
                list(engine.run([Ids(ids_of(3, 0))], section_size=size))
            continue
        results = list(engine.run([Ids(ids_of(n, i)) for i, n in enumerate(lengths)], section_size=size))
        for index, length in enumerate(lengths):
            mine = [result for result in results if result.key == index]
            assert [result.section for result in mine] == list(range(len(mine))), (seed, bounds)
            assert mine[-1].last
            assert mine[-1].stop == length
        assert all(packing.n_tokens <= bounds.max_tokens_per_step for packing in toy.steps), (seed, bounds)


def test_keys_are_used_once_at_a_time() -> None:
    engine = Engine(Toy(), "last")
    engine.add(Ids(ids_of(3, 0)), "a")
    with pytest.raises(InvalidInputError, match="'a' already"):
        engine.add(Ids(ids_of(3, 0)), "a")
    assert len(drain(engine)) == 1
    engine.add(Ids(ids_of(3, 0)), "a")
    assert len(drain(engine)) == 1


def test_counters() -> None:
    engine = Engine(Toy(), "mean", Schedule(100, 50, 2))
    engine.add(Ids(ids_of(120, 0)), 0)
    engine.add(Ids(ids_of(30, 0)), 1)
    engine.step()
    progress = engine.progress
    assert (progress.tokens, progress.documents, progress.in_flight, progress.steps) == (80, 1, 1, 1)
    assert (progress.fill, progress.pending, progress.waiting) == (0.8, 0, 0)
    assert progress.state_bytes == 16
    drain(engine)
    assert engine.progress.tokens == 150


def test_a_run_does_not_wait_for_its_input() -> None:
    """Documents in flight go on while the input blocks: they are done before it has said another word."""
    gate = threading.Event()

    def documents() -> Iterator[Ids]:
        yield Ids(ids_of(400, 0))
        yield Ids(ids_of(30, 1))
        assert gate.wait(30)
        yield Ids(ids_of(15, 2))

    toy = Toy()
    run = Engine(toy, "last", Schedule(60, 20, 2)).run(documents())
    assert {next(run).key, next(run).key} == {0, 1}
    steps = len(toy.steps)
    threading.Timer(0.3, gate.set).start()
    assert next(run).key == 2
    assert len(toy.steps) == steps + 1  # it slept meanwhile
    assert list(run) == []


def test_a_document_whose_text_blocks_stops_no_other() -> None:
    gate = threading.Event()
    ids = ids_of(3000, 0)
    at = 0

    def pull(n: int) -> tuple[TokenArray, bool]:
        nonlocal at
        if at:
            assert gate.wait(30)
        at += n
        return ids[at - n : at], at >= len(ids)

    run = Engine(Toy(), "last", Schedule(60, 20, 2)).run([BlockingSource(pull), Ids(ids_of(400, 1)), Ids(ids_of(5, 2))])
    assert {next(run).key, next(run).key} == {1, 2}
    gate.set()
    (result,) = run
    assert isinstance(result, Pooled)
    np.testing.assert_allclose(result.vector, expected(ids, "last"))


def test_an_input_that_breaks_breaks_the_run_where_it_stands() -> None:
    def documents() -> Iterator[Ids]:
        yield Ids(ids_of(30, 1))
        raise ZeroDivisionError

    run = Engine(Toy(), "last", Schedule(60, 20, 2)).run(documents())
    with pytest.raises(ZeroDivisionError):
        list(run)


def test_an_abandoned_run_lets_go_of_its_input() -> None:
    closed = threading.Event()

    def documents() -> Iterator[Ids]:
        try:
            for number in range(10**9):
                yield Ids(ids_of(30, number))
        finally:
            closed.set()

    run = Engine(Toy(), "last", Schedule(60, 20, 2)).run(documents())
    next(run)
    run.close()
    assert closed.wait(10)
    for _ in range(100):
        if not any(thread.name == "thalweg-input" for thread in threading.enumerate()):
            return
        time.sleep(0.01)
    raise AssertionError("the thread of the input is still there")


class Tied(Live):
    """A source that another thread has a hold on: closing waits for that thread, which is about to wake the engine."""

    was_free = False

    def close(self) -> None:
        thread = threading.Thread(target=self.wake, daemon=True)
        thread.start()
        thread.join(10)
        self.was_free = not thread.is_alive()


def test_no_lock_is_held_while_a_source_is_closed() -> None:
    source = Tied()
    run = Engine(Toy(), "last", Schedule(60, 20, 2)).run([source, Ids(ids_of(30, 1))])
    assert next(run).key == 1
    run.close()
    assert source.was_free


def test_no_lock_is_held_while_an_engine_is_woken() -> None:
    free: list[bool] = []

    def ready() -> None:
        thread = threading.Thread(target=ahead.close, daemon=True)
        thread.start()
        thread.join(10)
        free.append(not thread.is_alive())

    started = threading.Event()
    ahead = ReadAhead((started.wait() for _ in range(3)), 1, ready)
    started.set()
    for _ in range(1000):
        if len(free) == 2:  # the first item, and the end
            break
        time.sleep(0.01)
    assert free == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("blocked", [False, True], ids=["there", "its text comes late"])
def test_sections_in_order_are_held_up_to_a_bound(size: int, pooling: str, blocked: bool) -> None:
    """However long the documents are that an earlier one keeps waiting, and in however many rows."""
    gate = threading.Event()
    lengths = [1500, *(1000, 5, 150, 17) * 3]
    ids = [ids_of(length, number) for number, length in enumerate(lengths)]

    def pull_from(at: int) -> tuple[TokenArray, bool]:
        if blocked:
            assert gate.wait(30)
        return ids[0], True

    sources: list[TokenSource] = [BlockingSource(pull_from), *(Ids(each) for each in ids[1:])]
    toy = Toy()
    engine = Engine(toy, pooling, Schedule(60, 20, 3), probe_id=1)
    queue, held = ReorderBuffer(), [0]
    queue.CAPACITY = 30
    run = engine.run(
        sources,
        section_size=size,
        may_start=queue.has_room,
        is_early=queue.is_early,
        on_step=lambda _: held.append(len(queue)),
    )
    threading.Timer(0.1, gate.set).start()
    results = [(result.key, result.section) for result in queue.release(run) if isinstance(result, Pooled)]
    assert max(held) <= 30 + 3 * 42 + 60, "what was read of each and a step gives more than there is room for"
    assert results == sorted(results)
    assert Counter(key for key, _ in results) == {
        number: max(1, -(-(length - 1) // size)) for number, length in enumerate(lengths)
    }


def test_results_that_nobody_takes_hold_their_document_back() -> None:
    """Another thread's documents go on through the same engine meanwhile."""
    engine = Engine(Toy(), "mean", Schedule(60, 20, 3))
    mine = engine.run([Ids(ids_of(60_000, 0))], section_size=2)
    assert next(mine).key == 0
    assert len(list(engine.run(Ids(ids_of(5000, number)) for number in range(30)))) == 30
    assert engine.progress.tokens < 30 * 5000 + 2 * MOST_RESULTS + 200
    assert sum(1 for _ in mine) == 30_000 - 1


@pytest.mark.slow
@pytest.mark.parametrize("end", ["to the end", "abandoned", "not begun"])
def test_an_engine_goes_with_its_last_user(end: str) -> None:
    """And the states with it, which can be hundreds of megabytes: nothing waits for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        engine = Engine(Toy(), "mean", Schedule(60, 20, 3))
        run = engine.run([Ids(ids_of(500, number)) for number in range(4)])
        gone = weakref.ref(engine)
        del engine
        assert gone() is not None
        if end == "to the end":
            assert len(list(run)) == 4
        elif end == "abandoned":
            next(run)
        del run
        assert gone() is None
    finally:
        gc.enable()


class Saving(Ids):
    """A source that is given its state after every 70 tokens."""

    def __init__(self, ids: TokenArray, state: DocumentState | None = None) -> None:
        super().__init__(ids)
        self.state = state
        self.state_at = (0 if state is None else state.n_tokens) + 70
        self.kept: list[DocumentState] = []

    def keep(self, state: DocumentState) -> None:
        self.kept.append(state)
        self.state_at += 70


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_states_on_the_way_are_those_of_exact_tokens_and_can_be_gone_on_from(pooling: str) -> None:
    documents = [ids_of(n, n) for n in (10, 69, 70, 71, 140, 333, 600)]
    schedule = Schedule(vertical_chunk_size=32, max_tokens_per_step=100, max_in_flight=3)
    sources = [Saving(ids) for ids in documents]
    for result in Engine(Toy(), pooling, schedule).run(sources):
        assert isinstance(result, Pooled)
        assert np.allclose(result.vector, expected(documents[result.key], pooling), atol=1e-5)
    for ids, source in zip(documents, sources, strict=True):
        assert [state.n_tokens for state in source.kept] == list(range(70, len(ids), 70))
        for state in source.kept:
            again = Saving(ids[state.n_tokens :], state)
            (result,) = Engine(Toy(), pooling, schedule).run([again])
            assert isinstance(result, Pooled)
            assert result.stop == len(ids)
            assert np.allclose(result.vector, expected(ids, pooling), atol=1e-5)
            assert [each.n_tokens for each in again.kept] == list(range(state.n_tokens + 70, len(ids), 70))
