"""The states of a batch between two calls of a model."""

from __future__ import annotations

from collections.abc import Sequence

from thalweg.engine.states import detach, join, nbytes, select
from thalweg.errors import InvalidInputError
from thalweg.models.protocol import State


class RecurrentCache:
    """What the rows of a batch carry from chunk to chunk: `cache_params` of the models of `modeling.py`.

    A model that is given a cache moves it on, as those of transformers do. To go on twice from the same point, `copy`
    it: states are never changed in place, so that a copy costs nothing.

    Attributes:
        batch_size: rows.
        positions: tokens seen so far in each row, padding included.
        lengths: of each row, its own tokens seen so far.
    """

    def __init__(self, batch_size: int) -> None:
        if batch_size < 1:
            raise InvalidInputError(f"batch_size must be at least 1, not {batch_size}")
        self.batch_size = batch_size
        self.positions = 0
        self.lengths = [0] * batch_size
        self.rows: list[int] = []  # those that have a state; its segments in this order
        self.state: State | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far, padding included; the same for every layer."""
        return self.positions

    @property
    def nbytes(self) -> int:
        """Bytes of all states; they do not depend on the number of tokens."""
        return 0 if self.state is None else nbytes(self.state)

    def copy(self) -> RecurrentCache:
        """Another cache at the same point."""
        return self._with(self.state)

    def detach(self) -> RecurrentCache:
        """Another cache at the same point, cut off from the gradients of what came before."""
        return self._with(self.state and detach(self.state))

    def select_rows(self, rows: Sequence[int]) -> RecurrentCache:
        """A cache of some rows of the batch in a new order; one may be named twice."""
        wrong = [row for row in rows if not 0 <= row < self.batch_size]
        if wrong or not rows:
            raise InvalidInputError(f"rows must be some of 0 … {self.batch_size - 1}, got {list(rows)}")
        chosen = RecurrentCache(len(rows))
        chosen.positions = self.positions
        chosen.lengths = [self.lengths[row] for row in rows]
        chosen.rows = [at for at, row in enumerate(rows) if row in self.rows]
        if self.state is not None and chosen.rows:
            chosen.state = select(self.state, [self.rows.index(rows[at]) for at in chosen.rows])
        return chosen

    def take(self, rows: list[int]) -> State | None:
        """The states of rows that have one, in that order."""
        if not rows or self.state is None:
            return None
        return self.state if rows == self.rows else select(self.state, [self.rows.index(row) for row in rows])

    def put(self, rows: list[int], state: State, keep: set[int]) -> None:
        """Take over the new states of `rows`; of the others those of the rows to `keep` stay as they are."""
        others = [row for row in self.rows if row in keep and row not in rows]
        old = self.take(others)
        self.state = state if old is None else join([state, old])
        self.rows = rows + others

    def become(self, other: RecurrentCache) -> None:
        """Take over all of another cache of the same rows."""
        vars(self).update(vars(other.copy()))

    def _with(self, state: State | None) -> RecurrentCache:
        copy = RecurrentCache(self.batch_size)
        copy.positions, copy.lengths, copy.rows, copy.state = self.positions, list(self.lengths), list(self.rows), state
        return copy
