"""Vectors with gradients: whole texts as one packed run, pooled by operations that can be differentiated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.models.protocol import RecurrentModel
from thalweg.packing import Packing
from thalweg.pooling import Pooling, make_pooling


def embed_packed(model: RecurrentModel, tokens: Tensor, lengths: Sequence[int], *, pooling: Pooling | str) -> Tensor:
    """Pooled vectors of whole texts, as the engine's, with a graph behind them.

    Every token's activations are kept for the backward pass, so memory grows with the tokens of the batch.

    Args:
        tokens: (N,) int64 ids of all texts, one after the other, without padding.
        lengths: tokens of each text, all >= 1.
        pooling: "mean" over a text's tokens, "last" for its last one, or any `thalweg.pooling.Pooling`.

    Returns:
        (B, D) float32, float64 of a float64 model, neither cut nor normalised.
    """
    packing = Packing.whole(lengths, tokens.device)
    counts = pooled_counts(make_pooling(pooling), lengths)
    if counts == list(lengths):
        hidden, _ = model.forward(tokens, packing)
        return _means(hidden, packing.segment_ids, counts)
    rows = [row for end, count in zip(packing.cu_seqlens[1:], counts, strict=True) for row in range(end - count, end)]
    hidden, _ = model.forward(tokens, packing, None, rows)
    segments = torch.repeat_interleave(torch.tensor(counts, device=tokens.device))
    return _means(hidden, segments, counts)


def pooled_counts(pooling: Pooling, lengths: Sequence[int]) -> list[int]:
    """How many tokens of each whole text its vector is the mean of, all at its end."""
    return [pooling.n_wanted(length, 0) for length in lengths]


def _means(vectors: Tensor, segments: Tensor, counts: list[int]) -> Tensor:
    """(M, D) vectors, the segment of each (M,), and the vectors of each segment -> (B, D)."""
    sums = vectors.new_zeros(len(counts), vectors.shape[1]).index_add(0, segments, vectors)
    return sums / torch.tensor(counts, device=vectors.device).unsqueeze(1)
