"""What a run minimises: sentence-transformers' losses, and the one for a teacher that it does not have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import all_gather_with_grad, get_rank
from torch import Tensor, nn

from thalweg.errors import InvalidInputError
from thalweg.training.recipes import Recipe
from thalweg.training.teacher import TeacherVectors

SCORE_ROWS = 256
"""Rows of the matrix of scores that are worked on at a time."""


def make_loss(model: SentenceTransformer, recipe: Recipe, n_processes: int, teacher: TeacherVectors | None) -> Any:
    """The loss of a recipe, over the batches of all processes together.

    Raises:
        InvalidInputError: a Matryoshka width above the model's.
    """
    dimension = model[0].get_embedding_dimension()  # type: ignore[operator]
    for width in recipe.matryoshka:
        if width > dimension:
            raise InvalidInputError(f"matryoshka={width} is wider than the model's vectors, which have {dimension}")
    gather = n_processes > 1
    if recipe.objective == "distill":
        assert teacher is not None
        return TeacherLoss(model, recipe, dimension, teacher, gather_across_devices=gather)
    scale = 1 / recipe.temperature
    loss: nn.Module
    if recipe.gradient_cache:
        loss = CachedMultipleNegativesRankingLoss(
            model,
            scale=scale,
            mini_batch_size=SCORE_ROWS,
            mini_batch_num_tokens=recipe.mini_batch_tokens,
            gather_across_devices=gather,
        )
    else:
        loss = MultipleNegativesRankingLoss(model, scale=scale, gather_across_devices=gather)
    if recipe.matryoshka:
        widths = sorted({*recipe.matryoshka, dimension}, reverse=True)
        loss = MatryoshkaLoss(model, loss, widths)
    return loss


class TeacherLoss(CachedLossMixin, nn.Module):
    """Squared distance to a teacher's vectors, and squared error of the matrix of cosines within a batch.

    All texts of a batch count, whatever their column. The vectors are compared at the model's own width, cosines also
    at every Matryoshka width. GradCache (see `CachedLossMixin`) bounds the memory if the recipe wants it.

    Labels are (B, C) int64: of each text of the batch its row among the teacher's vectors.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        recipe: Recipe,
        dimension: int,
        teacher: TeacherVectors,
        *,
        gather_across_devices: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.mini_batch_size = SCORE_ROWS
        self.mini_batch_num_tokens = recipe.mini_batch_tokens
        self.uses_gradient_cache = recipe.gradient_cache
        self.weights = (recipe.vector_weight, recipe.similarity_weight)
        self.widths = sorted({*recipe.matryoshka, dimension}, reverse=True)
        self.teacher = teacher
        self.gather_across_devices = gather_across_devices

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> Tensor:
        """() float32, the loss of the batch."""
        if self.uses_gradient_cache:
            return self.forward_cached(sentence_features, labels)
        return self.calculate_loss([[self.model(column)["sentence_embedding"]] for column in sentence_features], labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """reps: of each column its (mini-batches of) vectors (b, D)."""
        assert labels is not None
        vectors = torch.cat([torch.cat(column) for column in reps])
        targets = self.teacher.take(labels.T.flatten(), vectors.device)
        near = (F.normalize(vectors, dim=1) - self.teacher.fitted(targets, vectors.shape[1])).square().sum(1).mean()
        everyone, targets_of_all, first = vectors, targets, 0
        if self.gather_across_devices:
            everyone, targets_of_all = all_gather_with_grad(vectors), all_gather_with_grad(targets)
            first = get_rank() * len(vectors)
        cosines = targets @ targets_of_all.T
        alike = vectors.new_zeros(())
        for width in self.widths:
            cut = F.normalize(everyone[:, :width], dim=1)
            alike = alike + (cut[first : first + len(vectors)] @ cut.T - cosines).square().mean() / len(self.widths)
        loss = self.weights[0] * near + self.weights[1] * alike
        if with_backward:
            loss.backward()
            return loss.detach()
        return loss
