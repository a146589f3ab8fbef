"""How much memory a run will take, stated before it starts. It does not depend on the length of any text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from thalweg.engine.schedule import Schedule
from thalweg.engine.sections import TokenSections
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
    """

    weights: int
    states: int
    activations: int
    room: int
    fixed_thresholds: bool = False

    def __repr__(self) -> str:
        names = ("weights", "states", "activations", "room")
        parts = ", ".join(f"{name} {getattr(self, name) / 2**20:.1f}" for name in names)
        allocator = "" if not self.room or self.fixed_thresholds else " on average"
        return f"MemoryPlan({self.total / 2**20:.1f} MiB in total: {parts}{allocator})"

    @property
    def total(self) -> int:
        return self.weights + self.states + self.activations + self.room


def plan_memory(
    model: RecurrentModel,
    schedule: Schedule,
    pooling: Pooling | str,
    *,
    sections: int | TokenSections | None = None,
    appends_eos: bool = True,
) -> MemoryPlan:
    """The plan of a run of `model` under `schedule`.

    A step reads the states of `max_in_flight` documents and writes a layer's new ones over the old. With `sections`
    that stand for all text up to their end, those that are read may have been copied: the documents' own, and as many
    for probes. sections, appends_eos: see `Engine`.
    """
    pooling = make_pooling(pooling)
    assert isinstance(model, nn.Module)
    one_state = model.init_state(1)
    probes = sections is not None and TokenSections.of(sections).are_probed(pooling, appends_eos=appends_eos)
    n_states = (3 if probes else 1) * schedule.max_in_flight + schedule.max_parked
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
    )
