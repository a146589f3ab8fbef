"""How a batch of texts is cut into steps for training, and which of the steps a gradient reaches.

A text of more than V tokens is cut into chunks of V, the last one shorter. A step is a packed run: the next chunk of
every long text on its way, and whole short texts beside them. No text waits once it has begun, so that of each long
text exactly ceil(length / V) - 1 states lie between chunks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from thalweg.engine.schedule import Schedule
from thalweg.errors import InvalidInputError


@dataclass(frozen=True)
class Checkpointing:
    """Activation checkpointing along the length of texts: what the backward pass finds is states, not activations.

    Args:
        vertical_chunk_size: tokens of one text in one step, through all layers; one checkpoint. Changes memory and
            speed only.
        max_tokens_per_step: tokens of one step over all texts, at least `vertical_chunk_size`; None for that of
            inference, or `vertical_chunk_size` if it is larger. The activations of one step are what is kept at once.
        offload: keep the states between chunks in the CPU's memory (pinned, where the model is on CUDA).
        two_level: keep the states of every sqrt(n)-th of n steps only, and compute the others again from them: one
            more forward pass without gradients, for memory that grows with the square root of the length.
        detach_every: truncated back-propagation through time: no gradient crosses the border after every so many chunks
            of a text. It changes the gradients, and spares all work for chunks that none reaches. None: exact.

    Raises:
        InvalidInputError: a number below 1, or a step smaller than a chunk.
    """

    vertical_chunk_size: int = 1024
    max_tokens_per_step: int | None = None
    offload: bool = False
    two_level: bool = False
    detach_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("vertical_chunk_size", "max_tokens_per_step", "detach_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {value}")
        if self.step_size < self.vertical_chunk_size:
            raise InvalidInputError(
                f"max_tokens_per_step={self.max_tokens_per_step} has no room for a chunk; it must be at least "
                f"vertical_chunk_size={self.vertical_chunk_size}"
            )

    @property
    def step_size(self) -> int:
        """Tokens of a step at most."""
        if self.max_tokens_per_step is not None:
            return self.max_tokens_per_step
        return max(self.vertical_chunk_size, Schedule().max_tokens_per_step)

    def cuts_after(self, chunk: int) -> bool:
        """Whether no gradient crosses the border after a text's chunk of that number (from 0)."""
        return self.detach_every is not None and (chunk + 1) % self.detach_every == 0


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens `start` to `stop` of a text. `chunk`: its number in the text; `ends`: so does the text."""

    text: int
    chunk: int
    start: int
    stop: int
    ends: bool

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Step:
    """The pieces of a packed run. The first `n_carried` go on from the step before, in the order in which it left them.

    `live`: a gradient reaches the step, from vectors or through a state.
    """

    pieces: list[Piece]
    n_carried: int
    live: bool = True

    @property
    def going_on(self) -> list[int]:
        """Numbers of the pieces whose text goes on in the next step."""
        return [number for number, piece in enumerate(self.pieces) if not piece.ends]


def plan_steps(lengths: Sequence[int], checkpointing: Checkpointing, counts: Sequence[int] | None = None) -> list[Step]:
    """The steps of texts of these `lengths`.

    Long texts begin as soon as there is room for a chunk, the longest first; short ones fill what is left.

    Args:
        counts: how many of each text's last tokens its vector depends on; None: all of them.
    """
    chunk = checkpointing.vertical_chunk_size
    order = sorted(range(len(lengths)), key=lambda text: -lengths[text])
    long = deque(text for text in order if lengths[text] > chunk)
    short = sorted((text for text in order if lengths[text] <= chunk), key=lambda text: lengths[text])
    steps: list[Step] = []
    carried: list[Piece] = []
    while carried or long or short:
        pieces = [_next(piece, lengths, chunk) for piece in carried]
        room = checkpointing.step_size - len(carried) * chunk  # a chunk is reserved for a text until it has ended
        while long and room >= chunk:
            text = long.popleft()
            pieces.append(Piece(text, 0, 0, chunk, ends=False))
            room -= chunk
        room = checkpointing.step_size - sum(piece.length for piece in pieces)
        while short and (fitting := bisect_right(short, room, key=lambda text: lengths[text])):
            text = short.pop(fitting - 1)
            pieces.append(Piece(text, 0, 0, lengths[text], ends=True))
            room -= lengths[text]
        steps.append(Step(pieces, len(carried)))
        carried = [piece for piece in pieces if not piece.ends]
    return _mark_live(steps, lengths, checkpointing, counts or lengths)


def _next(piece: Piece, lengths: Sequence[int], chunk: int) -> Piece:
    length = lengths[piece.text]
    stop = min(piece.stop + chunk, length)
    return Piece(piece.text, piece.chunk + 1, piece.stop, stop, ends=stop == length)


def _mark_live(
    steps: list[Step], lengths: Sequence[int], checkpointing: Checkpointing, counts: Sequence[int]
) -> list[Step]:
    reached: set[int] = set()  # texts whose chunk in the step after has a gradient
    marked = []
    for step in reversed(steps):
        alive = set()
        for piece in step.pieces:
            pooled = piece.stop > lengths[piece.text] - counts[piece.text]
            if pooled or (piece.text in reached and not checkpointing.cuts_after(piece.chunk)):
                alive.add(piece.text)
        marked.append(Step(step.pieces, step.n_carried, live=bool(alive)))
        reached = alive
    return marked[::-1]
