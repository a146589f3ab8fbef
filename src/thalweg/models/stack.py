"""What stands around the layers of every family: embeddings, one layer after the other, the final norm.

A family is a subclass that makes the layers and says what one layer's zero state is. A layer is a module that is called
as `layer(stream, packing, state, rows)` and gives the stream, of the wanted rows only where `rows` are given, and its
new state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from thalweg import kernels
from thalweg.ops.tiles import wide
from thalweg.packing import Packing

LayerState = TypeVar("LayerState", bound=tuple[Any, ...])


class Stack(nn.Module, Generic[LayerState]):
    """A stack without a language-model head; implements `thalweg.models.protocol.RecurrentModel`."""

    def __init__(self, vocab_size: int, d_model: int, layers: Iterable[nn.Module], norm: nn.Module) -> None:
        """`layers` are made after the embeddings, so that a seed gives the same weights whoever asks."""
        super().__init__()
        kernels.enabled()  # a choice that cannot be is an error here, not in the midst of a run
        self.embeddings = nn.Embedding(vocab_size, d_model)
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    @abstractmethod
    def layer_state(self, n_segments: int) -> LayerState:
        """The zero state of one layer."""

    @abstractmethod
    def activation_blocks(self, n_tokens: int) -> list[int]:
        """See `RecurrentModel.activation_blocks`."""

    def embed(self, tokens: Tensor) -> Any:
        """What enters the first layer: the residual stream, (N, D) float32, or float64 for float64 weights."""
        found = self.embeddings(tokens)
        return found.to(wide(found))

    def finish(self, stream: Any) -> Tensor:
        """The hidden vectors of what leaves the last layer."""
        hidden: Tensor = self.norm(stream)
        return hidden

    @property
    def d_model(self) -> int:
        return self.embeddings.embedding_dim

    @property
    def device(self) -> torch.device:
        return self.embeddings.weight.device

    def init_state(self, n_segments: int) -> tuple[LayerState, ...]:
        return tuple(self.layer_state(n_segments) for _ in self.layers)

    def forward(
        self,
        tokens: Tensor,
        packing: Packing,
        state: tuple[LayerState, ...] | None = None,
        rows: Sequence[int] | None = None,
        out: tuple[LayerState, ...] | None = None,
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """See `RecurrentModel.forward`. The last layer computes only the wanted rows."""
        stream = self.embed(tokens)
        last = len(self.layers) - 1
        new_state = []
        for i, layer in enumerate(self.layers):
            stream, layer_state = layer(stream, packing, state[i] if state else None, rows if i == last else None)
            layer_state = _write(layer_state, out[i] if out else None)
            new_state.append(layer_state)
        return self.finish(stream), tuple(new_state)


def pick(x: Tensor, rows: Sequence[int] | None) -> Tensor:
    """The wanted rows of x; None stands for all."""
    return x if rows is None else x[list(rows)]


def _write(new: LayerState, out: LayerState | None) -> LayerState:
    """A layer's new state, in `out` where that is given; whoever calls lets go of `new` before the next layer."""
    if out is None:
        return new
    for kept, tensor in zip(out, new, strict=True):
        kept.copy_(tensor)
    return out
