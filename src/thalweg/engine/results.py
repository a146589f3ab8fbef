"""What leaves the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from thalweg.pooling.vectors import FloatArray


@dataclass(frozen=True, slots=True)
class Pooled:
    """A vector that is ready.

    index: number of the document in the input; section: number of the section in the document (0 without sections);
    start, stop: its tokens; vector: (d,) float32, neither cut nor normalised; last: nothing more of this document.
    """

    index: int
    section: int
    start: int
    stop: int
    vector: FloatArray
    last: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A document whose tokens could not be read to the end; vectors of earlier sections stay valid."""

    index: int
    error: Exception


class Progress(NamedTuple):
    """How far a run has come."""

    tokens: int
    documents: int
    in_flight: int
    steps: int
