"""A batch of texts step by step, the same way whenever a step is run: first for its result, later for its gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.engine.states import flatten, map_state, nest
from thalweg.gradients.steps import Piece, Step
from thalweg.models.protocol import RecurrentModel
from thalweg.packing import Packing

Tensors = list[Tensor]
"""A state as a list, layer by layer (`states.flatten`)."""


def _alone(tensor: Tensor) -> Tensor:
    """A state that neither keeps a graph nor a larger tensor of which it is a part."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def dropout_is_active(model: nn.Module) -> bool:
    """Whether two forward passes differ by chance: some adapters drop out, none of thalweg's models does."""
    return any(m.training and m.p > 0 for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd))


class Batch:
    """Texts cut into steps, and how each is run.

    Autocast is that of the moment when the batch is made. With dropout every step has a seed of its own, drawn then
    too, so that it drops the same whenever it is run.

    Args:
        tokens: (N,) int64 ids of all texts, one after the other.
        counts: how many tokens of each text its vector is the mean of, all at its end.
    """

    def __init__(
        self, model: RecurrentModel, tokens: Tensor, lengths: Sequence[int], counts: Sequence[int], steps: list[Step]
    ) -> None:
        assert isinstance(model, nn.Module)
        self.model = model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.texts = tokens.split(list(lengths))
        self.counts = counts
        self.steps = steps
        self.device = model.device
        self._no_state = model.init_state(0)
        kind = self.device.type
        self._autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        self._seed = int(torch.randint(2**62, (), device="cpu")) if dropout_is_active(model) else None

    def __len__(self) -> int:
        return len(self.steps)

    def texts_of(self, number: int) -> Tensor:
        """(P,) int64: the texts of a step's pieces."""
        return torch.tensor([piece.text for piece in self.steps[number].pieces], device=self.device)

    def run(self, number: int, state: Tensors | None, *, keep_ended: bool = False) -> tuple[Tensor, Tensors]:
        """One step through all layers.

        Args:
            number: of the step.
            state: of the step's first pieces, (S_in, …) each; None: all begin anew.
            keep_ended: also give the states of texts that end here.

        Returns:
            (P, D) float32 or float64: what each piece adds to the vector of its text; the states of the pieces that go
            on (and end), in their order.
        """
        step = self.steps[number]
        final = range(len(step.pieces)) if keep_ended else step.going_on
        lengths = [piece.length for piece in step.pieces]
        packing = Packing(lengths, n_carried=len(state[0]) if state else 0, wanted=final, device=self.device)
        tokens = torch.cat([self.texts[piece.text][piece.start : piece.stop] for piece in step.pieces])
        pooled = [self._n_pooled(piece) for piece in step.pieces]
        rows = None
        if pooled != lengths:
            ends = zip(packing.cu_seqlens[1:], pooled, strict=True)
            rows = [row for end, count in ends for row in range(end - count, end)]
        with self._as_ever(number):
            hidden, new_state = self.model(
                tokens, packing, None if state is None else nest(state, self._no_state), rows
            )
        if not torch.is_grad_enabled():
            hidden, new_state = hidden.detach(), map_state(_alone, new_state)
        pieces = torch.repeat_interleave(torch.tensor(pooled, device=self.device))
        sums = hidden.new_zeros(len(pooled), hidden.shape[1]).index_add(0, pieces, hidden)
        counts = torch.tensor([self.counts[piece.text] for piece in step.pieces], device=self.device)
        return sums / counts.unsqueeze(1), flatten(new_state)

    def _n_pooled(self, piece: Piece) -> int:
        """Tokens of a piece that count, all at its end."""
        first = len(self.texts[piece.text]) - self.counts[piece.text]
        return max(0, piece.stop - max(piece.start, first))

    @contextmanager
    def _as_ever(self, number: int) -> Iterator[None]:
        """The batch's autocast, and the step's own random numbers.

        Autocast without its cache: that would hand weights converted without gradients to passes that need them. With
        dropout always with a graph: without one models treat fewer rows at a time, which would drop others.
        """
        kind = self.device.type
        enabled: dict[str, Any] = {"enabled": self._autocast is not None, "cache_enabled": False}
        devices = [self.device] if kind != "cpu" else []
        with (
            torch.autocast(kind, dtype=self._autocast, **enabled),
            torch.random.fork_rng(devices, enabled=self._seed is not None),
            torch.set_grad_enabled(torch.is_grad_enabled() or self._seed is not None),
        ):
            if self._seed is not None:
                torch.manual_seed(self._seed + number)
            yield
