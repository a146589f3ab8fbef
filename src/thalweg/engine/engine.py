"""The vertical schedule: any number of documents of any length through any recurrent model, in bounded memory.

A step is one packed run through all layers. Documents in flight hold one row of the state each and advance in every
step, by at most `vertical_chunk_size` tokens; short documents are packed beside them and leave in the step they came
in, without ever owning a stored state. (Vertically chunked inference: arXiv 2604.18199.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from thalweg.engine.document import Document
from thalweg.engine.results import Failure, Pooled, Progress
from thalweg.engine.schedule import Schedule
from thalweg.engine.sources import TokenSource
from thalweg.engine.states import StateStore
from thalweg.engine.step import Step
from thalweg.errors import InvalidInputError, ThalwegError
from thalweg.models.protocol import RecurrentModel, largest_layer_bytes
from thalweg.pooling.lexicon import Lexicon
from thalweg.pooling.pooling import POOLINGS, Pooling, RunningMean
from thalweg.system.malloc import reserve


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
        waiting: deque[Document] = deque()
        flying: list[Document] = []
        store = StateStore(self.model.init_state(1))
        fresh_state = largest_layer_bytes(self.model.init_state(1))
        self._may_start = may_start or (lambda: True)
        exhausted = False
        while True:
            failures: list[Failure] = []
            keep = [row for row, document in enumerate(flying) if self._readable(document, failures)]
            if len(keep) < len(flying):
                flying = [flying[row] for row in keep]
                store.compact(keep)
            step = Step(self, flying)
            exhausted = self._admit(step, waiting, incoming, exhausted, failures)
            yield from failures
            if not step.ids:
                if exhausted and not waiting:
                    return
                continue
            store.ensure_capacity(len(step.wanted))
            if self.model.device.type == "cpu":
                reserve([*self.model.activation_blocks(step.n_tokens), len(step.wanted) * fresh_state])
            results = step.run(store)
            flying = step.flying
            self._count(step, results)
            if on_step:
                on_step(self.progress)
            yield from results

    def _readable(self, document: Document, failures: list[Failure]) -> bool:
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
        step: Step,
        waiting: deque[Document],
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
            document = Document(*entry, RunningMean(self._width), self.schedule.section_size, self.n_last)
            if self._readable(document, failures) and not step.start(document):
                waiting.append(document)
        return exhausted

    def _count(self, step: Step, results: list[Pooled]) -> None:
        tokens, documents, _, steps = self.progress
        ended = sum(result.last for result in results)
        self.progress = Progress(tokens + step.n_tokens, documents + ended, len(step.flying), steps + 1)


MAX_WAITING = 32
"""Documents looked at ahead of their turn, so that a long one without a free slot does not stop the short ones."""
