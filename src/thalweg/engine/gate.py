"""Documents held back: what a run has no room for is not worked on, however far its turn has come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from thalweg.engine.results import DocumentState
from thalweg.engine.sources import Answer, TokenArray, TokenSource, section_ends

NOTHING: TokenArray = np.empty(0, dtype=np.int64)


class Gate:
    """A document's source that gives nothing while the document is held back.

    Args:
        source: the document's own.
        is_held: asked whenever ids are wanted.
    """

    def __init__(self, source: TokenSource, is_held: Callable[[], bool]) -> None:
        self._source = source
        self._is_held = is_held
        self._wake: Callable[[], None] = lambda: None
        self._waits = False

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        """See `TokenSource`."""
        self._waits = self._is_held()
        return (NOTHING, Answer.WAITING) if self._waits else self._source.take(n)

    def section_ends(self) -> Sequence[int]:
        """See `TokenSource`."""
        return section_ends(self._source)

    @property
    def state_at(self) -> int | None:
        """See `TokenSource`."""
        at: int | None = getattr(self._source, "state_at", None)
        return at

    def keep(self, state: DocumentState) -> None:
        """See `TokenSource`."""
        self._source.keep(state)  # type: ignore[attr-defined]

    def subscribe(self, wake: Callable[[], None]) -> None:
        """See `TokenSource`."""
        self._wake = wake
        subscribe = getattr(self._source, "subscribe", None)
        if subscribe is not None:
            subscribe(wake)

    def close(self) -> None:
        """See `TokenSource`."""
        close = getattr(self._source, "close", None)
        if close is not None:
            close()

    def look(self) -> None:
        """Let the document go on if it was held back and is no longer."""
        if self._waits and not self._is_held():
            self._waits = False
            self._wake()
