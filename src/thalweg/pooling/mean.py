"""The mean over all tokens, alone or with a lexicon beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from thalweg.pooling.lexicon import Lexicon
from thalweg.pooling.pooling import Pooling


@dataclass(frozen=True)
class Mean(Pooling):
    """The mean of the hidden vectors of all tokens, end tokens included.

    Args:
        n_eos: end tokens at the end of every text; they are no section of their own.
    """

    n_eos: int = 1

    name: ClassVar[str] = "mean"
    title: ClassVar[str] = "the mean over all tokens"
    stored_name: ClassVar[str] = "mean"
    stored_flag: ClassVar[str] = "pooling_mode_mean_tokens"

    @property
    def n_last(self) -> int:
        return self.n_eos

    def n_wanted(self, length: int, after: int | None) -> int:
        return length


@dataclass(frozen=True)
class MeanWithLexicon(Mean):
    """The mean, and the mean of the tokens' codes beside it (`lexicon.py`)."""

    lexicon: Lexicon | None = None

    @property
    def _lexicon(self) -> Lexicon:
        assert self.lexicon is not None
        return self.lexicon

    def width(self, d_model: int) -> int:
        return d_model + self._lexicon.d_lexicon

    def extra_sums(self, ids: npt.NDArray[np.integer], lengths: Sequence[int]) -> npt.NDArray[np.float64]:
        return self._lexicon.sums(ids, lengths)

    def join(self, pooled: Tensor) -> Tensor:
        d_lexicon = self._lexicon.d_lexicon
        means, codes = pooled.split([pooled.shape[1] - d_lexicon, d_lexicon], 1)
        return self._lexicon.join(means, codes)

    @property
    def nbytes(self) -> int:
        return self._lexicon.nbytes

    def step_bytes(self, n_tokens: int) -> int:
        return self._lexicon.step_bytes(n_tokens)
