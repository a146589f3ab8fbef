"""State passing in sentence-transformers' trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from thalweg.gradients.state_passing import StatePassing


class StatePassingCallback(TrainerCallback):
    """Hands out what `state_passing` has collected after each optimiser step; for the trainer's `callbacks`."""

    def __init__(self, state_passing: StatePassing) -> None:
        self.state_passing = state_passing

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.state_passing.advance()
