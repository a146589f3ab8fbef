"""One document on its way through the engine."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from thalweg.engine.results import DocumentState
from thalweg.engine.sections import Section, SectionCuts, SectionSums, TokenSections
from thalweg.engine.sources import Answer, TokenArray, TokenSource, section_ends
from thalweg.errors import InvalidInputError
from thalweg.models.protocol import State
from thalweg.pooling.pooling import RunningMean


class Part(NamedTuple):
    """Neighbouring tokens, up to `stop`, where vectors are due or a section begins.

    due: the sections whose vectors are due at `stop`; begins: another section begins there; last: the document ends.
    probe: None, or that these are not the document's own tokens but EOS fed to a copy of the state at `stop`, and what
    had been summed up until then.
    """

    stop: int
    length: int
    due: tuple[Section, ...] = ()
    begins: bool = False
    last: bool = False
    probe: RunningMean | None = None


@dataclass(eq=False)
class Document:
    """What the engine knows of a document: the tokens ahead of it, its sections, and whose it is.

    Args:
        n_last: tokens at the end that are no section of their own, and that pooling may have to know ahead.
        sums: what pooling has kept so far.
        sections: how it is cut, with the mode stated; None for one vector.
        n_probe: EOS that are fed to a copy of the state where a vector is due before the end, so that no piece may go
            beyond it; 0 for none. n_end: how many of them the document itself ends with.
        state: where it goes on from, until it is in flight.
        keep_state: whether its state is wanted at its end.
        shares_state: whether other documents begin with the same `state`.
        client, priority: see `Engine.add`.
    """

    key: Hashable
    source: TokenSource
    sums: RunningMean
    n_last: int = 1
    sections: TokenSections | None = None
    n_probe: int = 0
    n_end: int = 0
    state: DocumentState | None = None
    keep_state: bool = False
    shares_state: bool = False
    client: Hashable = None
    priority: int = 0

    answer: Answer = Answer.MORE
    ahead: list[TokenArray] = field(default_factory=list)
    n_ahead: int = 0
    done: int = 0
    probe: Part | None = None
    parked: bool = False
    last_step: int = -1

    def __post_init__(self) -> None:
        if self.state is not None:
            self.done = self.state.n_tokens
            self.sums = self.state.sums.copy()
        begun = None if self.state is None or self.sections is None else self.state.section
        start = 0 if self.sections is None else self.done
        self.cuts = SectionCuts(self.sections, start, self.n_last, self.n_end, begun)
        of_sections = self.sections is not None and self.sections.mode == "mean"
        self.section_sums = SectionSums(self.sums, of_sections=of_sections, begun=None if begun is None else begun.sums)

    @property
    def ended(self) -> bool:
        """Whether all its tokens are known."""
        return self.answer is Answer.ENDED

    @property
    def owns_state(self) -> bool:
        """Whether it needs a row of the state even if it begins and ends in one step."""
        return self.keep_state or (self.state is not None and not self.shares_state)

    @property
    def start(self) -> State | None:
        """The model's state that it begins with, and others as well."""
        return self.state.model if self.state is not None and self.shares_state else None

    @property
    def ready(self) -> int:
        """Tokens that may be run now. Of a document that has not ended some are held back, as they may be its last."""
        return self.n_ahead if self.ended else max(0, self.n_ahead - 1 - self.n_last)

    @property
    def state_at(self) -> int | None:
        """The token at which its source wants to be given the state next."""
        at: int | None = getattr(self.source, "state_at", None)
        return at

    def piece(self, most: int) -> int:
        """Tokens of the next piece, at most so many."""
        n = min(self.ready, most)
        if self.state_at is not None:
            n = min(n, self.state_at - self.done)
        if self.n_probe:
            due = self.cuts.next_due(self.done + self.n_ahead, ended=self.ended)
            n = n if due is None else min(n, due - self.done)
        return n

    def look_ahead(self, n: int) -> None:
        """Have `n` tokens ready, or all that there are by now.

        Raises whatever the source raises, and InvalidInputError for a document without tokens.
        """
        while self.answer is Answer.MORE and self.n_ahead < n + 1 + self.n_last:
            ids, self.answer = self.source.take(n + 1 + self.n_last - self.n_ahead)
            if len(ids) == 0 and self.answer is Answer.MORE:
                raise InvalidInputError(f"{type(self.source).__name__}.take answered MORE without any token")
            self.ahead.append(ids)
            self.n_ahead += len(ids)
            if self.sections is not None and self.sections.every is None:
                self.cuts.name(section_ends(self.source), self.done)
        if self.ended and self.n_ahead == 0:
            raise InvalidInputError("the document has no tokens; append an EOS")

    @property
    def total(self) -> int | None:
        """All tokens of the document, None while they are not known."""
        return self.done + self.n_ahead if self.ended else None

    def take(self, n: int) -> tuple[TokenArray, list[Part]]:
        """The next `n` ids, cut where vectors are due and sections begin."""
        parts = []
        stop = self.done + n
        at = self.done
        while at < stop:
            reach = self.cuts.advance(stop, self.done + self.n_ahead, ended=self.ended)
            parts.append(Part(reach.stop, reach.stop - at, reach.due, reach.begins, reach.stop == self.total))
            at = reach.stop
        ids = self.ahead[0] if len(self.ahead) == 1 else np.concatenate(self.ahead)
        self.ahead, self.n_ahead, self.done = [ids[n:]], self.n_ahead - n, stop
        return ids[:n], parts
