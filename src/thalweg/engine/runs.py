"""Iterables of documents through one engine, from one thread or from several at a time.

The threads that want results take turns at leading: the leader adds what its own input holds and makes one step, which
moves everybody's documents. There is no thread of the engine's own, and never more than one step at a time.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from thalweg.engine.gate import Gate
from thalweg.engine.read_ahead import ReadAhead
from thalweg.engine.results import DocumentState, Failure, Pooled, Progress
from thalweg.engine.sections import TokenSections
from thalweg.engine.sources import Answer, TokenSource

READ_AHEAD = 32
"""Documents that are read ahead from an input that may block."""

MOST_RESULTS = 4096
"""Results that a run holds for a caller who does not take them, before no further document of it is begun and no
further section worked on."""


class Steps(Protocol):
    """What runs need of an engine."""

    last_tokens: Counter[Hashable]

    @property
    def progress(self) -> Progress: ...
    def add(
        self,
        source: TokenSource,
        key: Hashable,
        *,
        state: DocumentState | None = None,
        keep_state: bool = False,
        shares_state: bool = False,
        section_size: int | TokenSections | None = None,
        client: Hashable = None,
    ) -> None: ...
    def remove(self, key: Hashable) -> bool: ...
    def read(self) -> list[tuple[Hashable, Exception]]: ...
    def advance(self) -> list[Pooled | Failure]: ...
    def is_full(self, client: Hashable = None) -> bool: ...
    def has_place(self, key: Hashable) -> bool: ...
    def keys(self) -> list[Any]: ...
    def tidy(self) -> None: ...


class _Key(NamedTuple):
    """The key of a document of a run."""

    run: int
    number: int

    def __repr__(self) -> str:
        return str(self.number)


class _Run:
    """One caller's documents. may_start, is_early: see `Engine.run`."""

    def __init__(
        self,
        documents: Iterable[TokenSource],
        ready: Callable[[], None],
        *,
        section_size: int | TokenSections | None,
        may_start: Callable[[], bool],
        is_early: Callable[[int], bool] | None,
        blocking: bool,
    ) -> None:
        self.section_size, self.may_start, self.is_early = section_size, may_start, is_early
        self.iterator = None if blocking else iter(documents)
        self.thread = ReadAhead(documents, READ_AHEAD, ready) if blocking else None
        self.ended = False
        self.number = 0  # documents added
        self.placed = 0  # documents before which all have a place in the engine, or have left
        self.gates: dict[int, Gate] = {}  # of documents with sections
        self.left = 0  # documents in the engine
        self.results: deque[Pooled | Failure] = deque()
        self.error: BaseException | None = None
        self.tokens = self.documents = self.steps = 0
        self.stuck_at = -1

    def next(self) -> TokenSource | None:
        """The next document, None where there is none now or, then `ended`, ever."""
        if self.iterator is not None:
            source = next(self.iterator, None)
            self.ended = source is None
        else:
            assert self.thread is not None
            source, answer = self.thread.poll()
            self.ended = answer is Answer.ENDED
        return source

    @property
    def has_news(self) -> bool:
        return bool(self.results or self.error is not None or (self.ended and not self.left))


