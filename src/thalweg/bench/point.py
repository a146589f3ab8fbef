"""One point of a study: what is run, on what, how often. Plain data that goes to a process and into the results."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from thalweg.bench.shapes import LOOKS, SHAPES, shape
from thalweg.errors import InvalidInputError

THALWEG, TRANSFORMER = "thalweg", "transformer"
"""Runners that are no peers: our engine, and a model that attends to the whole text."""

OK, OUT_OF_MEMORY, TIME_LIMIT, ERROR, NOT_RUN = "ok", "out of memory", "time limit", "error", "not run"
"""What can become of a point: the `status` of its row."""


@dataclass(frozen=True)
class Point:
    """A batch of `batch` texts of `length` random tokens each, through one model in one way.

    runner: "thalweg", "transformer", or a peer of `thalweg.bench.peers`.
    shape, model: a name of SHAPES (random weights), or a folder or hub id; one of the two.
    vertical_chunk_size: V, tokens of each text that go through all layers together; None is horizontal, the whole
        text through one layer after the other. Peers that go through a text in pieces take it too.
    tokens_per_step: of thalweg's schedule; None lets all texts of the batch advance by V in every step.
    inner_chunk: Q of the scans; None is the op's own.
    attention, window: of transformers; None looks back at everything.
    layers, vocabulary: a shape with so many layers, or token vectors.
    threads: of the CPU; None leaves it to torch.
    warmup, repeat: whole runs before, and timed ones; fewer are timed once they took `budget` seconds together.
    limit: time the matrix products alone as well.
    """

    runner: str
    length: int
    shape: str | None = None
    model: str | None = None
    batch: int = 1
    vertical_chunk_size: int | None = None
    tokens_per_step: int | None = None
    inner_chunk: int | None = None
    attention: str | None = None
    window: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    layers: int | None = None
    vocabulary: int | None = None
    warmup: int = 1
    repeat: int = 3
    budget: float | None = None
    limit: bool = False

    def __post_init__(self) -> None:
        if (self.shape is None) == (self.model is None):
            raise InvalidInputError("a point has either a shape or a model")
        if self.shape is not None:
            shape(self.shape)
        for name in (
            *("length", "batch", "vertical_chunk_size", "tokens_per_step", "inner_chunk", "window"),
            *("threads", "layers", "vocabulary", "repeat"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {value}")

    def to_json(self) -> dict[str, Any]:
        """Everything but what is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Point:
        """The point that `to_json` wrote; fields of other versions are skipped."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in stored.items() if name in known})

    @property
    def key(self) -> str:
        """The same text for the same point; `budget` only says how often it may be repeated."""
        return json.dumps({**self.to_json(), "budget": None}, sort_keys=True)

    def without(self, *names: str) -> tuple[tuple[str, Any], ...]:
        """What two points of one line have in common if `names` are what it is drawn over."""
        left_out = {*names, "warmup", "repeat", "budget", "limit"}
        return tuple(item for item in sorted(self.to_json().items()) if item[0] not in left_out)

    @property
    def horizontal(self) -> bool:
        return self.runner == THALWEG and self.vertical_chunk_size is None

    @property
    def step_tokens(self) -> int:
        """Tokens of one step of thalweg's schedule: all texts advance by V, and one share stays free for newcomers."""
        if self.tokens_per_step is not None:
            return self.tokens_per_step
        return (self.batch + 1) * min(self.vertical_chunk_size or self.length, self.length)

    @property
    def cost(self) -> float:
        """Operations of one run, roughly: to compare points, not to count them."""
        width, layers = (1024, 24)
        attention = 0.0
        if self.shape is not None:
            width, layers = SHAPES[self.shape].width, self.layers or SHAPES[self.shape].n_layers
        if self.runner == TRANSFORMER:
            attention = 2.0 * width * layers * self.length
        return self.batch * self.length * (12.0 * layers * width**2 + attention)

    @property
    def name(self) -> str:
        """The model in words."""
        if self.shape is None:
            return Path(str(self.model)).name
        title = LOOKS[SHAPES[self.shape].family].title
        if self.layers is None:
            return self.shape
        return f"{title}, {self.layers} × {SHAPES[self.shape].width}"

    @property
    def setting(self) -> str:
        """How it is run, in words."""
        words = []
        if self.runner == TRANSFORMER:
            words.append(self._attention)
            words += [] if self.attention in (None, "sdpa") else [str(self.attention)]
        elif self.runner != THALWEG:
            words.append(self.runner)
        elif self.horizontal:
            words.append("horizontal")
        else:
            words.append(f"V = {self.vertical_chunk_size:,}")
        words += [f"step of {self.tokens_per_step:,}"] if self.tokens_per_step else []
        words += [f"Q = {self.inner_chunk}"] if self.inner_chunk else []
        return ", ".join(words)

    @property
    def _attention(self) -> str:
        if self.shape is not None and SHAPES[self.shape].family != "mistral":
            return "its own attention"
        return "full attention" if self.window is None else f"window {self.window:,}"

    @property
    def title(self) -> str:
        """The whole point in one line."""
        texts = f"{self.batch} × {self.length:,}" if self.batch > 1 else f"{self.length:,}"
        return f"{self.name}, {self.setting}, {texts} tokens, {self.dtype}, {self.device}"
