"""State passing: texts that start from where other texts ended (arXiv 2507.02782).

A model trained on short texts only sees states that few tokens have written to, and may degrade on longer ones. Some
hundred steps of state passing extend it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.engine.states import detach, flatten, join, map_state, nest, select
from thalweg.errors import InvalidInputError
from thalweg.models.protocol import RecurrentModel, State


class StatePassing:
    """Detached final states of texts of earlier optimiser steps, for later texts to start from.

    What was collected is handed out only after `advance`, to be called after each optimiser step: the two passes of
    GradCache over a text must start from the same state. Draws are by torch's random numbers, which GradCache repeats.

    Args:
        probability: of a text to start from a collected state instead of anew.
        size: states held at most, the most recent ones; each takes `thalweg.engine.states.nbytes`, twice.

    Raises:
        InvalidInputError: a probability outside 0..1, or a size below 1.
    """

    def __init__(self, probability: float = 0.5, size: int = 32) -> None:
        if not 0 <= probability <= 1:
            raise InvalidInputError(f"probability must be in 0..1, got {probability}")
        if size < 1:
            raise InvalidInputError(f"size must be at least 1, got {size}")
        self.probability = probability
        self.size = size
        self._current: State | None = None
        self._collected: State | None = None

    def __len__(self) -> int:
        """States that texts may start from."""
        return 0 if self._current is None else len(flatten(self._current)[0])

    def draw(self, model: RecurrentModel, n_texts: int) -> State | None:
        """(n_texts, …) states to start from, zero for texts that start anew; None before the first `advance`."""
        if self._current is None:
            return None
        chosen = torch.randint(len(self), (n_texts,), device="cpu")
        chosen[torch.rand(n_texts, dtype=torch.float32, device="cpu") >= self.probability] = len(self)
        rows = chosen.tolist()
        with torch.no_grad():
            return select(join([self._current, model.init_state(1)]), rows)

    def collect(self, state: State) -> None:
        """Take in the final states (n, …) of texts."""
        collected = [] if self._collected is None else [self._collected]
        self._collected = map_state(lambda tensor: tensor[-self.size :], join([*collected, detach(state)]))

    def tensors(self) -> list[Tensor]:
        """What texts may start from, for a checkpoint; to be taken after `advance`."""
        return [] if self._current is None else flatten(self._current)

    def restore(self, model: RecurrentModel, tensors: list[Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self._current = nest(tensors, model.init_state(0)) if tensors else None
        self._collected = None

    def advance(self) -> None:
        """An optimiser step is done: hand out what was collected since the last call."""
        if self._collected is not None:
            self._current, self._collected = self._collected, None
