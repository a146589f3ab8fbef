"""The vertical schedule: any number of documents of any length through any recurrent model, in bounded memory.

A step is one packed run through all layers. Documents in flight hold one row of the state each and advance in every
step, by at most `vertical_chunk_size` tokens; short documents are packed beside them and leave in the step they came
in, without ever owning a stored state. (Vertically chunked inference: arXiv 2604.18199.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thalweg.errors import InvalidInputError, ThalwegError
from thalweg.models.protocol import RecurrentModel, largest_layer_bytes
from thalweg.packing import Packing
from thalweg.pooling.lexicon import Lexicon
from thalweg.pooling.pooling import POOLINGS, Pooling, RunningMean
from thalweg.pooling.vectors import FloatArray
from thalweg.states import StateStore, select
from thalweg.system.malloc import reserve

TokenArray = npt.NDArray[np.integer]


class TokenSource(Protocol):
    """A document as the engine sees it: token ids to be pulled, the last one included (EOS, where the model has it)."""

    def take(self, n: int) -> tuple[TokenArray, bool]:
        """The next ids, exactly `n` unless the document ends, and whether it ends with them."""


class Ids:
    """A token source over ids that are already there."""

    def __init__(self, ids: TokenArray) -> None:
        self._ids = ids
        self._at = 0

    def take(self, n: int) -> tuple[TokenArray, bool]:
        ids = self._ids[self._at : self._at + n]
        self._at += len(ids)
        return ids, self._at == len(self._ids)


@dataclass(frozen=True, slots=True)
class Pooled:
    """A vector that is ready.

    index: number of the document in the input; section: number of the section in the document (0 without sections);
    start, stop: its tokens; vector: (d,) float32, neither cut nor normalised; last: nothing more of this document.
    """

    index: int
    section: int
    start: int
    stop: int
    vector: FloatArray
    last: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A document whose tokens could not be read to the end; vectors of earlier sections stay valid."""

    index: int
    error: Exception


class Progress(NamedTuple):
    """How far a run has come."""

    tokens: int
    documents: int
    in_flight: int
    steps: int


@dataclass(frozen=True)
class Schedule:
    """The bounds of a run.

    Args:
        max_tokens_per_step: tokens of one packed step over all documents.
        vertical_chunk_size: tokens of one document in one step, any number >= 1: it changes speed and memory only.
        max_in_flight: documents that may hold a state at the same time.
        section_size: tokens of a section, or None for one vector a document.
    """

    max_tokens_per_step: int = 2048
    vertical_chunk_size: int = 1024
    max_in_flight: int = 8
    section_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens_per_step", "vertical_chunk_size", "max_in_flight", "section_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {value}")
        slots = 2 * self.max_in_flight + 1
        if self.max_tokens_per_step < slots:
            raise InvalidInputError(
                f"max_tokens_per_step={self.max_tokens_per_step} is too small for max_in_flight={self.max_in_flight} "
                f"documents at once; it must be at least {slots}"
            )


class _Part(NamedTuple):
    """Neighbouring tokens of one section. `complete`: the section ends with them; `last`: so does the document.

    `probe`: not the section's own tokens but one EOS fed to a copy of the state at its end.
    """

    section: int
    section_start: int
    stop: int
    length: int
    complete: bool
    last: bool
    probe: bool = False


