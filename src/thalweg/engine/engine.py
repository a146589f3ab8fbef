"""The vertical schedule: any number of documents of any length through any recurrent model, in bounded memory.

A step is one packed run through all layers. Documents in flight hold one row of the state each and advance by at most
`vertical_chunk_size` tokens; short documents are packed beside them and leave in the step they came in, without ever
owning a state. (Vertically chunked inference: arXiv 2604.18199.) Who takes part in a step is decided in `policy.py`.

The engine is driven: `add` documents, `step`, take what it returns. `run` does that for an iterable of documents.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

from thalweg.engine.document import Document
from thalweg.engine.policy import COMPANY_TOKENS, PATIENCE, Pending, shares
from thalweg.engine.results import DocumentState, Failure, Pooled, Progress
from thalweg.engine.runs import Runs
from thalweg.engine.schedule import Schedule
from thalweg.engine.sections import TokenSections
from thalweg.engine.sources import Answer, TokenSource
from thalweg.engine.states import StateStore, largest_layer_nbytes, nbytes
from thalweg.engine.step import Found, Step
from thalweg.errors import InvalidInputError, ThalwegError
from thalweg.models.protocol import RecurrentModel, State
from thalweg.pooling import Pooling, make_pooling
from thalweg.pooling.pooling import RunningMean
from thalweg.system.malloc import reserve


class Chosen(NamedTuple):
    """The documents of a step and how many tokens of each: those in flight, short ones that begin with a shared state,
    and others that begin."""

    carried: list[tuple[Document, int]]
    shared: list[tuple[Document, int]]
    new: list[tuple[Document, int]]


class Engine:
    """Runs documents through a model and pools their hidden vectors.

    `add`, `remove` and `wake` may be called from any thread; `step` and `run` are for one thread at a time.

    Args:
        model: any `RecurrentModel`.
        pooling: how hidden vectors become one, or the name of such a pooling.
        schedule: the bounds.
        probe_id: with sections that stand for all text up to their end, the id (EOS) that ends a text; it is fed to a
            copy of the state there and leaves the document undisturbed.
        appends_eos: whether documents end with that id. Where they do not, the mean up to a section's end needs none.
    """

    def __init__(
        self,
        model: RecurrentModel,
        pooling: Pooling | str,
        schedule: Schedule | None = None,
        *,
        probe_id: int | None = None,
        appends_eos: bool = True,
    ) -> None:
        self.model = model
        self.pooling = make_pooling(pooling)
        self.schedule = schedule or Schedule()
        self.probe_id = probe_id
        self.appends_eos = appends_eos
        one_state = model.init_state(1)
        self._store = StateStore(one_state)
        self._one_state_bytes, self._one_layer_bytes = nbytes(one_state), largest_layer_nbytes(one_state)
        self._documents: dict[Hashable, Document] = {}  # all that were added and have not left
        self._resting: list[Document] = []  # in flight, but not in the last step: the next rows of the store
        self._flying: list[Document] = []  # in flight: the rows after them
        self._pending = Pending(self.schedule)
        self._failures: list[tuple[Document, Failure]] = []
        self._broken: list[tuple[Hashable, Exception]] = []
        self._probing: list[Document] = []  # whose probe is in the next step
        self._shared: list[State | None] = []  # shared by short documents: the store's first rows, once there are any
        self._n_parked = 0
        self._tokens = self._ended = self._steps = self._last_tokens = 0
        self._stuck = True
        self._company = -PATIENCE  # the last step with short documents beside another client's
        self._lock = threading.RLock()  # the garbage collector may end a run, which removes its documents, anywhere
        self._inbox: list[tuple[str, Document]] = []
        self._signal = threading.Event()
        self._runs = Runs(self)
        self.last_tokens: Counter[Hashable] = Counter()  # of the last step, by client

    # -- what others may call --------------------------------------------------------------------------------------

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
        priority: int = 0,
    ) -> None:
        """Take in a document; from the next step on it is worked on.

        Args:
            source: its tokens. It is pulled by whoever calls `step`.
            key: what its results are called.
            state: where it goes on from, as a result with `keep_state` gave it; None: anew.
            keep_state: whether its last result holds the state at its end.
            shares_state: others begin with the very same `state`: short ones read it where it is, without a row of
                their own.
            section_size: tokens of a section, or how else the document is cut; None for one vector.
            client: whose it is. Clients share the engine fairly.
            priority: documents of a higher one begin first.

        Raises:
            InvalidInputError: a key that is in use, or sections that the model cannot give.
        """
        sections = None if section_size is None else TokenSections.of(section_size).with_mode(self.pooling)
        n_probe = self._n_probe(sections)
        document = Document(
            key,
            source,
            RunningMean(self.pooling.width(self.model.d_model)),
            self.pooling.n_last,
            sections,
            n_probe,
            n_probe if self.appends_eos and not (sections and sections.open_ended) else 0,
            state,
            keep_state,
            shares_state and state is not None and self.schedule.max_shared > 0,
            client,
            priority,
        )
        with self._lock:
            if key in self._documents:
                raise InvalidInputError(f"the engine has a document with the key {key!r} already; remove it first")
            self._documents[key] = document
            self._inbox.append(("add", document))
        subscribe = getattr(source, "subscribe", None)
        if subscribe is not None:
            subscribe(lambda: self._post("wake", document))
        self._happened()

    def remove(self, key: Hashable) -> bool:
        """Drop a document: nothing of it leaves from now on, and the next step has its place for others.

        Returns whether it was there.
        """
        with self._lock:
            document = self._documents.pop(key, None)
        if document is not None:
            self._post("remove", document)
        return document is not None

    def wake(self, key: Hashable) -> None:
        """Say that a source that answered WAITING has more. Nothing happens where there is no such document."""
        with self._lock:
            document = self._documents.get(key)
        if document is not None:
            self._post("wake", document)

    def __len__(self) -> int:
        """Documents that were added and have not left."""
        return len(self._documents)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do: no document, or the last step found none that could go on, and nothing has
        happened since."""
        return not self._inbox and (self._stuck or not self._documents)

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until a document is added, removed or woken, at most `timeout` seconds; whether one was."""
        happened = self._signal.wait(timeout)
        self._signal.clear()
        return happened

    def interrupt(self) -> None:
        """Have whoever is in `wait` look again."""
        self._happened()

    @property
    def progress(self) -> Progress:
        """Counters of what has been done and what is there."""
        documents = list(self._documents.values())
        in_flight = len(self._resting) + len(self._flying)
        return Progress(
            tokens=self._tokens,
            documents=self._ended,
            in_flight=in_flight,
            steps=self._steps,
            fill=self._last_tokens / self.schedule.max_tokens_per_step,
            pending=max(0, len(documents) - in_flight),
            waiting=sum(document.answer is Answer.WAITING for document in documents),
            state_bytes=self._store.nbytes + self._n_parked * self._one_state_bytes,
        )

    def step(self) -> list[Pooled | Failure]:
        """One packed run, and what it finished; nothing where nothing can be run.

        A document whose source raises a `ThalwegError` or `OSError`, or whose numbers became inf or NaN, is a
        `Failure`; anything else is raised.
        """
        for _, error in self.read():
            raise error
        return self.advance()

    def run(
        self,
        documents: Iterable[TokenSource],
        *,
        section_size: int | TokenSections | None = None,
        may_start: Callable[[], bool] | None = None,
        is_early: Callable[[int], bool] | None = None,
        on_step: Callable[[Progress], None] | None = None,
        blocking: bool | None = None,
    ) -> Iterator[Pooled | Failure]:
        """Embed documents as they come; results leave as they are ready, in no particular order.

        Several threads may run their documents through one engine: each gets the results of its own, and the engine is
        shared as among clients. It is either run or stepped by hand.

        Args:
            documents: pulled when there is room for another; their keys are their numbers.
            section_size: as in `add`.
            may_start: asked before a document is taken in; False holds the input back while those under way go on.
            is_early: for results in order: whether a document is another's successor and its sections would have to be
                held for long; True makes it wait where it is. Documents then begin in order.
            on_step: called between steps with what the run has done.
            blocking: whether `documents` may block, and so is pulled by a thread of its own, a little ahead of what is
                needed: no document in flight waits for it. None: unless it is a sequence.
        """
        return self._runs.run(
            self,
            documents,
            section_size=section_size,
            may_start=may_start or (lambda: True),
            is_early=is_early,
            on_step=on_step,
            blocking=not isinstance(documents, Sequence) if blocking is None else blocking,
        )

    # -- what runs need ----------------------------------------------------------------------------------------------

    def read(self) -> list[tuple[Hashable, Exception]]:
        """Look ahead in the documents whose turn may come. Returns the keys of those whose source broke in a way that
        no document should, and how; they are gone."""
        self._take_in()
        self._read_in_flight()
        self._pending.read(self._look_ahead)
        broken, self._broken = self._broken, []
        return broken

    def advance(self) -> list[Pooled | Failure]:
        """One packed run of what was read ahead."""
        chosen = self._choose()
        results: list[Found] = [*self._failures]
        self._failures = []
        runs = any(chosen) or bool(self._probing)
        self._stuck = not (results or runs)
        self.last_tokens = Counter()
        if runs:
            results += self._run(chosen)
        left = self._leave(results)
        if runs:
            self._give_states()
        return left

    def is_full(self, client: Hashable = None) -> bool:
        """Whether another document of a client would not be looked at before the next step."""
        self._take_in()
        self._pending.read(self._look_ahead)
        return self._pending.is_full(client)

    def has_place(self, key: Hashable) -> bool:
        """Whether a document is in flight, will be before any that is read later, or has left."""
        document = self._documents.get(key)
        if document is None or document in self._flying or document in self._resting:
            return True
        return self._pending.has_turn(document)

    def keys(self) -> list[Hashable]:
        """The keys of all documents that were added and have not left."""
        return list(self._documents)

    def tidy(self) -> None:
        """Let go of what was removed."""
        self._take_in()

    # -- the inbox ---------------------------------------------------------------------------------------------------

    def _post(self, what: str, document: Document) -> None:
        with self._lock:
            self._inbox.append((what, document))
        self._happened()

    def _happened(self) -> None:
        self._signal.set()
        self._runs.notify()

    def _take_in(self) -> None:
        """Do what was asked for since the last time."""
        with self._lock:
            messages, self._inbox = self._inbox, []
        for what, document in messages:
            if what == "remove":
                self._drop(document)
            elif self._documents.get(document.key) is not document:
                continue  # it has left
            elif what == "add":
                self._pending.add(document)
            elif document.answer is Answer.WAITING:
                document.answer = Answer.MORE
                if document not in self._flying and document not in self._resting:
                    self._pending.remove(document)
                    self._pending.add(document, first=True)

    def _drop(self, document: Document) -> None:
        """Forget a document and free its row."""
        self._pending.remove(document)
        self._n_parked -= document.parked
        document.parked = False
        self._free_row(document)
        close = getattr(document.source, "close", None)
        if close is not None:
            close()

    def _leave(self, results: Sequence[Found]) -> list[Pooled | Failure]:
        """The results of documents that were not removed meanwhile; those that have ended leave."""
        kept: list[Pooled | Failure] = []
        for document, result in results:
            ended = isinstance(result, Failure) or result.last
            with self._lock:
                if self._documents.get(document.key) is not document:
                    continue
                if ended:
                    del self._documents[document.key]
            kept.append(result)
            if ended:
                self._ended += isinstance(result, Pooled)
                self._drop(document)
        return kept

    # -- choosing ----------------------------------------------------------------------------------------------------

    def _look_ahead(self, document: Document, most: int | None = None) -> bool:
        """Fetch what a document may need for one step; False where there is nothing to be run."""
        try:
            document.look_ahead(most or self.schedule.vertical_chunk_size)
        except (ThalwegError, OSError) as error:
            self._failures.append((document, Failure(document.key, error)))
            return False
        except Exception as error:
            self._broken.append((document.key, error))
            self.remove(document.key)
            return False
        return document.ready > 0

    def _read_in_flight(self) -> None:
        # In company as much as such a step takes: others must not wait for text that is not needed yet.
        most = min(COMPANY_TOKENS, self.schedule.vertical_chunk_size) if self._in_company else None
        for document in [*self._resting, *self._flying]:
            self._look_ahead(document, most)
        for document, _ in self._failures:
            self._free_row(document)

    @property
    def _in_company(self) -> bool:
        return self._steps - self._company < PATIENCE

    def _choose(self) -> Chosen:
        """The documents of the next step and how many tokens of each.

        The store's rows are put in order for them: first those that rest, then those that go on.
        """
        bounds = self.schedule
        self._set_aside()
        in_flight = [*self._resting, *self._flying]
        free_rows = bounds.max_in_flight - len(in_flight)
        held = Counter(document.client for document in in_flight)
        begin = self._pending.take_long(free_rows, held, all_waiting=free_rows > 1 or not in_flight)
        probed = sorted((d for d in in_flight if d.probe), key=lambda document: document.last_step)
        self._probing = probed[: bounds.max_tokens_per_step // self.pooling.n_last]
        budget = bounds.max_tokens_per_step - len(self._probing) * self.pooling.n_last
        going = [d for d in in_flight if d.ready and (d.probe is None or d in self._probing)]
        for_short = min(self._pending.short_tokens(budget // 2), budget // 2)
        candidates = [*going, *begin]
        caps = [document.piece(bounds.vertical_chunk_size) for document in candidates]
        for_long = budget - for_short
        if for_short and len({document.client for document in self._documents.values()}) > 1:
            self._company = self._steps
        if self._in_company:
            for_long = min(for_long, max(COMPANY_TOKENS, for_short, len(candidates)))
        parts = shares(candidates, caps, for_long)
        chosen = {document: n for document, n in zip(candidates, parts, strict=True) if n}
        short, starts = self._pending.take_short(budget - sum(parts))
        self._hold_shared(starts)
        for document in reversed(begin):
            if document not in chosen:
                self._pending.put_back(document)
        self._keep_rows([d for d in in_flight if d not in chosen], [d for d in in_flight if d in chosen])
        self._give_rows([document for document in begin if document in chosen and document.state is not None])
        new = [
            (document, chosen[document]) for document in begin if document in chosen and document not in self._flying
        ]
        return Chosen(
            carried=[(document, chosen[document]) for document in self._flying],
            shared=[(document, document.n_ahead) for document in short if document.start is not None],
            new=[*new, *((document, document.n_ahead) for document in short if document.start is None)],
        )

    def _give_states(self) -> None:
        """Give sources that want it the state at the token where they want it."""
        for document, row in self._rows().items():
            if document.done == document.state_at and document.probe is None:
                sums, section = document.sums.copy(), document.open_section
                state = DocumentState(self._store.copy(row), sums, document.done, section)
                document.source.keep(state)  # type: ignore[attr-defined]

    # -- rows of states ----------------------------------------------------------------------------------------------

    def _keep_rows(self, resting: Sequence[Document], flying: Sequence[Document]) -> None:
        """The store's rows after the shared ones become those of these documents, in this order."""
        rows = self._rows()
        self._store.arrange([*range(len(self._shared)), *(rows[document] for document in [*resting, *flying])])
        self._resting, self._flying = list(resting), list(flying)

    def _rows(self) -> dict[Document, int]:
        """The row of each document in flight."""
        first = len(self._shared)
        return {document: first + n for n, document in enumerate([*self._resting, *self._flying])}

    def _give_rows(self, documents: Sequence[Document]) -> None:
        """Give documents that go on from a state a row with it."""
        for document in documents:
            assert document.state is not None
            row = len(self._shared) + len(self._resting) + len(self._flying)
            self._store.ensure_capacity(row + 1)
            self._store.write(row, document.state.model)
            self._n_parked -= document.parked
            document.state, document.parked = None, False
            self._flying.append(document)

    def _hold_shared(self, states: Sequence[State]) -> None:
        """Have the store's first rows hold these states. Those that are there already stay where they are."""
        new = [state for state in states if not any(state is each for each in self._shared)]
        if not new:
            return
        if not self._shared:
            n, most = len(self._resting) + len(self._flying), self.schedule.max_shared
            self._store.ensure_capacity(n + most)
            self._store.arrange([*range(n, n + most), *range(n)])
            self._shared = [None] * most
        free = (row for row, held in enumerate(self._shared) if not any(held is each for each in states))
        for row, state in zip(free, new, strict=False):
            self._store.write(row, state)
            self._shared[row] = state

    def _shared_row(self, document: Document) -> int:
        return next(row for row, state in enumerate(self._shared) if state is document.start)

    def _free_row(self, document: Document) -> None:
        self._keep_rows([d for d in self._resting if d is not document], [d for d in self._flying if d is not document])

    def _set_aside(self) -> None:
        """Take rows from documents that wait for their text, and from clients that hold more than their share, for
        those that want one; as many as may be parked."""
        wanted = self._pending.wants_rows()
        in_flight = [*self._resting, *self._flying]
        held = Counter(document.client for document in in_flight)
        missing = sum(wanted.values()) - (self.schedule.max_in_flight - len(in_flight))
        clients = set(held) | set(wanted)
        share = -(-self.schedule.max_in_flight // len(clients)) if clients else 0
        poor = sum(min(n, max(0, share - held[client])) for client, n in wanted.items())
        for document in sorted(in_flight, key=lambda document: (document.ready > 0, -document.done)):
            if missing <= 0 or self._n_parked >= self.schedule.max_parked:
                return
            if document.probe or (document.ready and (poor <= 0 or held[document.client] <= share)):
                continue
            self._park(document)
            held[document.client] -= 1
            missing -= 1
            poor -= 1

    def _park(self, document: Document) -> None:
        document.state = DocumentState(self._store.copy(self._rows()[document]), document.sums, document.done)
        document.parked, document.shares_state = True, False
        self._n_parked += 1
        self._free_row(document)
        if document.ready or document.answer is not Answer.WAITING:
            self._pending.add(document)

    # -- running -----------------------------------------------------------------------------------------------------

    def _run(self, chosen: Chosen) -> list[Found]:
        first, rows = len(self._shared) + len(self._resting), self._rows()
        shared = [(self._shared_row(document), document) for document, _ in chosen.shared]
        probes = [(rows[document], document) for document in self._probing]
        step = Step(self.pooling, chosen.carried, probes, shared, chosen.new, self.probe_id)
        self._store.ensure_capacity(first + len(step.wanted))
        if self.model.device.type == "cpu":
            fresh = len(step.wanted) * self._one_layer_bytes
            reserve([*self.model.activation_blocks(step.n_tokens), fresh])
        results = step.run(self.model, self._store, first, self._steps)
        for document, _ in step.parts:
            document.last_step = self._steps
        self._steps += 1
        self._last_tokens = step.n_tokens
        self._tokens += step.n_tokens
        for document, part in step.parts:
            self.last_tokens[document.client] += part.length
        self._flying = step.kept
        self._keep_rows(self._resting, [document for document in step.kept if document.n_ahead or not document.ended])
        return results

    def _n_probe(self, sections: TokenSections | None) -> int:
        """End tokens that are fed to a copy of the state at a section's end."""
        if sections is None or not sections.are_probed(self.pooling, appends_eos=self.appends_eos):
            return 0
        if self.probe_id is None:
            raise InvalidInputError("sections with last-token pooling or up to their end need the EOS id (probe_id)")
        if self.schedule.max_tokens_per_step < self.pooling.n_last:
            raise InvalidInputError(
                f"max_tokens_per_step={self.schedule.max_tokens_per_step} is too small for the {self.pooling.n_last} "
                f"end tokens of a section; it must be at least {self.pooling.n_last}"
            )
        return self.pooling.n_last
