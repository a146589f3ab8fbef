"""Sections of any boundaries, modes, look-ahead and schedules, against what they are by definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.test_engine import schedules
from tests.engine.toy import Toy, ids_of
from tests.examples import examples
from thalweg.engine.engine import Engine
from thalweg.engine.results import DocumentState, Pooled
from thalweg.engine.schedule import Schedule
from thalweg.engine.sections import TokenSections
from thalweg.engine.sources import Answer, Ids, TokenArray
from thalweg.errors import InvalidInputError
from thalweg.pooling import LastToken, Mean, Pooling

EOS = 7


class Cut:
    """Ids in pieces, and the boundaries that lie in what was given out, named as late as they may be."""

    def __init__(self, ids: TokenArray, ends: Sequence[int], most: int) -> None:
        self.source, self.ends, self.most = Ids(ids), list(ends), most
        self.given = 0

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        ids, answer = self.source.take(min(n, self.most))
        self.given += len(ids)
        return ids, answer

    def section_ends(self) -> list[int]:
        found = [end for end in self.ends if end < self.given]
        self.ends = self.ends[len(found) :]
        return found


def hidden(ids: TokenArray) -> np.ndarray:
    """Those of the toy."""
    count = np.arange(1, len(ids) + 1)
    return np.stack([count, np.cumsum(ids * count)], axis=1)


def pooled(ids: TokenArray, pooling: Pooling) -> np.ndarray:
    counted = hidden(ids)[-pooling.n_last :] if isinstance(pooling, LastToken) else hidden(ids)
    return np.asarray(counted.mean(axis=0))


def want(
    ids: TokenArray, start: int, stop: int, spec: TokenSections, pooling: Pooling, appends_eos: bool
) -> np.ndarray:
    """The vector of the section [start, stop), computed directly."""
    end = min(stop + spec.look_ahead, len(ids))
    if spec.with_mode(pooling).mode == "mean":
        return np.asarray(hidden(ids)[start:end].mean(axis=0))
    n_end = pooling.n_last if appends_eos else 0
    if end + n_end >= len(ids):
        return pooled(ids, pooling)
    probe = [EOS] * pooling.n_last if spec.are_probed(pooling, appends_eos=appends_eos) else []
    return pooled(np.append(ids[:end], probe).astype(np.int64), pooling)


def check(
    results: list[Any], ids: TokenArray, stops: Sequence[int], spec: TokenSections, pooling: Pooling, eos: bool
) -> None:
    starts = [0, *stops[:-1]]
    assert [(r.section, r.start, r.stop) for r in results] == list(zip(range(len(stops)), starts, stops, strict=True))
    assert [r.last for r in results] == [False] * (len(stops) - 1) + [True]
    for r in results:
        np.testing.assert_allclose(r.vector, want(ids, r.start, r.stop, spec, pooling, eos), rtol=1e-6)


POOLINGS = [LastToken(), LastToken(3), Mean(), Mean(2)]
MODES = [("prefix", pooling) for pooling in POOLINGS] + [("mean", Mean()), ("mean", Mean(2)), (None, LastToken())]


@examples(200)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    schedule=schedules,
    mode=st.sampled_from(MODES),
    look_ahead=st.sampled_from([0, 0, 1, 2, 5, 40, 1000]),
    eos=st.booleans(),
    most=st.integers(1, 90),
    data=st.data(),
)
def test_sections_that_the_source_finds(
    lengths: list[int], schedule: Schedule, mode: Any, look_ahead: int, eos: bool, most: int, data: st.DataObject
) -> None:
    spec, pooling = TokenSections(None, mode[0], look_ahead), mode[1]
    schedule = Schedule(max(schedule.max_tokens_per_step, 3), schedule.vertical_chunk_size, schedule.max_in_flight)
    documents = [ids_of(n + pooling.n_last, i) for i, n in enumerate(lengths)]
    ends = [
        sorted(data.draw(st.sets(st.integers(1, len(ids) - pooling.n_last), max_size=len(ids)))) for ids in documents
    ]
    toy = Toy()
    engine = Engine(toy, pooling, schedule, probe_id=EOS, appends_eos=eos)
    sources = [Cut(ids, cut, most) for ids, cut in zip(documents, ends, strict=True)]
    results = list(engine.run(sources, section_size=spec))
    for index, (ids, cut) in enumerate(zip(documents, ends, strict=True)):
        mine = [r for r in results if isinstance(r, Pooled) and r.key == index]
        check(mine, ids, [*cut, len(ids)], spec, pooling, eos)
    assert all(p.n_tokens <= schedule.max_tokens_per_step for p in toy.steps)
    assert toy.most_states <= schedule.max_in_flight


@examples(100)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    schedule=schedules,
    every=st.integers(1, 90),
    mode=st.sampled_from(MODES),
    look_ahead=st.sampled_from([0, 1, 30, 1000]),
)
def test_sections_of_so_many_tokens(
    lengths: list[int], schedule: Schedule, every: int, mode: Any, look_ahead: int
) -> None:
    spec, pooling = TokenSections(every, mode[0], look_ahead), mode[1]
    documents = [ids_of(n, i) for i, n in enumerate(lengths)]
    results = list(Engine(Toy(), pooling, schedule, probe_id=EOS).run([Ids(d) for d in documents], section_size=spec))
    for index, ids in enumerate(documents):
        stops = [stop for stop in range(every, len(ids), every) if stop + pooling.n_last < len(ids)]
        mine = [r for r in results if isinstance(r, Pooled) and r.key == index]
        check(mine, ids, [*stops, len(ids)], spec, pooling, True)


@pytest.mark.parametrize(("mode", "pooling"), MODES)
def test_sections_of_a_document_that_goes_on_from_a_state(mode: Any, pooling: Pooling) -> None:
    """What came before counts in the text so far, and in no section's own mean. The state at the end is of all."""
    ids, n_before = ids_of(150, 0), 60
    engine = Engine(Toy(), pooling, Schedule(50, 20, 3), probe_id=EOS)
    engine.add(Ids(ids[:n_before]), 0, keep_state=True)
    spec = TokenSections(25, mode, 4)
    state = only_state(engine)
    engine.add(Ids(ids[n_before:]), 1, state=state, keep_state=True, section_size=spec)
    results = [r for r in drain(engine) if isinstance(r, Pooled)]
    assert [(r.start, r.stop) for r in results] == [(60, 85), (85, 110), (110, 135), (135, 150)]
    for r in results:
        np.testing.assert_allclose(r.vector, want(ids, r.start, r.stop, spec, pooling, True), rtol=1e-6)
    after = results[-1].state
    assert after is not None
    assert (after.n_tokens, after.sums.count) == (150, 150 if isinstance(pooling, Mean) else 0)


