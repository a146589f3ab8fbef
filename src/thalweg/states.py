"""States of documents between steps, in memory that is taken once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thalweg.models.protocol import State


class StateStore:
    """Holds the states of the documents in flight in the same tensors from step to step.

    A step's own state tensors lie among its temporaries. Kept until the next step, they would leave holes of other
    sizes in every step, and the peak would creep up for the first hundred (by 4 % on the CPU, measured); copied out,
    they let every step find free memory as the one before found it.
    """

    def __init__(self) -> None:
        self._tensors: State = ()
        self._n_rows = 0

    @torch.inference_mode()
    def keep(self, state: State) -> State:
        """Copy a state of n rows into the store, which grows where needed; returns the copy."""
        n_rows = len(state[0][0])
        if n_rows > self._n_rows or not self._tensors:
            self._tensors = tuple(type(layer)(*map(torch.empty_like, layer)) for layer in state)
            self._n_rows = n_rows
        kept = tuple(type(layer)(*(tensor[:n_rows] for tensor in layer)) for layer in self._tensors)
        for layer, kept_layer in zip(state, kept, strict=True):
            for tensor, kept_tensor in zip(layer, kept_layer, strict=True):
                kept_tensor.copy_(tensor)
        return kept


def select(state: State, rows: Sequence[int]) -> State:
    """The named rows of a state, in that order; a row may be named twice."""
    return tuple(type(layer)(*(tensor[list(rows)] for tensor in layer)) for layer in state)
