"""The bounds of a run."""

from __future__ import annotations

from dataclasses import dataclass, fields

from thalweg.checks import whole_number
from thalweg.errors import InvalidInputError


@dataclass(frozen=True)
class Schedule:
    """The bounds of a run; they change speed and memory, and no vector.

    Args:
        max_tokens_per_step: tokens of one packed step over all documents.
        vertical_chunk_size: tokens of one document in one step, any number >= 1.
        max_in_flight: documents that may hold a state at the same time, those that wait for their text included.
        max_parked: documents beyond these whose state may be set aside, so that others get on: those that wait for
            their text, and those of clients that hold more than their share. Each takes the memory of one more state.
        max_shared: states that short documents of one step may begin with, however many share each. Each takes the
            memory of one more state.

    Raises:
        InvalidInputError: a bound that is no whole number or too small.
    """

    max_tokens_per_step: int = 2048
    vertical_chunk_size: int = 1024
    max_in_flight: int = 8
    max_parked: int = 0
    max_shared: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            whole_number(
                field.name, getattr(self, field.name), least=int(field.name not in ("max_parked", "max_shared"))
            )
        slots = 2 * self.max_in_flight + 1
        if self.max_tokens_per_step < slots:
            raise InvalidInputError(
                f"max_tokens_per_step={self.max_tokens_per_step} is too small for max_in_flight={self.max_in_flight} "
                f"documents at once; it must be at least {slots}"
            )

    @property
    def short_tokens(self) -> int:
        """Tokens up to which a document that has begun with none of them counts as short: it never waits for a long
        one, and never owns a state."""
        return min(self.vertical_chunk_size, self.max_tokens_per_step // 2)
