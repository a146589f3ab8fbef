"""States of documents between steps, in memory that is taken once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from thalweg.models.protocol import State


class StateStore:
    """Holds the states of the documents in flight in the same tensors from step to step.

    A step writes the new state of a layer over the old one when the layer has run, so that a state is there once.
    States among a step's temporaries would be there twice, and leave holes of other sizes in every step (docs/log.md).

    Args:
        state: any state of the model, for the shapes.
    """

    def __init__(self, state: State) -> None:
        self._state = _map(lambda tensor: tensor[:0], state)

    def rows(self, n: int) -> State:
        """The first n rows, to be read and written. Where there is no room yet it is made, layer by layer."""
        if n > len(self._state[0][0]):
            self._state = _map(lambda tensor: _longer(tensor, n), self._state)
        return _map(lambda tensor: tensor[:n], self._state)

    def keep(self, rows: Sequence[int]) -> None:
        """The named rows become the first ones, in that order."""
        for kept, chosen in zip(self.rows(len(rows)), select(self._state, rows), strict=True):
            for tensor, values in zip(kept, chosen, strict=True):
                tensor.copy_(values)


def select(state: State, rows: Sequence[int]) -> State:
    """The named rows of a state, in that order; a row may be named twice."""
    return _map(lambda tensor: tensor[list(rows)], state)


def _map(fn: Callable[[Tensor], Tensor], state: State) -> State:
    return tuple(type(layer)(*map(fn, layer)) for layer in state)


def _longer(tensor: Tensor, n: int) -> Tensor:
    longer = tensor.new_zeros(n, *tensor.shape[1:])
    longer[: len(tensor)] = tensor
    return longer
