"""The sections of a document: where they end, and when the vector of each is due."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias, get_args

from thalweg.checks import one_of, whole_number
from thalweg.engine.results import OpenSection
from thalweg.errors import InvalidInputError
from thalweg.pooling import Pooling
from thalweg.pooling.pooling import RunningMean

SectionMode: TypeAlias = Literal["mean", "prefix"]
"""What the vector of a section stands for: its own tokens, with all before them in view, or the document up to its
end."""


@dataclass(frozen=True)
class TokenSections:
    """How a document is cut into sections, and what becomes of each.

    Args:
        every: tokens of a section; None: the source of the document knows where they end (`TokenSource.section_ends`).
        mode: "mean": the mean over the section's own tokens in the context of all before them. "prefix": the vector of
            the document as if it ended with the section. None: the one that goes with the pooling, see `default_mode`.
        look_ahead: tokens after the section that count as well, as far as the document has them.
        open_ended: the document is a part of a longer one. Its last section goes on behind its end, in whatever goes on
            from the state there; its vector, that of the section so far, is no section's. No section may end exactly
            there.

    Raises:
        InvalidInputError: an argument that cannot be.
    """

    every: int | None = None
    mode: SectionMode | None = None
    look_ahead: int = 0
    open_ended: bool = False

    def __post_init__(self) -> None:
        if self.every is not None:
            whole_number("section_size", self.every, least=1)
        if self.mode is not None:
            one_of("mode", self.mode, get_args(SectionMode))
        whole_number("look_ahead", self.look_ahead, least=0)
        if self.open_ended and (self.every is not None or self.look_ahead):
            raise InvalidInputError("sections that go on can have no look_ahead, and their source names their ends")

    @classmethod
    def of(cls, sections: int | TokenSections) -> TokenSections:
        """So many tokens each, or what is such an object already."""
        return sections if isinstance(sections, TokenSections) else cls(sections)

    def with_mode(self, pooling: Pooling) -> TokenSections:
        """The same with the mode stated.

        Raises:
            InvalidInputError: the mean over some tokens of a model whose vector is that of an end token.
        """
        if self.mode == "mean" and pooling.needs_eos:
            raise InvalidInputError(f"sections in mode 'mean' need mean pooling, not {pooling.name!r}")
        return self if self.mode else replace(self, mode=default_mode(pooling))

    def are_probed(self, pooling: Pooling, *, appends_eos: bool = True) -> bool:
        """Whether end tokens are fed to a copy of the state at every section's end.

        appends_eos: whether texts end with such tokens.
        """
        return self.with_mode(pooling).mode == "prefix" and (pooling.needs_eos or appends_eos)


def default_mode(pooling: Pooling) -> SectionMode:
    """The mean over a section where vectors are means, else the document up to its end."""
    return "prefix" if pooling.needs_eos else "mean"


class Section(NamedTuple):
    """The tokens [start, stop) of the document's section of this number."""

    number: int
    start: int
    stop: int


class Reach(NamedTuple):
    """Tokens up to `stop`, where something happens: the vectors of the sections `due` are, or another one begins."""

    stop: int
    due: tuple[Section, ...]
    begins: bool


class SectionCuts:
    """The sections of one document as its tokens go by. A document without sections has one, of all its tokens.

    `known` below: the tokens of the document that are known, `ended`: whether these are all.

    Args:
        spec: None for no sections.
        start: tokens that are behind the document where it goes on from a state.
        begun: the section that is under way there; None: one begins.
        n_last: tokens at the end that are no section of their own if there are so many tokens to each.
        n_end: end tokens of the document that the vector of the text so far is taken with: where only these are left,
            it is that of the document. 0 where it is taken without.
    """

    def __init__(
        self, spec: TokenSections | None, start: int, n_last: int, n_end: int, begun: OpenSection | None = None
    ) -> None:
        self._every = None if spec is None else spec.every
        self._look_ahead = 0 if spec is None else spec.look_ahead
        self._open_ended = spec is not None and spec.open_ended
        self._n_last, self._n_end = n_last, n_end
        # Of the section that has begun last:
        self._number, self._start = (0, start) if begun is None else (begun.number, begun.start)
        self._ends: deque[int] = deque()  # that the source has named
        self._last_end = start
        self._waiting: deque[Section] = deque()  # those that have ended and are not due yet

    def name(self, ends: Iterable[int], done: int) -> None:
        """Take in ends that the source has found; `done` tokens have been run.

        Raises:
            InvalidInputError: they do not ascend, or come too late.
        """
        for end in ends:
            if end <= max(self._last_end, done):
                raise InvalidInputError(f"a section ends at token {end}, but {max(self._last_end, done)} are done")
            self._last_end = end
            self._ends.append(end)

    def next_due(self, known: int, *, ended: bool) -> int | None:
        """The token at which the next vector is due, None where that is not known: it is beyond what may be run."""
        if self._waiting:
            return self._due(self._waiting[0].stop, known, ended=ended)
        end = self._end(known, ended=ended)
        return None if end is None else self._due(end, known, ended=ended)

    def advance(self, stop: int, known: int, *, ended: bool) -> Reach:
        """Go on to `stop`, or to where something happens before."""
        end = self._end(known, ended=ended)
        if end is not None:
            stop = min(stop, end)
        if self._waiting:
            stop = min(stop, self._due(self._waiting[0].stop, known, ended=ended))
        if stop == end:
            self._waiting.append(Section(self._number, self._start, stop))
            self._number, self._start = self._number + 1, stop
            if self._ends:
                self._ends.popleft()
        due = []
        while self._waiting and self._due(self._waiting[0].stop, known, ended=ended) == stop:
            due.append(self._waiting.popleft())
        if self._open_ended and ended and stop == known:
            due.append(Section(self._number, self._start, stop))
        return Reach(stop, tuple(due), stop == end and not (ended and stop == known))

    def _end(self, known: int, *, ended: bool) -> int | None:
        """The token where the section ends that has begun last, None if that is beyond what is known.

        The end tokens on their own (EOS) are no section; they go with the one before.
        """
        if self._every is not None:
            end = self._start + self._every
            return known if ended and end + self._n_last >= known else end
        if self._ends:
            return min(self._ends[0], known)
        return known if ended and not self._open_ended else None

    def _due(self, stop: int, known: int, *, ended: bool) -> int:
        """The token at which the vector of a section that ends at `stop` is due."""
        due = stop + self._look_ahead
        return known if ended and due + self._n_end >= known else due


class SectionSums:
    """What pooling has kept of one document, and where its open sections began.

    The sums are never reset: a section's own are the difference between two points of them (float64).

    Args:
        sums: what has been kept so far.
        of_sections: whether vectors are those of sections alone.
        begun: what had been kept where the open section began; None: it begins here.
    """

    def __init__(self, sums: RunningMean, *, of_sections: bool, begun: RunningMean | None = None) -> None:
        self.total = sums
        self._begins = deque([(begun or sums).copy()]) if of_sections else None

    def begin(self) -> None:
        """A section begins here."""
        if self._begins is not None:
            self._begins.append(self.total.copy())

    def first(self) -> RunningMean | None:
        """Where the oldest open section began, which is then forgotten; None where all that came before counts."""
        return None if self._begins is None else self._begins.popleft()
