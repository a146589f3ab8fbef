"""Documents as the engine sees them: token ids to be pulled, some of which may not be there yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from thalweg.errors import InvalidInputError

TokenArray = npt.NDArray[np.integer]


class Answer(Enum):
    """What a source says with the ids that it gives.

    MORE: here is one at least, and there are others to be asked for. WAITING: here is what there is by now; others will
    come. ENDED: here are the last.
    """

    MORE = "more"
    WAITING = "waiting"
    ENDED = "ended"


class TokenSource(Protocol):
    """A document: token ids to be pulled, the last one included (EOS, where the model has it).

    A source that has answered WAITING is left alone until it is woken (`Engine.wake`). Two methods are optional:
    `subscribe(wake)` is given a function that wakes it and that may be called from any thread, and `close()` is called
    when nothing more will be asked. `section_ends()` is needed where the source knows what its sections are: the
    tokens, counted from the document's start, at which one ends and another begins, ascending and each once. Asked
    after `take`, it has named all that lie between ids that were given out. Four attributes are optional in
    `Engine.run`: `state`, `keep_state` and `shares_state`, as in `Engine.add`, and `sections`, the `TokenSections` of
    this document. One that has the attribute `state_at` is
    given its `DocumentState` after so many tokens, `keep(state)`, which names another token or None; what that raises
    ends the step.
    """

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        """The next ids, at most `n`, and how it goes on."""


class Ids:
    """A token source over ids that are already there."""

    def __init__(self, ids: TokenArray) -> None:
        self._ids = ids
        self._at = 0

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        ids = self._ids[self._at : self._at + n]
        self._at += len(ids)
        return ids, Answer.ENDED if self._at == len(self._ids) else Answer.MORE


def section_ends(source: TokenSource) -> Sequence[int]:
    """What a source says of its sections since it was asked last.

    Raises:
        InvalidInputError: it knows nothing of sections.
    """
    ends: Callable[[], Sequence[int]] | None = getattr(source, "section_ends", None)
    if ends is None:
        raise InvalidInputError(f"{type(source).__name__} has no section_ends(): say how many tokens a section has")
    return ends()
