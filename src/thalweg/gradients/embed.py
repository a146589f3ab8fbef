"""The one call that a training framework makes: vectors of a batch, whatever the settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thalweg.gradients.batch import dropout_is_active
from thalweg.gradients.checkpointed import embed_checkpointed
from thalweg.gradients.forward import embed_packed
from thalweg.gradients.state_passing import StatePassing
from thalweg.gradients.steps import Checkpointing
from thalweg.models.protocol import RecurrentModel
from thalweg.pooling import Pooling


def is_random(model: nn.Module, state_passing: StatePassing | None) -> bool:
    """Whether a training pass is not what inference computes, so that GradCache's first pass must be one too."""
    return dropout_is_active(model) or (model.training and state_passing is not None)


def embed_for_training(
    model: RecurrentModel,
    tokens: Tensor,
    lengths: Sequence[int],
    *,
    pooling: Pooling | str,
    checkpointing: Checkpointing | None = None,
    state_passing: StatePassing | None = None,
) -> Tensor:
    """Pooled vectors, (B, D) float32 or float64, neither cut nor normalised; arguments as of `embed_checkpointed`.

    Without `checkpointing` the activations of all tokens are kept, unless states are passed.
    """
    recording = torch.is_grad_enabled()
    if checkpointing is None and state_passing is None:
        assert isinstance(model, nn.Module)
        with torch.set_grad_enabled(recording or dropout_is_active(model)):  # see Batch: dropout needs the same path
            vectors = embed_packed(model, tokens, lengths, pooling=pooling)
        return vectors if recording else vectors.detach()
    embedded = embed_checkpointed(
        model,
        tokens,
        lengths,
        pooling=pooling,
        checkpointing=checkpointing,
        initial_state=None if state_passing is None else state_passing.draw(model, len(lengths)),
        keep_final_state=state_passing is not None and recording,
    )
    if state_passing is not None and embedded.final_state is not None:
        state_passing.collect(embedded.final_state)
    return embedded.vectors
