"""What the engine asks of a model, and nothing more.

A state is a tuple with one NamedTuple of tensors a layer; every tensor has the segment as its first dimension, and
accumulators are float32. `forward` returns a fresh state and never changes the one it was given, unless told where to
write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from thalweg.packing import Packing

State: TypeAlias = tuple[Any, ...]
"""One NamedTuple of tensors a layer."""


class RecurrentModel(Protocol):
    """A stack of recurrent layers over packed runs."""

    @property
    def d_model(self) -> int:
        """Width D of the hidden vectors."""

    @property
    def device(self) -> torch.device:
        """Where tokens and states must be."""

    def init_state(self, n_segments: int) -> State:
        """The zero state of `n_segments` segments."""

    def forward(
        self,
        tokens: Tensor,
        packing: Packing,
        state: State | None = None,
        rows: Sequence[int] | None = None,
        out: State | None = None,
    ) -> tuple[Tensor, State]:
        """One step.

        Args:
            tokens: (N,) int64 ids of the run.
            packing: the run's layout.
            state: rows 0..S_in-1, in the order of the first S_in segments; None only if S_in = 0.
            rows: ascending positions whose hidden vector is wanted; None stands for all N.
            out: S_out rows that take the new state, each layer's once it has run, so that they may lie in the memory of
                `state`. Without gradients only.

        Returns:
            hidden (N or M, D) float32 after the final norm, and the state of the S_out wanted segments: `out`, or a
            fresh one.
        """

    def activation_blocks(self, n_tokens: int) -> list[int]:
        """Upper estimate of the bytes of each tensor that lives at the fullest point of a step of `n_tokens`, weights
        and states apart."""
