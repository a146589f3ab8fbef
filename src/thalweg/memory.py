"""How much memory a run will take, stated before it starts. It does not depend on the length of any text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from thalweg.allocator import room
from thalweg.engine import Schedule
from thalweg.models.protocol import RecurrentModel, state_bytes
from thalweg.models.quantized import weight_bytes, workspace_bytes
from thalweg.pooling import Pooling


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a run takes at its worst moment, besides the interpreter and its libraries.

    weights: the model's, quantised ones as they are; states: of the documents in flight, before and after a step;
    activations: what lives at once in the largest packed step; room: the holes that the C library's allocator leaves
    between activations (on the CPU; an estimate, all else is counted).
    """

    weights: int
    states: int
    activations: int
    room: int

    @property
    def total(self) -> int:
        return self.weights + self.states + self.activations + self.room


def plan_memory(model: RecurrentModel, schedule: Schedule, pooling: Pooling) -> MemoryPlan:
    """The plan of a run of `model` under `schedule`.

    A step reads the states of `max_in_flight` documents and writes new ones before the old are let go. With sections
    and last-token pooling the states that are read may all have been copied, once for the document and once for the
    vector of its section. New states lie among a step's temporaries until they are stored, and as much again may be in
    holes between them (docs/log.md).
    """
    assert isinstance(model, nn.Module)
    one_state = state_bytes(model.init_state(1))
    new_states = schedule.max_in_flight * one_state
    activations = model.activation_bytes(schedule.max_tokens_per_step) + workspace_bytes(model)
    copies = 4 if schedule.section_size and pooling == "last" else 2
    return MemoryPlan(
        weights=weight_bytes(model),
        states=copies * new_states,
        activations=activations,
        room=room(activations + new_states) + new_states if model.device.type == "cpu" else 0,
    )
