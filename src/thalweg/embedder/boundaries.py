"""Where the sections of a text end, found as the text arrives.

What has been found is the same however the text is cut into pieces, and what is kept of a text has a bound, whatever
the text. A boundary is where the first visible character of the next section stands: blank space belongs to the section
before it, and at the start of a text to the first. So sections tile the text, none is empty, and none is blank.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args

from thalweg import checks
from thalweg.embedder.headings import Headings
from thalweg.embedder.paragraphs import Paragraphs
from thalweg.embedder.sentences import Sentences
from thalweg.errors import InvalidInputError

if TYPE_CHECKING:
    from typing_extensions import Self

By = Literal["paragraph", "sentence", "heading"]

_KINDS: dict[str, type[Paragraphs | Sentences | Headings]] = {
    kind.kind: kind for kind in (Paragraphs, Sentences, Headings)
}


class Boundaries(Protocol):
    """Where the sections of one text end."""

    @property
    def settled(self) -> int:
        """No boundary that is still to come lies before this character. It follows the end of the text so far at a
        bounded distance (a few hundred characters)."""
        ...

    def push(self, piece: str) -> list[int]:
        """The boundaries that the text up to the end of this piece decides and that have not been given: ascending
        characters of the text, counted from 0."""
        ...

    def finish(self) -> list[int]:
        """Those that the end of the text decides. The end itself is none, and nothing may follow this call."""
        ...

    def copy(self) -> Self:
        """For a text that begins as this one and goes on by itself."""
        ...

    def state(self) -> dict[str, Any]:
        """All that `restore_boundaries` needs to go on from here: a few values for JSON.

        Raises:
            InvalidInputError: positions from an iterator cannot be saved.
        """
        ...


class Given:
    """Boundaries that the caller gives: a collection, which is checked at once, or an iterator, which is read only one
    position ahead of the text.

    Args:
        positions: ascending characters at which a section ends and the next begins, inside the text (not 0, not its
            length).
        every: so many of the sections between them make one.

    Raises:
        InvalidInputError: they are not ascending whole numbers from 1. That they lie inside the text is checked by
            `finish`.
    """

    kind: ClassVar[str] = "given"

    def __init__(self, positions: Iterable[int], every: int = 1) -> None:
        self._every = checks.whole_number("every", every, 1)
        self._end = 0  # characters that have arrived
        self._units = 0  # finished ones in the section that is under way
        self._read = 0  # positions
        self._last = 0  # of them
        self._next: int | None = None  # if it has been read
        if not isinstance(positions, Iterable):
            raise InvalidInputError(f"boundaries must be an iterable of whole numbers, got {positions!r:.80}")
        self._is_lazy = not isinstance(positions, Sized)
        self._rest: Iterator[int] = iter(positions)
        if not self._is_lazy:
            self._rest = iter(list(iter(self._checked, None)))
            self._read = self._last = 0

    @property
    def settled(self) -> int:
        return self._end

    def push(self, piece: str) -> list[int]:
        self._end += len(piece)
        found = []
        while (position := self._peek()) is not None and position < self._end:
            self._next = None
            self._units += 1
            if self._units == self._every:
                self._units = 0
                found.append(position)
        return found

    def finish(self) -> list[int]:
        """None is left; that is what is checked.

        Raises:
            InvalidInputError: a position lies at the text's end or beyond.
        """
        if (position := self._peek()) is not None:
            raise InvalidInputError(
                f"boundaries must lie inside the text, which has {self._end} characters, got {position}; "
                "leave out the end of the text and what is beyond it"
            )
        return []

    def copy(self) -> Given:
        self._refuse_lazy("copied")
        other = copy.copy(self)
        other._rest = copy.copy(self._rest)
        return other

    def state(self) -> dict[str, Any]:
        self._refuse_lazy("saved")
        ahead = [] if self._next is None else [self._next]
        return {
            "by": self.kind,
            "every": self._every,
            "end": self._end,
            "units": self._units,
            "positions": [*ahead, *copy.copy(self._rest)],
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Given:
        """What `state` gave, to go on from there.

        Raises:
            InvalidInputError: it is no state of this kind.
        """
        if set(state) != {"by", "every", "end", "units", "positions"} or state["by"] != cls.kind:
            raise InvalidInputError(f"this is no state of {cls.kind} boundaries: {dict(state)!r:.80}")
        given = cls(state["positions"], state["every"])
        given._end = checks.whole_number("end", state["end"], 0)
        given._units = checks.whole_number("units", state["units"], 0, given._every - 1)
        return given

    def _peek(self) -> int | None:
        if self._next is None:
            self._next = self._checked()
        return self._next

    def _checked(self) -> int | None:
        """The next position, or None after the last."""
        for value in self._rest:
            position = checks.whole_number(f"boundaries[{self._read}]", value, 1)
            if position <= self._last:
                raise InvalidInputError(
                    f"boundaries must ascend, got {position} after {self._last} (boundaries[{self._read}]); "
                    "sort them and leave out repeated ones"
                )
            self._read += 1
            self._last = position
            return position
        return None

    def _refuse_lazy(self, done: str) -> None:
        if self._is_lazy:
            raise InvalidInputError(f"boundaries from an iterator cannot be {done}; give them as a list")


def make_boundaries(by: By | Iterable[int], every: int = 1) -> Boundaries:
    """For one text, from its start.

    Args:
        by: the unit of text, or the boundaries themselves (`Given`).
        every: units in a section.

    Raises:
        InvalidInputError: no such unit, or no whole number from 1.
    """
    every = checks.whole_number("every", every, 1)
    if isinstance(by, Iterable) and not isinstance(by, str):
        return Given(by, every)
    if callable(by):
        raise InvalidInputError(f"by={by!r:.80} needs a whole text: use from_callable(function, text)")
    checks.one_of("by", by, get_args(By))
    return _KINDS[by](every)


def from_callable(function: Callable[[str], Iterable[int]], text: str, every: int = 1) -> Given:
    """The boundaries that a function finds in a whole text. It is called once.

    Raises:
        InvalidInputError: they are not whole numbers that ascend within the text.
    """
    positions = function(text)
    if not isinstance(positions, Iterable):
        raise InvalidInputError(f"by={function!r:.80} must return whole numbers, got {positions!r:.80}")
    given = Given(list(positions), every)
    trial = given.copy()
    trial.push(text)
    trial.finish()
    return given


def restore_boundaries(state: Mapping[str, Any]) -> Boundaries:
    """What `state()` of any boundaries gave, to go on from there.

    Raises:
        InvalidInputError: it is no such state.
    """
    by = state.get("by")
    kind: type[Paragraphs | Sentences | Headings | Given] | None = Given if by == Given.kind else _KINDS.get(str(by))
    if kind is None:
        raise InvalidInputError(f"this is no state of boundaries: {dict(state)!r:.80}")
    return kind.restore(state)