@dataclass
class _Document:
    """One document on its way: what it has still to say (looked ahead) and where its current section began."""

    index: int
    source: TokenSource
    mean: RunningMean
    section_size: int | None
    n_last: int = 1
    ahead: list[TokenArray] = field(default_factory=list)
    n_ahead: int = 0
    ended: bool = False
    done: int = 0
    section: int = 0
    section_start: int = 0
    probe: _Part | None = None

    def look_ahead(self, n: int) -> None:
        """Know the next `n` tokens, or the document's end."""
        while self.n_ahead < n and not self.ended:
            ids, self.ended = self.source.take(n - self.n_ahead)
            self.ahead.append(ids)
            self.n_ahead += len(ids)

    @property
    def section_end(self) -> int | None:
        """The token where the current section ends, None if that is beyond what is known.

        The end tokens on their own (EOS) are no section; they go with the one before.
        """
        known = self.done + self.n_ahead
        if self.ended and (self.section_size is None or self.section_start + self.section_size + self.n_last >= known):
            return known
        return None if self.section_size is None else self.section_start + self.section_size

    def n_pooled(self, part: _Part) -> int:
        """With last-token pooling: how many tokens of a part count, all at its end. What is looked ahead shows them."""
        if part.probe:
            return part.length
        total = self.done + self.n_ahead if self.ended else None
        return 0 if total is None else max(0, part.stop - max(total - self.n_last, part.stop - part.length))

    def take(self, n: int) -> tuple[TokenArray, list[_Part]]:
        """The next `n` ids, and the sections they belong to."""
        parts = []
        stop = self.done + n
        total = self.done + self.n_ahead if self.ended else None
        at = self.done
        while at < stop:
            end = self.section_end
            reach = stop if end is None else min(end, stop)
            parts.append(_Part(self.section, self.section_start, reach, reach - at, reach == end, reach == total))
            if reach == end:
                self.section, self.section_start = self.section + 1, end
            at = reach
        ids = self.ahead[0] if len(self.ahead) == 1 else np.concatenate(self.ahead)
        self.ahead, self.n_ahead, self.done = [ids[n:]], self.n_ahead - n, stop
        return ids[:n], parts


class Engine:
    """Runs documents through a model and pools their hidden vectors.

    Args:
        model: any `RecurrentModel`.
        pooling: "last" or "mean".
        schedule: the bounds.
        probe_id: with sections and last-token pooling, the id (EOS) whose hidden vector after a section stands for
            all text up to there; it is fed to a copy of the state and leaves the document undisturbed.
        n_last: last-token pooling takes the mean over so many tokens (a model trained with several EOS).
        lexicon: puts its mean of codes (K,) after that of the hidden vectors; with mean pooling only.
    """

    def __init__(
        self,
        model: RecurrentModel,
        pooling: Pooling,
        schedule: Schedule | None = None,
        *,
        probe_id: int | None = None,
        n_last: int = 1,
        lexicon: Lexicon | None = None,
    ) -> None:
        if pooling not in POOLINGS:
            raise InvalidInputError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.model = model
        self.pooling = pooling
        self.schedule = schedule or Schedule()
        self.probe_id = probe_id
        self.n_last = n_last
        self.lexicon = lexicon
        if n_last < 1:
            raise InvalidInputError(f"n_last must be at least 1, got {n_last}")
        if self.schedule.section_size and pooling == "last" and probe_id is None:
            raise InvalidInputError("sections with last-token pooling need the model's EOS id (probe_id)")
        if lexicon is not None and pooling != "mean":
            raise InvalidInputError(f"a lexicon goes with mean pooling only, not with {pooling!r}")
        self._width = model.d_model + (lexicon.d_lexicon if lexicon is not None else 0)
        self.progress = Progress(0, 0, 0, 0)

    def run(
        self,
        documents: Iterable[TokenSource],
        *,
        may_start: Callable[[], bool] | None = None,
        on_step: Callable[[Progress], None] | None = None,
    ) -> Iterator[Pooled | Failure]:
        """Embed documents as they come; results leave as they are ready, in no particular order.

        Args:
            documents: pulled when there is room for another.
            may_start: asked before a document is pulled; False holds the input back while those under way go on.
            on_step: called after every step.

        Raises nothing for a document whose source raises a `ThalwegError` or `OSError`: that is a `Failure` result.
        """
        incoming = enumerate(documents)
        waiting: deque[_Document] = deque()
        flying: list[_Document] = []
        store = StateStore(self.model.init_state(1))
        fresh_state = largest_layer_bytes(self.model.init_state(1))
        self._may_start = may_start or (lambda: True)
        exhausted = False
        while True:
            failures: list[Failure] = []
            keep = [row for row, document in enumerate(flying) if self._readable(document, failures)]
            if len(keep) < len(flying):
                flying = [flying[row] for row in keep]
                store.keep(keep)
            step = _Step(self, flying)
            exhausted = self._admit(step, waiting, incoming, exhausted, failures)
            yield from failures
            if not step.ids:
                if exhausted and not waiting:
                    return
                continue
            store.make_room(len(step.final))
            if self.model.device.type == "cpu":
                reserve([*self.model.activation_blocks(step.n_tokens), len(step.final) * fresh_state])
            results = step.run(store)
            flying = step.flying
            self._count(step, results)
            if on_step:
                on_step(self.progress)
            yield from results

    def _readable(self, document: _Document, failures: list[Failure]) -> bool:
        """Fetch what the document may need for one step; False (and a failure noted) where its source broke."""
        try:
            document.look_ahead(self.schedule.vertical_chunk_size + 1 + self.n_last)
        except (ThalwegError, OSError) as error:
            failures.append(Failure(document.index, error))
            return False
        if document.n_ahead == 0:
            failures.append(Failure(document.index, InvalidInputError("the document has no tokens; append an EOS")))
            return False
        return True

    def _admit(
        self,
        step: _Step,
        waiting: deque[_Document],
        incoming: Iterator[tuple[int, TokenSource]],
        exhausted: bool,
        failures: list[Failure],
    ) -> bool:
        """Fill the step with new documents, those that had to wait first; True once the input is exhausted."""
        for _ in range(len(waiting)):
            document = waiting.popleft()
            if not step.start(document):
                waiting.append(document)
        while (
            not exhausted
            and len(waiting) < MAX_WAITING
            and step.free > 0
            and len(failures) < MAX_WAITING
            and self._may_start()
        ):
            entry = next(incoming, None)
            if entry is None:
                return True
            document = _Document(*entry, RunningMean(self._width), self.schedule.section_size, self.n_last)
            if self._readable(document, failures) and not step.start(document):
                waiting.append(document)
        return exhausted

    def _count(self, step: _Step, results: list[Pooled]) -> None:
        tokens, documents, _, steps = self.progress
        ended = sum(result.last for result in results)
        self.progress = Progress(tokens + step.n_tokens, documents + ended, len(step.flying), steps + 1)


