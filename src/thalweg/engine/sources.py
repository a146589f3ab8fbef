"""Documents as the engine sees them: token ids to be pulled."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

TokenArray = npt.NDArray[np.integer]


class TokenSource(Protocol):
    """A document as the engine sees it: token ids to be pulled, the last one included (EOS, where the model has it)."""

    def take(self, n: int) -> tuple[TokenArray, bool]:
        """The next ids, exactly `n` unless the document ends, and whether it ends with them."""


class Ids:
    """A token source over ids that are already there."""

    def __init__(self, ids: TokenArray) -> None:
        self._ids = ids
        self._at = 0

    def take(self, n: int) -> tuple[TokenArray, bool]:
        ids = self._ids[self._at : self._at + n]
        self._at += len(ids)
        return ids, self._at == len(self._ids)