class Runs:
    """All runs of an engine."""

    def __init__(self, engine: Steps) -> None:
        self._engine: Steps = weakref.proxy(engine)  # so that an engine's states go with its last user, not some time
        self._runs: dict[int, _Run] = {}
        self._next_id = 0
        self._changed = threading.Condition()
        self._generation = 0  # of what happened: a run that had nothing to do looks again when it is another one
        self._line: deque[_Run] = deque()  # runs that want to lead
        self._leading = False

    def notify(self) -> None:
        """Something happened: a document or its text has come. May be called from any thread."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    def run(
        self,
        engine: Steps,
        documents: Iterable[TokenSource],
        *,
        section_size: int | TokenSections | None,
        may_start: Callable[[], bool],
        is_early: Callable[[int], bool] | None,
        on_step: Callable[[Progress], None] | None,
        blocking: bool,
    ) -> Iterator[Pooled | Failure]:
        """See `Engine.run`. engine: the one that these are the runs of; it lives as long as the run does."""
        run = _Run(
            documents,
            self.notify,
            section_size=section_size,
            may_start=may_start,
            is_early=is_early,
            blocking=blocking,
        )
        with self._changed:
            number, self._next_id = self._next_id, self._next_id + 1
            self._runs[number] = run
        told = 0
        try:
            while True:
                if self._may_lead(run):
                    self._lead(number, run)
                if on_step and run.steps > told:
                    told = run.steps
                    on_step(self._progress(run))
                while run.results:
                    yield run.results.popleft()
                if run.error is not None:
                    raise run.error
                if run.ended and not run.left and not run.results:
                    return
        finally:
            self._forget(engine, number, run)

    def _may_lead(self, run: _Run) -> bool:
        """Sleep until a run has news (False) or its turn to lead has come (True)."""
        with self._changed:
            while True:
                if run.has_news:
                    if run in self._line:
                        self._line.remove(run)
                        self._changed.notify_all()
                    return False
                if run.stuck_at != self._generation and run not in self._line:
                    self._line.append(run)
                if not self._leading and self._line and self._line[0] is run:
                    self._line.popleft()
                    self._leading = True
                    return True
                self._changed.wait()

    def _lead(self, number: int, run: _Run) -> None:
        """Add what the run's input holds, make a step, and give everybody what is theirs."""
        with self._changed:
            generation = self._generation
            gates = [gate for each in self._runs.values() for gate in each.gates.values()]
        before = self._engine.progress.steps
        moved = False
        try:
            for gate in gates:
                gate.look()
            moved = self._add(number, run)
            broken = self._engine.read()
            results = self._engine.advance()
            moved = moved or bool(results or broken) or self._engine.progress.steps > before
            self._deliver(results, broken)
        except BaseException as error:
            # What a step left half done cannot be gone on with, whoever's documents were in it.
            for key in list(self._engine.keys()):
                self._engine.remove(key)
            with self._changed:
                for other in self._runs.values():
                    other.error = other.error or error
        finally:
            with self._changed:
                self._leading = False
                if moved:
                    self._generation += 1
                else:
                    run.stuck_at = generation
                self._changed.notify_all()

    def _add(self, number: int, run: _Run) -> bool:
        """Documents from the run's input, while they would be looked at in the next step; whether there were any."""
        count = run.number
        try:
            while not run.ended and len(run.results) < MOST_RESULTS and run.may_start():
                if self._engine.is_full(client=number):
                    break
                source = run.next()
                if source is None:
                    break
                state = getattr(source, "state", None)
                keep_state, shares_state = (getattr(source, name, False) for name in ("keep_state", "shares_state"))
                sections = getattr(source, "sections", None)
                if run.section_size is not None:
                    source = run.gates[run.number] = Gate(source, self._hold(number, run, run.number))
                self._engine.add(
                    source,
                    _Key(number, run.number),
                    state=state,
                    keep_state=keep_state,
                    shares_state=shares_state,
                    section_size=run.section_size if sections is None else sections,
                    client=number,
                )
                run.number += 1
                run.left += 1
        except BaseException as error:  # the input's own: no other run's business
            run.error = error
        return run.number > count

    def _hold(self, number: int, run: _Run, document: int) -> Callable[[], bool]:
        """Whether a document with sections has to wait, as there is no room for what it would give.

        In a run that gives its results in order (`is_early`), no document begins before all earlier ones have a place
        in the engine: otherwise documents that wait for an earlier one could have all places that it needs.
        """

        def has_place(document: int) -> bool:
            return self._engine.has_place(_Key(number, document))

        def is_held() -> bool:
            if len(run.results) >= MOST_RESULTS:
                return True
            if run.is_early is None:
                return False
            while run.placed < document and has_place(run.placed):
                run.placed += 1
            return run.placed < document or run.is_early(document)

        return is_held

    def _deliver(self, results: list[Pooled | Failure], broken: list[tuple[Any, Exception]]) -> None:
        tokens = self._engine.last_tokens
        with self._changed:
            for number, run in self._runs.items():
                run.tokens += tokens.get(number, 0)
                run.steps += bool(tokens.get(number, 0))
            for result in results:
                owner = self._runs.get(result.key.run)
                if owner is None:
                    continue
                ended = isinstance(result, Failure) or result.last
                owner.left -= ended
                if ended:
                    owner.gates.pop(result.key.number, None)
                owner.documents += isinstance(result, Pooled) and result.last
                owner.results.append(replace(result, key=result.key.number))
            for key, error in broken:
                owner = self._runs.get(key.run)
                if owner is not None:
                    owner.error = owner.error or error

    def _progress(self, run: _Run) -> Progress:
        """The engine's counters, with what the run itself has done."""
        return self._engine.progress._replace(tokens=run.tokens, documents=run.documents)

    def _forget(self, engine: Steps, number: int, run: _Run) -> None:
        """The run is over, or its caller has gone: nothing of it is worked on any more. engine: `_engine` may be gone
        already where the garbage collector ends a run."""
        with self._changed:
            del self._runs[number]
            if run in self._line:
                self._line.remove(run)
        if run.thread is not None:
            run.thread.close()
        mine = [key for key in engine.keys() if key.run == number]  # noqa: SIM118 - no mapping
        for key in mine:
            engine.remove(key)
        with self._changed:
            may_tidy = not self._leading
            self._leading = self._leading or may_tidy
        try:
            if may_tidy:
                engine.tidy()  # without the lock: it closes sources, and those may wait for `notify`
        finally:
            with self._changed:
                self._leading = self._leading and not may_tidy
                self._generation += 1
                self._changed.notify_all()
