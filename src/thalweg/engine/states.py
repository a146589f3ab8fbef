"""States of documents between steps, in memory that is taken once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thalweg.models.protocol import State


class StateStore:
    """Holds the states of the documents in flight in the same tensors from step to step.

    A step writes the new state of a layer over the old one when the layer has run, so that a state is there once.
    States among a step's temporaries would be there twice, and leave holes of other sizes in every step (docs/log.md).

    Args:
        state: any state of the model, for the shapes.
    """

    def __init__(self, state: State) -> None:
        self._kinds = [type(layer) for layer in state]
        self._tensors = [[tensor.new_empty(0, *tensor.shape[1:]) for tensor in layer] for layer in state]

    @torch.inference_mode()
    def ensure_capacity(self, n: int) -> None:
        """For n rows; those that are there stay. One tensor after the other, so that only one is there twice."""
        for layer in self._tensors:
            for i, tensor in enumerate(layer):
                if n > len(tensor):
                    layer[i] = tensor.new_zeros(n, *tensor.shape[1:])
                    layer[i][: len(tensor)] = tensor

    def rows(self, n: int) -> State:
        """The first n rows, to be read and, in inference mode, written."""
        layers = zip(self._kinds, self._tensors, strict=True)
        return tuple(kind(*(tensor[:n] for tensor in layer)) for kind, layer in layers)

    @torch.inference_mode()
    def compact(self, rows: Sequence[int]) -> None:
        """The named rows become the first ones, in that order."""
        for layer in self._tensors:
            for tensor in layer:
                tensor[: len(rows)] = tensor[list(rows)]


def select(state: State, rows: Sequence[int]) -> State:
    """The named rows of a state, in that order; a row may be named twice."""
    return tuple(type(layer)(*(tensor[list(rows)] for tensor in layer)) for layer in state)
