"""Recurrent states: what can be done with them, and the memory that those in flight lie in.

A state is a tuple of one NamedTuple of tensors a layer, the document first in every tensor (`models/protocol.py`).
Whoever picks, joins, moves, counts or stores states does it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from thalweg.errors import InvalidInputError
from thalweg.models.protocol import State


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """The state of `function` of each tensor."""
    return tuple(type(layer)(*(function(tensor) for tensor in layer)) for layer in state)


def select(state: State, rows: Sequence[int]) -> State:
    """The named rows of a state, in that order; a row may be named twice."""
    index = list(rows)
    return map_state(lambda tensor: tensor[index], state)


def join(states: Sequence[State]) -> State:
    """The rows of several states, one after the other."""
    return tuple(
        type(layers[0])(*(torch.cat(tensors) for tensors in zip(*layers, strict=True)))
        for layers in zip(*states, strict=True)
    )


def detach(state: State) -> State:
    """The state without the gradients of what came before."""
    return map_state(Tensor.detach, state)


def flatten(state: State) -> list[Tensor]:
    """The tensors of a state, layer by layer."""
    return [tensor for layer in state for tensor in layer]


def nest(tensors: Sequence[Tensor], like: State) -> State:
    """The tensors of `flatten` as a state of the kind of `like`."""
    rest = iter(tensors)
    return map_state(lambda _: next(rest), like)


def nbytes(state: State) -> int:
    """Bytes of all tensors of a state."""
    return sum(tensor.numel() * tensor.element_size() for layer in state for tensor in layer)


def largest_layer_nbytes(state: State) -> int:
    """Bytes of the layer whose part of a state is the largest."""
    return max(nbytes((layer,)) for layer in state)


def to_tensors(state: State) -> dict[str, Tensor]:
    """The tensors of a state on the CPU, by the names they have in files: `layers.{i}.{name}`."""
    return {
        f"layers.{i}.{name}": tensor.detach().cpu().contiguous()
        for i, layer in enumerate(state)
        for name, tensor in zip(layer._fields, layer, strict=True)
    }


def from_tensors(tensors: Mapping[str, Tensor], like: State) -> State:
    """The state that `to_tensors` gave.

    Args:
        like: a state of the model, of any number of rows, whose names, shapes, dtypes and device it must have.

    Raises:
        InvalidInputError: the tensors are those of another model, or damaged.
    """
    names = [f"layers.{i}.{name}" for i, layer in enumerate(like) for name in layer._fields]
    if set(tensors) != set(names):
        odd = ", ".join(sorted(set(tensors) ^ set(names))[:3])
        raise InvalidInputError(f"the saved state is of another model: it differs in {odd}")
    for name, wanted in zip(names, flatten(like), strict=True):
        found = tensors[name]
        if (found.shape[1:], found.dtype) != (wanted.shape[1:], wanted.dtype) or found.ndim != wanted.ndim:
            raise InvalidInputError(
                f"the saved state is of another model: {name} is {tuple(found.shape[1:])} of {found.dtype}, but "
                f"{tuple(wanted.shape[1:])} of {wanted.dtype} is needed"
            )
    if len({len(tensor) for tensor in tensors.values()}) != 1:
        raise InvalidInputError("the saved state is damaged: its tensors have different numbers of rows")
    device = flatten(like)[0].device
    return nest([tensors[name].to(device) for name in names], like)


class StateStore:
    """Holds the states of the documents in flight in the same tensors from step to step.

    A step writes the new state of a layer over the old one when the layer has run, so that a state is there once.
    States among a step's temporaries would be there twice, and leave holes of other sizes in every step (docs/log.md).

    Args:
        state: any state of the model, for the shapes.
    """

    def __init__(self, state: State) -> None:
        self._state = map_state(lambda tensor: tensor.new_empty(0, *tensor.shape[1:]), state)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, used or not."""
        return nbytes(self._state)

    @torch.inference_mode()
    def ensure_capacity(self, n: int) -> None:
        """Space for n rows; those that are there stay. One tensor after the other, so that only one is there twice."""
        for i, layer in enumerate(self._state):
            grown = []
            for tensor in layer:
                if n > len(tensor):
                    larger = tensor.new_zeros(n, *tensor.shape[1:])
                    larger[: len(tensor)] = tensor
                    tensor = larger
                grown.append(tensor)
            self._state = (*self._state[:i], type(layer)(*grown), *self._state[i + 1 :])

    def rows(self, start: int, stop: int) -> State:
        """The rows [start, stop), to be read and, in inference mode, written."""
        return map_state(lambda tensor: tensor[start:stop], self._state)

    @torch.inference_mode()
    def write(self, row: int, state: State) -> None:
        """Put a state of one row into a row."""
        for mine, given in zip(flatten(self._state), flatten(state), strict=True):
            mine[row] = given[0]

    @torch.inference_mode()
    def copy(self, row: int) -> State:
        """The state of a row, on its own."""
        return map_state(lambda tensor: tensor[row : row + 1].clone(), self._state)

    @torch.inference_mode()
    def arrange(self, rows: Sequence[int]) -> None:
        """The named rows become the first ones, in that order."""
        order = list(rows)
        if order == list(range(len(order))):
            return
        for tensor in flatten(self._state):
            tensor[: len(order)] = tensor[order]
