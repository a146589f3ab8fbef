"""One document on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from thalweg.engine.sources import TokenArray, TokenSource
from thalweg.pooling.pooling import RunningMean


class Part(NamedTuple):
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
class Document:
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
    probe: Part | None = None

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

    def n_pooled(self, part: Part) -> int:
        """With last-token pooling: how many tokens of a part count, all at its end. What is looked ahead shows them."""
        if part.probe:
            return part.length
        total = self.done + self.n_ahead if self.ended else None
        return 0 if total is None else max(0, part.stop - max(total - self.n_last, part.stop - part.length))

    def take(self, n: int) -> tuple[TokenArray, list[Part]]:
        """The next `n` ids, and the sections they belong to."""
        parts = []
        stop = self.done + n
        total = self.done + self.n_ahead if self.ended else None
        at = self.done
        while at < stop:
            end = self.section_end
            reach = stop if end is None else min(end, stop)
            parts.append(Part(self.section, self.section_start, reach, reach - at, reach == end, reach == total))
            if reach == end:
                self.section, self.section_start = self.section + 1, end
            at = reach
        ids = self.ahead[0] if len(self.ahead) == 1 else np.concatenate(self.ahead)
        self.ahead, self.n_ahead, self.done = [ids[n:]], self.n_ahead - n, stop
        return ids[:n], parts
