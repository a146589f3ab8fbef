"""The last token, or the mean over the last few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thalweg.errors import InvalidInputError
from thalweg.pooling.pooling import Pooling, RunningMean


@dataclass(frozen=True)
class LastToken(Pooling):
    """The hidden vector of a text's last token (EOS), or the mean of its last `n_eos`.

    Args:
        n_eos: end tokens that a model was trained with; their vectors are averaged.

    Raises:
        InvalidInputError: fewer than one.
    """

    n_eos: int = 1

    name: ClassVar[str] = "last"
    title: ClassVar[str] = "the last token"
    stored_name: ClassVar[str] = "lasttoken"
    stored_flag: ClassVar[str] = "pooling_mode_lasttoken"
    needs_eos: ClassVar[bool] = True
    averages_prompt: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.n_eos < 1:
            raise InvalidInputError(f"n_eos must be at least 1, got {self.n_eos}")

    @property
    def n_last(self) -> int:
        return self.n_eos

    def carried(self, sums: RunningMean) -> RunningMean:
        return RunningMean(len(sums.total))  # what was the end is none any more

    def n_wanted(self, length: int, after: int | None) -> int:
        return 0 if after is None else min(length, max(0, self.n_eos - after))
