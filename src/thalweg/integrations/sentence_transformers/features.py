"""What goes from module to module: the packed ids of a batch, and what comes of them.

The format is that of sentence-transformers for batches without padding, so that its trainer and losses can cut a batch
into smaller ones: `input_ids` (1, N) int64, the texts one after the other; `cu_seq_lens_q` (B + 1,) int32, where each
begins; `sentence_embedding` (B, D) float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def pack(ids: Sequence[npt.NDArray[np.int32]]) -> dict[str, Any]:
    """The features of a batch of texts, of each its ids (n,)."""
    bounds = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    return {
        "input_ids": torch.from_numpy(np.concatenate(ids).astype(np.int64)).unsqueeze(0),
        "cu_seq_lens_q": torch.from_numpy(bounds.astype(np.int32)),
    }


def unpack(features: dict[str, Any]) -> tuple[Tensor, list[int]]:
    """(N,) int64 ids of all texts, and the tokens of each."""
    bounds = features["cu_seq_lens_q"].tolist()
    return features["input_ids"].reshape(-1), [end - start for start, end in pairwise(bounds)]


class Features(dict[str, Any]):
    """Features whose token vectors are computed when they are asked for: as many as tokens, they are not kept.

    `token_embeddings` is a list of (n, D) float32, one for each text, and `attention_mask` one of ones.
    """

    def __init__(self, content: dict[str, Any], token_vectors: Callable[[], list[Tensor]] | None = None) -> None:
        """`token_vectors` makes them; None for a copy, as accelerate makes of a module's outputs, which has none."""
        super().__init__(content)
        self._token_vectors = token_vectors

    def __missing__(self, key: str) -> list[Tensor]:
        if key == "token_embeddings" and self._token_vectors is not None:
            self[key] = self._token_vectors()
        elif key == "attention_mask":
            self[key] = [torch.ones(length, dtype=torch.int64, device="cpu") for length in unpack(self)[1]]
        else:
            raise KeyError(key)
        return self[key]
