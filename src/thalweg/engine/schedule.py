"""The bounds of a run."""

from __future__ import annotations

from dataclasses import dataclass

from thalweg.errors import InvalidInputError


@dataclass(frozen=True)
class Schedule:
    """The bounds of a run.

    Args:
        max_tokens_per_step: tokens of one packed step over all documents.
        vertical_chunk_size: tokens of one document in one step, any number >= 1: it changes speed and memory only.
        max_in_flight: documents that may hold a state at the same time.
        section_size: tokens of a section, or None for one vector a document.
    """

    max_tokens_per_step: int = 2048
    vertical_chunk_size: int = 1024
    max_in_flight: int = 8
    section_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens_per_step", "vertical_chunk_size", "max_in_flight", "section_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {value}")
        slots = 2 * self.max_in_flight + 1
        if self.max_tokens_per_step < slots:
            raise InvalidInputError(
                f"max_tokens_per_step={self.max_tokens_per_step} is too small for max_in_flight={self.max_in_flight} "
                f"documents at once; it must be at least {slots}"
            )
