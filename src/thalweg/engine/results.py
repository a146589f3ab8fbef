"""What leaves the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from thalweg.models.protocol import State
from thalweg.pooling.pooling import RunningMean
from thalweg.pooling.vectors import FloatArray


@dataclass(frozen=True, slots=True)
class OpenSection:
    """A section that has begun and not ended.

    number: in its document; start: its first token; sums: what pooling had kept before it, None where all that came
    before counts in its vector.
    """

    number: int
    start: int
    sums: RunningMean | None


@dataclass(frozen=True, slots=True)
class DocumentState:
    """Where a document stands: what goes on from here needs nothing else of what came before.

    model: the recurrent state, of one row; sums: what pooling has kept; n_tokens: tokens so far; section: the one that
    is under way, in a document whose sections go on (`TokenSections.open_ended`).
    """

    model: State
    sums: RunningMean
    n_tokens: int
    section: OpenSection | None = None


@dataclass(frozen=True, slots=True)
class Pooled:
    """A vector that is ready.

    key: the document's; section: number of the section in the document (0 without sections); start, stop: its tokens;
    vector: (width,) float32, neither cut nor normalised; last: nothing more of this document; state: where the document
    stands at its end, where that was asked for.
    """

    key: Any
    section: int
    start: int
    stop: int
    vector: FloatArray
    last: bool
    state: DocumentState | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A document that could not be embedded to its end; vectors of earlier sections stay valid.

    key: the document's, in `encode_stream` its number in the input; error: why.
    """

    key: Any
    error: Exception

    @property
    def index(self) -> int:
        """Number of the document in the input of `encode_stream`."""
        return int(self.key)


class Progress(NamedTuple):
    """What an engine has done and has to do.

    tokens, documents: embedded so far; in_flight: documents that hold a state; steps: packed runs; fill: the part of
    `max_tokens_per_step` that the last step used; pending: documents that have not begun; waiting: documents, begun or
    not, whose text has not arrived; state_bytes: bytes that states take.
    """

    tokens: int
    documents: int
    in_flight: int
    steps: int
    fill: float = 0.0
    pending: int = 0
    waiting: int = 0
    state_bytes: int = 0
