"""What a pooling is: how the hidden vectors of a text become one vector, as they come by.

Every pooling is a mean over some of a text's tokens, so a sum and a count are all that it keeps. A new one is a file
beside `last.py` and a row in `pooling/__init__.py`; engine, training, files and cards ask it and know none by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thalweg.pooling.vectors import FloatArray


@dataclass(frozen=True)
class Pooling(ABC):
    """How the hidden vectors of a text become one vector.

    Attributes:
        name: in settings and on the command line.
        title: in sentences.
        stored_name: sentence-transformers' `pooling_mode`; stored_flag: its older key for the same.
        needs_eos: the vector of a text is that of an end token, whatever the tokenizer does. That of the text up to a
            section's end is then that of an EOS that is fed to a copy of the state there.
        averages_prompt: whether a prompt's own tokens count.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    stored_name: ClassVar[str]
    stored_flag: ClassVar[str]
    needs_eos: ClassVar[bool] = False
    averages_prompt: ClassVar[bool] = True

    @property
    def n_last(self) -> int:
        """How many of a text's last tokens must be known before the tokens ahead of them may be run."""
        return 1

    def width(self, d_model: int) -> int:
        """Numbers that are kept for a text."""
        return d_model

    @abstractmethod
    def n_wanted(self, length: int, after: int | None) -> int:
        """How many of `length` neighbouring tokens count, all at their end.

        after: tokens of the text that follow them; None for at least `n_last`.
        """

    def carried(self, sums: RunningMean) -> RunningMean:
        """What a text that goes on from where this one ended has been summed up so far."""
        return sums.copy()

    def extra_sums(self, ids: npt.NDArray[np.integer], lengths: Sequence[int]) -> npt.NDArray[np.float64] | None:
        """What is summed beside the hidden vectors, from the ids (N,) of segments of `lengths`: (S, width - D)."""
        return None

    def sums(
        self, hidden: Tensor, counts: Sequence[int], ids: npt.NDArray[np.integer], lengths: Sequence[int]
    ) -> npt.NDArray[np.floating]:
        """What each segment adds to its text: the sums of the hidden vectors (M, D) that count, (S, width).

        counts: how many of M are of each segment; ids, lengths: the tokens (N,) of all, and of each.
        """
        sums = torch.stack([piece.sum(0) for piece in hidden.split(list(counts))]).cpu().numpy()
        extra = self.extra_sums(ids, lengths)
        return sums if extra is None else np.concatenate([sums, extra], axis=1)

    def finish(self, pooled: Tensor, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """(B, D) means of hidden vectors of whole texts, and their ids (N,) -> (B, width) vectors; with gradients."""
        extra = self.extra_sums(ids.cpu().numpy(), lengths)
        if extra is None:
            return self.join(pooled)
        means = torch.from_numpy(extra / np.asarray(lengths)[:, None]).to(pooled)
        return self.join(torch.cat([pooled, means], 1))

    def join(self, pooled: Tensor) -> Tensor:
        """(B, width) means -> (B, width) vectors; with gradients."""
        return pooled

    @property
    def nbytes(self) -> int:
        """Bytes of what the pooling holds besides the model."""
        return 0

    def step_bytes(self, n_tokens: int) -> int:
        """Bytes that `sums` takes at most in a step of so many tokens, besides the hidden vectors."""
        return 0


class RunningMean:
    """Mean of vectors that arrive as sums, accumulated in float64 so that ten million of them lose nothing.

    Attributes:
        total: (width,) float64, the sum so far; count: of how many.
    """

    __slots__ = ("count", "total")

    def __init__(self, width: int) -> None:
        self.total = np.zeros(width, dtype=np.float64)
        self.count = 0

    def add(self, total: npt.NDArray[np.floating], count: int) -> None:
        """Add the sum (width,) of `count` vectors."""
        self.total += total
        self.count += count

    def mean(self, since: RunningMean | None = None) -> FloatArray:
        """(width,) float32: the mean so far, or of what was added since an earlier copy."""
        if since is None:
            return (self.total / self.count).astype(np.float32)
        return ((self.total - since.total) / (self.count - since.count)).astype(np.float32)

    def copy(self) -> RunningMean:
        """Another one at the same point."""
        other = RunningMean(0)
        other.total, other.count = self.total.copy(), self.count
        return other
