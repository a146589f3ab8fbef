"""Vectors with gradients of texts of any length: the graph keeps states between chunks and no activations.

The forward pass is that of inference, without a graph. The backward pass takes the steps in reverse: each is run again
from the state that entered it, with a graph of its own, which is gone before the next. The gradients are those of full
back-propagation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thalweg.engine.states import flatten, nest
from thalweg.errors import InvalidInputError
from thalweg.gradients.batch import Batch, Tensors
from thalweg.gradients.forward import pooled_counts
from thalweg.gradients.steps import Checkpointing, plan_steps
from thalweg.models.protocol import RecurrentModel, State
from thalweg.pooling import Pooling, make_pooling


class Embedded(NamedTuple):
    """What `embed_checkpointed` gives.

    Args:
        vectors: (B, D) float32, float64 of a float64 model, neither cut nor normalised.
        final_state: (B, …), detached, or None if not asked for.
    """

    vectors: Tensor
    final_state: State | None


def embed_checkpointed(
    model: RecurrentModel,
    tokens: Tensor,
    lengths: Sequence[int],
    *,
    pooling: Pooling | str,
    checkpointing: Checkpointing | None = None,
    initial_state: State | None = None,
    keep_final_state: bool = False,
) -> Embedded:
    """Pooled vectors of whole texts, as those of `embed_packed`, in memory that does not grow with activations.

    Parameters get their gradients once, when all steps are done, as one operation's: hooks on them (accelerate, DDP)
    see what they always see. Calls may be repeated under GradCache; dropout is the same in both of its passes.

    Args:
        tokens: (N,) int64 ids of all texts, one after the other, without padding.
        lengths: tokens of each text, all >= 1.
        pooling: "mean" over a text's tokens, "last" for its last one, or any `thalweg.pooling.Pooling`.
        checkpointing: chunks and what is kept; None for the defaults.
        initial_state: (B, …), what each text starts from, such as the final states of other texts (state passing, arXiv
            2507.02782); gradients reach it where it wants them. None: all start anew.
        keep_final_state: also return the state after each text's last token.

    Raises:
        InvalidInputError: `lengths` that do not add up to the tokens, or an initial state of another number of texts.
    """
    if sum(lengths) != len(tokens) or min(lengths, default=0) < 1:
        raise InvalidInputError(f"lengths must be at least 1 and add up to {len(tokens)} tokens, got {list(lengths)!r}")
    initial = [] if initial_state is None else flatten(initial_state)
    if initial and len(initial[0]) != len(lengths):
        raise InvalidInputError(f"initial_state is that of {len(initial[0])} texts, but there are {len(lengths)}")
    checkpointing = checkpointing or Checkpointing()
    counts = pooled_counts(make_pooling(pooling), lengths)
    steps = plan_steps(lengths, checkpointing, counts)
    run = Run(Batch(model, tokens, lengths, counts, steps), checkpointing, len(initial), keep_final_state)
    vectors: Tensor = _Embed.apply(run, *initial, *run.batch.parameters)  # type: ignore[no-untyped-call]
    return Embedded(vectors, run.final_state)


class Run:
    """One call: its forward pass, and what its backward pass has to know besides tensors."""

    def __init__(self, batch: Batch, checkpointing: Checkpointing, n_carried: int, keep_final_state: bool) -> None:
        self.batch = batch
        self.checkpointing = checkpointing
        self.n_carried = n_carried
        self.stride = math.ceil(math.sqrt(len(batch))) if checkpointing.two_level else 1
        self.recording = torch.is_grad_enabled()
        self.final_state: State | None = None
        self._final = flatten(batch.model.init_state(len(batch.texts))) if keep_final_state else None

    @property
    def heads(self) -> list[int]:
        """Steps whose entering states are kept: every `stride`-th from which a gradient is to be computed."""
        steps, stride = self.batch.steps, self.stride
        return [
            head
            for head in range(0, len(steps), stride)
            if steps[head].n_carried and any(step.live for step in steps[head : head + stride])
        ]

    def forward(self, initial: Tensors) -> tuple[Tensor, Tensors]:
        """(B, D) vectors, and the states that entered the steps of `heads`, all in one list."""
        batch = self.batch
        vectors = torch.zeros(len(batch.texts), batch.model.d_model, dtype=torch.float64, device=batch.device)
        dtype = torch.float32
        heads = set(self.heads) if self.recording else set()
        kept: Tensors = []
        carried: Tensors = []
        for number in range(len(batch)):
            if number in heads:
                kept += self._put_away(carried)
            added, carried = self._advance(number, carried, initial)
            vectors.index_add_(0, batch.texts_of(number), added.double())
            dtype = added.dtype
        if self._final is not None:
            self.final_state = nest(self._final, batch.model.init_state(0))
        return vectors.to(dtype), kept

    def _advance(self, number: int, carried: Tensors, initial: Tensors) -> tuple[Tensor, Tensors]:
        step = self.batch.steps[number]
        ended = self._final is not None
        added, state = self.batch.run(number, self.entering(number, carried, initial), keep_ended=ended)
        if self._final is None:
            return added, state
        rows = [row for row, piece in enumerate(step.pieces) if piece.ends]
        texts = [step.pieces[row].text for row in rows]
        for whole, tensor in zip(self._final, state, strict=True):
            whole[texts] = tensor[rows].to(whole.dtype)
        return added, [tensor[step.going_on] for tensor in state]

    def entering(self, number: int, carried: Tensors, initial: Tensors) -> Tensors | None:
        """The state that a step starts from: of the pieces that go on, then of texts that start from a given one."""
        step = self.batch.steps[number]
        if not initial:
            return carried if step.n_carried else None
        new = [piece.text for piece in step.pieces[step.n_carried :]]
        given = [tensor[new] for tensor in initial]
        return [torch.cat(pair) for pair in zip(carried, given, strict=True)] if step.n_carried else given

    def _put_away(self, state: Tensors) -> Tensors:
        if not self.checkpointing.offload or self.batch.device.type == "cpu":
            return state
        pinned = self.batch.device.type == "cuda"
        copies = [torch.empty_like(tensor, device="cpu", pin_memory=pinned) for tensor in state]
        for copy, tensor in zip(copies, state, strict=True):
            copy.copy_(tensor, non_blocking=pinned)
        return copies

    def segments(self, kept: Tensors, initial: Tensors) -> Iterator[list[tuple[int, Tensors]]]:
        """From the last to the first, `stride` steps with the states carried into them."""
        heads, n_steps = self.heads, len(self.batch)
        size = len(kept) // len(heads) if heads else 0
        places = dict(zip(heads, count(0, size), strict=False))
        for head in reversed(range(0, n_steps, self.stride)):
            numbers = range(head, min(head + self.stride, n_steps))
            live = [number for number in numbers if self.batch.steps[number].live]
            if not live:
                yield [(number, []) for number in numbers]
                continue
            place = places.get(head)
            stored = [] if place is None else kept[place : place + size]
            states = [[tensor.to(self.batch.device, non_blocking=True) for tensor in stored]]
            for number in range(head, live[-1]):
                states.append(self.batch.run(number, self.entering(number, states[-1], initial))[1])
            states += [[] for _ in range(live[-1] + 1, numbers.stop)]
            yield list(zip(numbers, states, strict=True))


class _Gradients:
    """Gradients of the parameters and of the initial state, summed over steps, and of the state between two steps."""

    def __init__(self, run: Run, initial: Tensors, wanted: Sequence[bool]) -> None:
        self.run = run
        self.initial = initial
        self.of_initial = [
            torch.zeros_like(tensor) if want else None for tensor, want in zip(initial, wanted, strict=True)
        ]
        self.of_parameters: list[Tensor | None] = [None] * len(run.batch.parameters)
        self.of_state: list[Tensor | None] = []

    def add(self, number: int, carried: Tensors, of_vectors: Tensor) -> None:
        """Run a step again with a graph, and take its gradients; `carried`: the state that entered it."""
        batch = self.run.batch
        step = batch.steps[number]
        if not step.live:
            self.of_state = []
            return
        with torch.enable_grad():
            entering = self.run.entering(number, carried, self.initial) or []
            leaves = [tensor.detach().requires_grad_() for tensor in entering]
            added, leaving = batch.run(number, leaves or None)
        ends = [(added, of_vectors[batch.texts_of(number)]), *zip(leaving, self.of_state, strict=False)]
        ends = [(tensor, grad) for tensor, grad in ends if grad is not None and tensor.requires_grad]
        inputs = [*leaves, *batch.parameters]
        grads: Sequence[Tensor | None] = [None] * len(inputs)
        if ends:
            outputs, seeds = zip(*ends, strict=True)
            grads = torch.autograd.grad(outputs, inputs, seeds, allow_unused=True)
        self._add_to_parameters(grads[len(leaves) :])
        self._hand_back(number, grads[: len(leaves)])

    def _add_to_parameters(self, grads: Sequence[Tensor | None]) -> None:
        """Sums in float32 at least: a long text has many steps."""
        for at, grad in enumerate(grads):
            if grad is None:
                continue
            total = self.of_parameters[at]
            if total is None:
                self.of_parameters[at] = grad.to(torch.promote_types(grad.dtype, torch.float32), copy=True)
            else:
                total += grad

    def _hand_back(self, number: int, grads: Sequence[Tensor | None]) -> None:
        """What reached the state before the step: to the step before, and to the initial state."""
        step = self.run.batch.steps[number]
        cut = [
            row
            for row, piece in enumerate(step.pieces[: step.n_carried])
            if self.run.checkpointing.cuts_after(piece.chunk - 1)
        ]
        new = [piece.text for piece in step.pieces[step.n_carried :]]
        self.of_state = []
        for at, grad in enumerate(grads):
            total = self.of_initial[at] if self.initial else None
            if grad is not None and total is not None:
                total[new] += grad[step.n_carried :]
            before = None if grad is None or len(cut) == step.n_carried else grad[: step.n_carried]
            if before is not None and cut:
                before = before.index_fill(0, torch.tensor(cut, device=before.device), 0)
            self.of_state.append(before)


class _Embed(torch.autograd.Function):
    """All steps of a batch as one operation; its inputs are the initial state's tensors and the parameters."""

    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: Tensor) -> Tensor:
        vectors, kept = run.forward(list(tensors[: run.n_carried]))
        ctx.run, ctx.n_inputs = run, len(tensors)
        if run.recording:
            ctx.save_for_backward(*tensors, *kept)
        return vectors

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_vectors: Tensor) -> tuple[Tensor | None, ...]:
        run: Run = ctx.run
        saved = list(ctx.saved_tensors)
        initial, kept = saved[: run.n_carried], saved[ctx.n_inputs :]
        gradients = _Gradients(run, initial, ctx.needs_input_grad[1 : 1 + run.n_carried])
        for segment in run.segments(kept, initial):
            for number, carried in reversed(segment):
                gradients.add(number, carried, of_vectors)
        of_parameters = (
            None if total is None else total.to(parameter.dtype)
            for parameter, total in zip(run.batch.parameters, gradients.of_parameters, strict=True)
        )
        return None, *gradients.of_initial, *of_parameters
