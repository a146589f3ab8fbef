"""The ids of one text, given out once it is known in which section of the text each begins."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from thalweg.checks import whole_number
from thalweg.embedder.boundaries import Boundaries, restore_boundaries
from thalweg.embedder.paragraphs import BLANK, LOOK_BEHIND
from thalweg.tokenization.backend import EMPTY, Block

MOST_TAIL = 1 << 12
"""Characters of a text that are kept at most, which is far more than boundaries leave open."""


MOST_PLACE = 1 << 60
"""The largest number of a character or token; no text is so long."""


class SectionEnd(NamedTuple):
    """A boundary: the token that begins the next section, counted from the text's first (BOS, prompt), and the
    character."""

    token: int
    char: int


class SectionedIds:
    """What `SectionedStream` knows of a text on its way: plain data, to be copied and saved.

    A token begins at its first character that is not blank: many tokens are a word with the space before it, and a
    boundary lies between the two. Only tokens with characters of their own begin a section: BOS and the prompt are in
    the first, EOS in the last. A boundary after which no token begins before the next one is left out.

    Args:
        boundaries: of the text.
    """

    def __init__(self, boundaries: Boundaries) -> None:
        self.ends: deque[SectionEnd] = deque()  # of tokens that were given out; for who reads them to empty
        self.n_given = 0
        self._boundaries = boundaries
        self._found: deque[tuple[int, int]] = deque()  # boundaries ahead, and where the blanks before each begin
        self._tail, self._tail_start = "", 0  # the text in which boundaries may still be found, and a little before it
        self._ended = False  # no further boundary will be found
        self._waiting = EMPTY  # ids that were not given out
        self._start = 0  # the farthest of a token that was given out
        self._has_begun = False  # whether one with characters was

    def see(self, piece: str) -> None:
        """Look for boundaries in the next piece of the text, before its ids are added."""
        self._tail += piece
        self._find(self._boundaries.push(piece))
        kept = max(self._tail_start, self._boundaries.settled - LOOK_BEHIND)
        self._tail, self._tail_start = self._tail[kept - self._tail_start :], kept

    def see_end(self) -> None:
        """The text has ended."""
        self._find(self._boundaries.finish())
        self._ended = True

    def add(self, blocks: Sequence[Block]) -> None:
        """Ids of what was seen, in order."""
        self._waiting = Block.join([self._waiting, *blocks])

    @property
    def n_waiting(self) -> int:
        """Ids that were not given out."""
        return len(self._waiting.ids)

    @property
    def n_ready(self) -> int:
        """Those of which is known where they belong."""
        starts, ends = _offsets(self._waiting).T
        settled = math.inf if self._ended else self._boundaries.settled
        open_ = (ends > settled) & (ends > starts)
        return int(open_.argmax()) if open_.any() else len(open_)

    def take(self, n: int) -> Block:
        """Give out n ids that are ready."""
        block, self._waiting = self._waiting.part(0, n), self._waiting.part(n, None)
        self._give_out(_offsets(block))
        return block

    def are_like(self, other: IdsInSections) -> bool:
        """Whether both cut texts in the same way."""
        return isinstance(other, SectionedIds) and _kind(self._boundaries) == _kind(other._boundaries)

    def copy(self) -> SectionedIds:
        """For a text that begins as this one and goes on by itself."""
        other = copy.copy(self)
        other.ends, other._found = self.ends.copy(), self._found.copy()
        other._boundaries = self._boundaries.copy()
        return other

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, as JSON holds it."""
        return {
            "boundaries": self._boundaries.state(),
            "ends": [list(end) for end in self.ends],
            "found": [list(found) for found in self._found],
            "tail": self._tail,
            "tail_start": self._tail_start,
            "ids": self._waiting.ids.tolist(),
            "offsets": _offsets(self._waiting).tolist(),
            "n_given": self.n_given,
            "start": self._start,
            "has_begun": self._has_begun,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> SectionedIds:
        """What `state` gave, which may have come from anywhere.

        Raises:
            Exception: of whatever kind: it cannot be that of any text.
        """
        restored = cls(restore_boundaries(state["boundaries"]))
        restored.ends.extend(SectionEnd(*map(_count, end)) for end in state["ends"])
        restored._found.extend((_count(char), _count(blank)) for char, blank in state["found"])
        restored._tail, restored._tail_start = str(state["tail"]), _count(state["tail_start"])
        if len(restored._tail) > MOST_TAIL:
            raise ValueError("it holds more text than boundaries leave open")
        ids = np.array(state["ids"], dtype=np.int32).reshape(-1)
        restored._waiting = Block(ids, np.array(state["offsets"], dtype=np.int64).reshape(len(ids), 2))
        restored.n_given, restored._start = _count(state["n_given"]), _count(state["start"])
        restored._has_begun = bool(state["has_begun"])
        return restored

    def _find(self, chars: list[int]) -> None:
        for char in chars:
            before = self._tail[: char - self._tail_start]
            self._found.append((char, self._tail_start + len(before.rstrip(BLANK))))

    def _give_out(self, offsets: npt.NDArray[np.int64]) -> None:
        starts = np.maximum.accumulate(np.append(self._start, offsets[:, 0]))[1:]
        with_text = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
        starts, ends = starts[with_text], offsets[with_text, 1]
        found: list[SectionEnd] = []
        while len(starts) and self._found:
            char, blank = self._found[0]
            begins = (starts >= char) | ((starts >= blank) & (ends > char))
            first = int(begins.argmax())
            if not begins[first]:
                break
            self._found.popleft()
            if first == 0 and not self._has_begun:
                continue  # there is no section before
            token = self.n_given + int(with_text[first])
            if found and found[-1].token == token:
                found.pop()
            found.append(SectionEnd(token, char))
        self.ends += found
        self.n_given += len(offsets)
        if len(starts):
            self._start, self._has_begun = int(starts[-1]), True


class CountedIds:
    """The same for sections of so many tokens.

    Args:
        every: tokens of a section.
        n_beyond: tokens that must be known beyond a section's end for it to be one.
    """

    def __init__(self, every: int, n_beyond: int) -> None:
        self.ends: deque[SectionEnd] = deque()
        self.n_given = 0
        self._every, self._n_beyond = every, n_beyond
        self._found: deque[SectionEnd] = deque()  # whose tokens have come, but not those that must be known beyond
        self._waiting = EMPTY
        self._char = 0  # where the sections found so far end

    def see(self, piece: str) -> None:
        """See `SectionedIds`."""

    def see_end(self) -> None:
        """See `SectionedIds`."""

    def add(self, blocks: Sequence[Block]) -> None:
        """See `SectionedIds`."""
        self._waiting = Block.join([self._waiting, *blocks])

    @property
    def n_waiting(self) -> int:
        """See `SectionedIds`."""
        return len(self._waiting.ids)

    @property
    def n_ready(self) -> int:
        """See `SectionedIds`."""
        return self.n_waiting

    def take(self, n: int) -> Block:
        """See `SectionedIds`."""
        block, self._waiting = self._waiting.part(0, n), self._waiting.part(n, None)
        first = (self.n_given // self._every + 1) * self._every
        for token in range(first, self.n_given + len(block.ids) + 1, self._every):
            self._char = max(self._char, int(_offsets(block)[token - 1 - self.n_given, 1]))
            self._found.append(SectionEnd(token, self._char))
        self.n_given += len(block.ids)
        while self._found and self._found[0].token + self._n_beyond <= self.n_given:
            self.ends.append(self._found.popleft())
        return block

    def are_like(self, other: IdsInSections) -> bool:
        """See `SectionedIds`."""
        mine = self._every, self._n_beyond
        return isinstance(other, CountedIds) and mine == (other._every, other._n_beyond)

    def copy(self) -> CountedIds:
        """See `SectionedIds`."""
        other = copy.copy(self)
        other.ends, other._found = self.ends.copy(), self._found.copy()
        return other

    def state(self) -> dict[str, Any]:
        """See `SectionedIds`."""
        return {
            "every": self._every,
            "n_beyond": self._n_beyond,
            "ends": [list(end) for end in self.ends],
            "found": [list(end) for end in self._found],
            "ids": self._waiting.ids.tolist(),
            "offsets": _offsets(self._waiting).tolist(),
            "n_given": self.n_given,
            "char": self._char,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> CountedIds:
        """See `SectionedIds`."""
        restored = cls(whole_number("every", state["every"], 1), whole_number("n_beyond", state["n_beyond"], 1))
        restored.ends.extend(SectionEnd(*map(_count, end)) for end in state["ends"])
        restored._found.extend(SectionEnd(*map(_count, end)) for end in state["found"])
        ids = np.array(state["ids"], dtype=np.int32).reshape(-1)
        restored._waiting = Block(ids, np.array(state["offsets"], dtype=np.int64).reshape(len(ids), 2))
        restored.n_given, restored._char = _count(state["n_given"]), _count(state["char"])
        return restored


class IdsInSections(Protocol):
    """`SectionedIds` or `CountedIds`."""

    ends: deque[SectionEnd]
    n_given: int

    @property
    def n_waiting(self) -> int: ...
    @property
    def n_ready(self) -> int: ...
    def see(self, piece: str) -> None: ...
    def see_end(self) -> None: ...
    def add(self, blocks: Sequence[Block]) -> None: ...
    def take(self, n: int) -> Block: ...
    def are_like(self, other: IdsInSections) -> bool: ...
    def copy(self) -> IdsInSections: ...
    def state(self) -> dict[str, Any]: ...


def restore_ids(state: Mapping[str, Any]) -> IdsInSections:
    """What `state` of either gave.

    Raises:
        Exception: of whatever kind: it cannot be that of any text.
    """
    return SectionedIds.restore(state) if "boundaries" in state else CountedIds.restore(state)


def _kind(boundaries: Boundaries) -> tuple[Any, Any]:
    state = boundaries.state()
    return state["by"], state["every"]


def _count(value: Any) -> int:
    return whole_number("a place in the text", value, 0, MOST_PLACE)


def _offsets(block: Block) -> npt.NDArray[np.int64]:
    assert block.offsets is not None
    return block.offsets
