"""How much memory a run will take, stated before it starts. It does not depend on the length of any text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from thalweg.engine.schedule import Schedule
from thalweg.models.protocol import RecurrentModel, largest_layer_bytes, state_bytes
from thalweg.models.quantized import weight_bytes, workspace_bytes
from thalweg.pooling.lexicon import Lexicon
from thalweg.pooling.pooling import Pooling
from thalweg.system.malloc import fix_thresholds, fragmentation_allowance


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a run takes at its worst moment, besides the interpreter and its libraries.

    weights: the model's, quantised ones as they are; states: of the documents in flight, and one layer's new ones;
    activations: what lives at once in the largest packed step; room: the holes that the C library's allocator leaves
    between activations (on the CPU; an estimate, all else is counted); fixed_thresholds: whether that allocator is set
    up for such runs (`THALWEG_MALLOC=1`, `thalweg.system.malloc`), on which the room depends: then it is taken in
    advance and the peak is the same in every run, otherwise it is an average.
    """

    weights: int
    states: int
    activations: int
    room: int
    fixed_thresholds: bool = False

    @property
    def total(self) -> int:
        return self.weights + self.states + self.activations + self.room


def plan_memory(
    model: RecurrentModel, schedule: Schedule, pooling: Pooling, lexicon: Lexicon | None = None
) -> MemoryPlan:
    """The plan of a run of `model` under `schedule`.

    A step reads the states of `max_in_flight` documents and writes a layer's new ones over the old. With sections and
    last-token pooling those that are read may all have been copied, once for the document and once for the vector of
    its section.
    """
    assert isinstance(model, nn.Module)
    one_state = model.init_state(1)
    copies = 3 if schedule.section_size and pooling == "last" else 1
    new_states = schedule.max_in_flight * largest_layer_bytes(one_state)
    activations = [*model.activation_blocks(schedule.max_tokens_per_step), workspace_bytes(model)]
    weights = weight_bytes(model)
    if lexicon is not None:
        weights += lexicon.nbytes
        activations.append(lexicon.step_bytes(schedule.max_tokens_per_step))
    on_cpu = model.device.type == "cpu"
    return MemoryPlan(
        weights=weights,
        states=copies * schedule.max_in_flight * state_bytes(one_state) + new_states,
        activations=sum(activations),
        room=fragmentation_allowance([*activations, new_states]) if on_cpu else 0,
        fixed_thresholds=on_cpu and fix_thresholds(),
    )
