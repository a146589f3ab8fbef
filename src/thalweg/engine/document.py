"""One document on its way through the engine."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from thalweg.engine.results import DocumentState
from thalweg.engine.sources import Answer, TokenArray, TokenSource
from thalweg.errors import InvalidInputError
from thalweg.models.protocol import State
from thalweg.pooling.pooling import RunningMean


class Part(NamedTuple):
    """Neighbouring tokens of one section. `complete`: the section ends with them; `last`: so does the document.

    `probe`: not the section's own tokens but EOS fed to a copy of the state at its end.
    """

    section: int
    section_start: int
    stop: int
    length: int
    complete: bool
    last: bool
    probe: bool = False


@dataclass(eq=False)
class Document:
    """What the engine knows of a document: the tokens ahead of it, where its section began, and whose it is.

    Args:
        n_last: tokens at the end that are no section of their own, and that pooling may have to know ahead.
        sums: what pooling has kept so far.
        stops_at_sections: whether the state at a section's end is needed, so that no piece may go beyond it.
        state: where it goes on from, until it is in flight.
        keep_state: whether its state is wanted at its end.
        shares_state: whether other documents begin with the same `state`.
        client, priority: see `Engine.add`.
    """

    key: Hashable
    source: TokenSource
    sums: RunningMean
    n_last: int = 1
    section_size: int | None = None
    stops_at_sections: bool = False
    state: DocumentState | None = None
    keep_state: bool = False
    shares_state: bool = False
    client: Hashable = None
    priority: int = 0

    answer: Answer = Answer.MORE
    ahead: list[TokenArray] = field(default_factory=list)
    n_ahead: int = 0
    done: int = 0
    section: int = 0
    section_start: int = 0
    probe: Part | None = None
    parked: bool = False
    last_step: int = -1

    def __post_init__(self) -> None:
        if self.state is not None:
            self.done = self.state.n_tokens
            self.sums = self.state.sums.copy()

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

    def piece(self, most: int) -> int:
        """Tokens of the next piece, at most so many."""
        n = min(self.ready, most)
        if self.stops_at_sections and self.section_end is not None:
            n = min(n, self.section_end - self.done)
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
        if self.ended and self.n_ahead == 0:
            raise InvalidInputError("the document has no tokens; append an EOS")

    @property
    def section_end(self) -> int | None:
        """The token where the current section ends, None if that is beyond what is known.

        The end tokens on their own (EOS) are no section; they go with the one before.
        """
        known = self.done + self.n_ahead
        if self.ended and (self.section_size is None or self.section_start + self.section_size + self.n_last >= known):
            return known
        return None if self.section_size is None else self.section_start + self.section_size

    @property
    def total(self) -> int | None:
        """All tokens of the document, None while they are not known."""
        return self.done + self.n_ahead if self.ended else None

    def take(self, n: int) -> tuple[TokenArray, list[Part]]:
        """The next `n` ids, and the sections they belong to."""
        parts = []
        stop = self.done + n
        at = self.done
        while at < stop:
            end = self.section_end
            reach = stop if end is None else min(end, stop)
            parts.append(Part(self.section, self.section_start, reach, reach - at, reach == end, reach == self.total))
            if reach == end:
                self.section, self.section_start = self.section + 1, end
            at = reach
        ids = self.ahead[0] if len(self.ahead) == 1 else np.concatenate(self.ahead)
        self.ahead, self.n_ahead, self.done = [ids[n:]], self.n_ahead - n, stop
        return ids[:n], parts