def drain(engine: Engine) -> list[Any]:
    results: list[Any] = []
    while not engine.idle:
        results += engine.step()
    return results


def only_state(engine: Engine) -> DocumentState:
    (result,) = drain(engine)
    assert result.state is not None
    state: DocumentState = result.state
    return state


def test_only_sections_that_are_open_are_remembered() -> None:
    engine = Engine(Toy(), "mean", Schedule(50, 20, 3))
    engine.add(Ids(ids_of(5000, 0)), 0, section_size=TokenSections(5, "mean", 10))
    (document,) = engine._documents.values()
    most = 0
    while not engine.idle:
        engine.step()
        most = max(most, len(document.section_sums._begins or ()))
    assert most == 3


@pytest.mark.parametrize(
    ("spec", "pooling", "message"),
    [
        (lambda: TokenSections(0), "mean", "section_size must be at least 1, got 0"),
        (lambda: TokenSections(5, "middle"), "mean", "mode must be one of mean, prefix, got 'middle'"),  # type: ignore[arg-type]
        (lambda: TokenSections(5, look_ahead=-1), "mean", "look_ahead must be at least 0, got -1"),
        (lambda: TokenSections(5, "mean"), "last", "mode 'mean' need mean pooling, not 'last'"),
        (lambda: TokenSections(5, "prefix"), "mean", "need the EOS id"),
        (TokenSections, "mean", r"Ids has no section_ends\(\): say how many tokens"),
    ],
)
def test_sections_that_cannot_be(spec: Any, pooling: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        raise next(r.error for r in Engine(Toy(), pooling).run([Ids(ids_of(9, 0))], section_size=spec()))


@pytest.mark.parametrize("ends", [[3, 3], [5, 4], [0]])
def test_ends_that_do_not_ascend(ends: list[int]) -> None:
    engine = Engine(Toy(), "mean")
    (failure,) = engine.run([Cut(ids_of(9, 0), ends, 20)], section_size=TokenSections())
    with pytest.raises(InvalidInputError, match=r"a section ends at token \d"):
        raise failure.error  # type: ignore[union-attr]


class Leg(Cut):
    """A part of a document: it goes on from a state, and its last section goes on behind its end."""

    keep_state = True

    def __init__(self, ids: TokenArray, first: int, ends: Sequence[int], most: int, state: Any, spec: Any) -> None:
        super().__init__(ids, [end for end in ends if first < end < first + len(ids)], most)
        self.given, self.state, self.sections = first, state, spec


@examples(150)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    schedule=schedules,
    mode=st.sampled_from(MODES),
    appends_eos=st.booleans(),
)
def test_a_document_in_parts_has_the_sections_of_the_whole(
    data: st.DataObject, lengths: list[int], schedule: Schedule, mode: Any, appends_eos: bool
) -> None:
    name, pooling = mode
    total = sum(lengths)
    ids = ids_of(total, 3)
    cuts = {sum(lengths[:n]) for n in range(1, len(lengths))}
    free = sorted(set(range(1, total)) - cuts)
    ends = sorted(data.draw(st.sets(st.sampled_from(free), max_size=12))) if free else []
    state: DocumentState | None = None
    results: list[Pooled] = []
    first = 0
    for number, length in enumerate(lengths):
        last = number == len(lengths) - 1
        spec = TokenSections(None, name, open_ended=not last)
        leg = Leg(ids[first : first + length], first, ends, data.draw(st.integers(1, 40)), state, spec)
        engine = Engine(Toy(), pooling, schedule, probe_id=EOS, appends_eos=appends_eos)
        found = list(engine.run([leg]))
        assert all(isinstance(result, Pooled) for result in found)
        results += [r for r in found if isinstance(r, Pooled) and (last or not r.last)]
        state = next(r.state for r in found if isinstance(r, Pooled) and r.last)
        first += length
    check(results, ids, [*ends, total], TokenSections(None, name), pooling, appends_eos)


def test_sections_that_go_on_have_no_look_ahead_and_name_their_ends() -> None:
    for options in ({"look_ahead": 3}, {"every": 4}):
        with pytest.raises(InvalidInputError, match="sections that go on"):
            TokenSections(open_ended=True, **options)
