"""Which words a text uses, beside what it means: K more dimensions that a mean of hidden vectors cannot hold.

The mean over a long text says what it is about and forgets the names in it. So every token id has a fixed sparse code
(a count sketch: a few random columns, each with a random sign), scaled by how rare the token is, and the mean l of a
text's codes keeps its words: the products of two such means are those of the whole bags of words, but for a noise of
1/sqrt(K). Like the mean m of the hidden vectors it adds up token by token, in K numbers at any length.

    vector = [ m / |m|,  w l / |l| ]        w = strength / (1 + (|l| / threshold) ** exponent)

|l| falls with the number of different rare words in the text: about .2 in a sentence, .05 on a page, .01 in a book. So
sentences are compared by their meaning and long texts by both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thalweg.errors import InvalidInputError

SMALLEST = 1e-12  # of a norm that is divided by


@dataclass(frozen=True, eq=False)
class Lexicon:
    """The codes of all token ids, and how much they count.

    Args:
        columns: (V, Z) integers in 0..d_lexicon-1, where the code of an id is not zero.
        values: (V, Z) float32, what it is there.
        d_lexicon: K, the dimensions that are added.
        strength, threshold, exponent: see above; strength is the weight in very long texts.

    Raises:
        InvalidInputError: shapes that differ, a column outside, or a constant that is not positive.
    """

    columns: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]
    d_lexicon: int
    strength: float
    threshold: float
    exponent: float

    def __post_init__(self) -> None:
        if self.columns.ndim != 2 or self.columns.shape != self.values.shape:
            raise InvalidInputError(
                f"columns and values must both be (V, Z), but are {self.columns.shape} and {self.values.shape}"
            )
        for name in ("d_lexicon", "strength", "threshold", "exponent"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"{name} must be positive, got {getattr(self, name)}")
        if self.columns.size and not 0 <= self.columns.min() <= self.columns.max() < self.d_lexicon:
            raise InvalidInputError(
                f"columns must be in 0..{self.d_lexicon - 1}, got {self.columns.min()} to {self.columns.max()}"
            )

    def __repr__(self) -> str:
        return f"Lexicon({self.d_lexicon} dimensions, {self.vocab_size} ids)"

    @property
    def vocab_size(self) -> int:
        return len(self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        return self.columns.nbytes + self.values.nbytes

    def step_bytes(self, n_tokens: int) -> int:
        """What `sums` takes at most for so many tokens, where each is a run of its own."""
        return n_tokens * 8 * (self.d_lexicon + 3 * self.columns.shape[1])

    def sums(self, ids: npt.NDArray[np.integer], lengths: Sequence[int]) -> npt.NDArray[np.float64]:
        """(N,) ids of runs of these `lengths`, one after the other -> (B, K): the sum of each run's codes."""
        row = np.repeat(np.arange(len(lengths)) * self.d_lexicon, lengths)
        places = (self.columns[ids] + row[:, None]).ravel()
        n_sums = len(lengths) * self.d_lexicon
        sums = np.bincount(places, weights=self.values[ids].ravel(), minlength=n_sums)
        return sums.astype(np.float64, copy=False).reshape(len(lengths), self.d_lexicon)

    def means(self, ids: npt.NDArray[np.integer], lengths: Sequence[int]) -> npt.NDArray[np.float32]:
        """As `sums`, (B, K) float32, divided by the lengths."""
        return (self.sums(ids, lengths) / np.asarray(lengths)[:, None]).astype(np.float32)

    def join(self, pooled: Tensor, codes: Tensor) -> Tensor:
        """(B, D) means of hidden vectors and (B, K) means of codes -> (B, D + K), see above; with gradients."""
        size = codes.norm(dim=1, keepdim=True)
        weight = self.strength / (1 + (size / self.threshold) ** self.exponent)
        meaning = pooled / pooled.norm(dim=1, keepdim=True).clamp_min(SMALLEST)
        return torch.cat([meaning, codes * (weight / size.clamp_min(SMALLEST))], 1)