MAX_WAITING = 32
"""Documents looked at ahead of their turn, so that a long one without a free slot does not stop the short ones."""


class _Step:
    """One packed run in the making: documents in flight first, then probes of their states, then new documents."""

    def __init__(self, engine: Engine, flying: list[_Document]) -> None:
        self.engine = engine
        self.schedule = engine.schedule
        self.ids: list[TokenArray] = []
        self.parts: list[tuple[_Document, _Part]] = []  # in the order of the run; together they are the run
        self.flying: list[_Document] = []  # documents that go on after this step
        self.final: list[int] = []  # their segments
        self.n_tokens = 0
        probed = [(row, document, document.probe) for row, document in enumerate(flying) if document.probe]
        self.state_rows = [*range(len(flying)), *(row for row, _, _ in probed)]
        self.n_flying = len(flying)
        share = (self.schedule.max_tokens_per_step - len(probed) * engine.n_last) // (len(flying) + 1)
        for document in flying:
            document.probe = None
            self._add(document, share)
        for _, document, part in probed:
            self.ids.append(np.array([engine.probe_id] * engine.n_last))
            self.parts.append((document, part._replace(length=engine.n_last, probe=True)))
            self.n_tokens += engine.n_last

    @property
    def free(self) -> int:
        """Tokens that still fit."""
        return self.schedule.max_tokens_per_step - self.n_tokens

    def start(self, document: _Document) -> bool:
        """Take in a new document: whole, or its first piece if a state may be held for it. False: not now."""
        whole = document.ended and self._piece(document, self.free) == document.n_ahead
        roomy = self.free >= min(self.schedule.vertical_chunk_size, self.schedule.max_tokens_per_step // 2)
        if whole or (roomy and len(self.flying) < self.schedule.max_in_flight):
            self._add(document, self.free)
            return True
        return False

    def _piece(self, document: _Document, most: int) -> int:
        """Tokens of the document's next piece. A probe needs the state at a section's end, so it ends a piece."""
        n = min(document.n_ahead, most, self.schedule.vertical_chunk_size)
        if self.engine.pooling == "last" and document.section_end is not None:
            n = min(n, document.section_end - document.done)
        return n

    def _add(self, document: _Document, most: int) -> None:
        ids, parts = document.take(self._piece(document, most))
        if not parts[-1].last:
            self.flying.append(document)
            self.final.append(len(self.ids))
        self.ids.append(ids)
        self.parts += [(document, part) for part in parts]
        self.n_tokens += len(ids)

    @torch.inference_mode()
    def run(self, store: StateStore) -> list[Pooled]:
        """The vectors that this step completes; the store then holds the state of the documents that go on."""
        model = self.engine.model
        packing = Packing(
            [len(ids) for ids in self.ids], n_initial=len(self.state_rows), final=self.final, device=model.device
        )
        state, new_state = store.rows(self.n_flying), store.rows(len(self.final))
        if len(self.state_rows) > self.n_flying:
            state = select(state, self.state_rows)
        ids = np.concatenate(self.ids).astype(np.int64)
        tokens = torch.from_numpy(ids).to(model.device)
        if self.engine.pooling == "mean":
            hidden, _ = model.forward(tokens, packing, state, out=new_state)
            return self._mean(hidden, ids)
        counts, rows = self._pooled_rows()
        hidden, _ = model.forward(tokens, packing, state, rows, new_state)
        results = self._last(hidden, counts)
        # A section's probe may come in the step that ends the document: sections leave in order all the same.
        return sorted(results, key=lambda result: (result.index, result.section))

    def _pooled_rows(self) -> tuple[list[int], list[int]]:
        """Last-token pooling: how many tokens of each part count, and their rows. Sections inside a document wait a
        step."""
        counts: list[int] = []
        rows: list[int] = []
        at = 0
        for document, part in self.parts:
            at += part.length
            counts.append(document.n_pooled(part))
            rows += range(at - counts[-1], at)
            if part.complete and not part.last and not part.probe:
                document.probe = part
        return counts, rows

    def _last(self, hidden: Tensor, counts: list[int]) -> list[Pooled]:
        """Last-token pooling, from the wanted rows: means over documents' last tokens, which two steps may share."""
        results = []
        for (document, part), vectors in zip(self.parts, hidden.cpu().split(counts), strict=True):
            mean = RunningMean(hidden.shape[1]) if part.probe else document.mean
            if len(vectors):
                mean.add(vectors.sum(0).numpy(), len(vectors))
            if part.last or part.probe:
                results.append(_pooled(document, part, mean.take()))
        return results

    def _mean(self, hidden: Tensor, ids: TokenArray) -> list[Pooled]:
        """Mean pooling: add every part to its document's running mean."""
        lengths = [part.length for _, part in self.parts]
        sums = torch.stack([piece.sum(0) for piece in hidden.split(lengths)]).cpu().numpy()
        totals: Iterable[npt.NDArray[np.floating]] = sums
        if self.engine.lexicon is not None:
            codes = self.engine.lexicon.sums(ids, lengths)
            totals = (np.concatenate(pair) for pair in zip(sums, codes, strict=True))
        results = []
        for (document, part), total in zip(self.parts, totals, strict=True):
            document.mean.add(total, part.length)
            if part.complete:
                results.append(_pooled(document, part, document.mean.take()))
        return results


def _pooled(document: _Document, part: _Part, vector: FloatArray) -> Pooled:
    return Pooled(document.index, part.section, part.section_start, part.stop, vector, part.last)
