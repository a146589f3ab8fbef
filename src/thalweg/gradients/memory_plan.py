"""How much memory a training step takes, stated before it starts."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thalweg.engine.states import flatten, nbytes
from thalweg.gradients.batch import Batch
from thalweg.gradients.checkpointed import Run
from thalweg.gradients.forward import pooled_counts
from thalweg.gradients.steps import Checkpointing, plan_steps
from thalweg.models.protocol import RecurrentModel
from thalweg.pooling import Pooling, make_pooling


@dataclass(frozen=True)
class TrainingMemoryPlan:
    """Bytes of a forward and a backward pass, besides the optimiser, the interpreter and its libraries.

    weights: all parameters; gradients: of those that are trained, twice, as a step's are added to the sum; states: kept
    between chunks, and those around the step at hand; activations: what the largest step takes, forward and backward.
    Only `states` grows with the length of texts. With `offload` nearly all of it is in the CPU's memory.
    """

    weights: int
    gradients: int
    states: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.states + self.activations


def plan_training_memory(
    model: RecurrentModel,
    lengths: Sequence[int],
    checkpointing: Checkpointing | None = None,
    *,
    pooling: Pooling | str = "last",
) -> TrainingMemoryPlan:
    """The plan of one batch of texts of these `lengths` under `embed_checkpointed`.

    Runs the fullest step once, forward and backward with made-up tokens, to see what it takes; the rest is counted.
    """
    assert isinstance(model, nn.Module)
    checkpointing = checkpointing or Checkpointing()
    counts = pooled_counts(make_pooling(pooling), lengths)
    steps = plan_steps(lengths, checkpointing, counts)
    tokens = torch.zeros(sum(lengths), dtype=torch.int64, device=model.device)
    batch = Batch(model, tokens, lengths, counts, steps)
    run = Run(batch, checkpointing, 0, keep_final_state=False)
    in_segment = max(
        sum(step.n_carried for step in steps[head + 1 : head + run.stride]) for head in range(0, len(steps), run.stride)
    )
    most = max(max(step.n_carried, len(step.going_on)) for step in steps)
    rows = sum(steps[head].n_carried for head in run.heads) + in_segment + 4 * most
    return TrainingMemoryPlan(
        weights=_bytes(model.parameters()),
        gradients=2 * _bytes(batch.parameters),
        states=rows * nbytes(model.init_state(1)),
        activations=_step_bytes(batch),
    )


def _step_bytes(batch: Batch) -> int:
    """What the step with the most tokens takes at its worst moment, forward and backward."""
    number = max(range(len(batch)), key=lambda n: sum(piece.length for piece in batch.steps[n].pieces))
    n_carried = batch.steps[number].n_carried
    with LiveBytes() as live, torch.enable_grad():
        state = flatten(batch.model.init_state(n_carried)) if n_carried else None
        added, leaving = batch.run(number, state)
        ends = [tensor for tensor in (added, *leaving) if tensor.requires_grad]
        torch.autograd.grad(ends, batch.parameters, [torch.zeros_like(end) for end in ends], allow_unused=True)
    return live.most


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, as long as they live; `most` is the peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # A view's storage is that of an argument, which may be older than the count.
            if isinstance(tensor, Tensor) and not func.is_view and not _is_one_of(tensor, (args, kwargs)):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _is_one_of(tensor: Tensor, arguments: Any) -> bool:
    """In-place operations return what they were given."""
    storage = tensor.untyped_storage()._cdata
    return any(isinstance(t, Tensor) and t.untyped_storage()._cdata == storage for t in tree_leaves(arguments))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
