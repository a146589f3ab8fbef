"""How much memory a run will take, stated before it starts. It does not depend on the length of any text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from thalweg.engine.schedule import Schedule
from thalweg.engine.states import largest_layer_nbytes, nbytes
from thalweg.models.protocol import RecurrentModel
from thalweg.models.quantized import weight_bytes, workspace_bytes
from thalweg.pooling import Pooling, make_pooling
from thalweg.system.malloc import fix_thresholds, fragmentation_allowance


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a run takes at its worst moment, besides the interpreter and its libraries.

    weights: the model's, quantised ones as they are; states: of the documents in flight, and one layer's new ones;
    activations: what lives at once in the largest packed step; room: the holes that the C library's allocator leaves
    between activations (on the CPU; an estimate, all else is counted); fixed_thresholds: whether that allocator is set
    up for such runs (`THALWEG_MALLOC=1`, `thalweg.system.malloc`), on which the room depends: then it is taken in
    advance and is meant to be enough, otherwise it is an average.

    state: what one document's state and sums take, in a session and in its file; no part of the total.
    """

    weights: int
    states: int
    activations: int
    room: int
    fixed_thresholds: bool = False
    state: int = 0

    def __repr__(self) -> str:
        names = ("weights", "states", "activations", "room")
        parts = ", ".join(f"{name} {getattr(self, name) / 2**20:.1f}" for name in names)
        allocator = "" if not self.room or self.fixed_thresholds else " on average"
        return f"MemoryPlan({self.total / 2**20:.1f} MiB in total: {parts}{allocator})"

    @property
    def total(self) -> int:
        return self.weights + self.states + self.activations + self.room


def plan_memory(model: RecurrentModel, schedule: Schedule, pooling: Pooling | str) -> MemoryPlan:
    """The plan of a run of `model` under `schedule`.

    A step reads the states of `max_in_flight` documents and writes a layer's new ones over the old.
    """
    pooling = make_pooling(pooling)
    assert isinstance(model, nn.Module)
    one_state = model.init_state(1)
    n_states = schedule.max_in_flight + schedule.max_parked + schedule.max_shared
    new_states = schedule.max_in_flight * largest_layer_nbytes(one_state)
    activations = [*model.activation_blocks(schedule.max_tokens_per_step), workspace_bytes(model)]
    if pooling.nbytes:
        activations.append(pooling.step_bytes(schedule.max_tokens_per_step))
    on_cpu = model.device.type == "cpu"
    return MemoryPlan(
        weights=weight_bytes(model) + pooling.nbytes,
        states=n_states * nbytes(one_state) + new_states,
        activations=sum(activations),
        room=fragmentation_allowance([*activations, new_states]) if on_cpu else 0,
        fixed_thresholds=on_cpu and fix_thresholds(),
        state=nbytes(one_state) + 8 * pooling.width(model.d_model),
    )
