"""A text that grows, with its vector at any time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from thalweg.embedder.sessions.memory import Place, SessionMemory
from thalweg.embedder.sessions.point import Point, ending
from thalweg.pooling.vectors import FloatArray
from thalweg.system.forked import reset_when_forked
from thalweg.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class Settings:
    """What holds for a session from its beginning on.

    prompt: the text before it; normalize, truncate_dim: of its vectors; tokenizer: with the settings of the session;
    empty_id: what stands for a text without tokens.
    """

    prompt: str
    normalize: bool
    truncate_dim: int | None
    tokenizer: Tokenizer
    empty_id: int | None

    def plain(self) -> dict[str, Any]:
        """As a file holds it."""
        return {
            "prompt": self.prompt,
            "normalize": self.normalize,
            "truncate_dim": self.truncate_dim,
            "special_tokens": self.tokenizer.special_tokens,
            "max_uncut_chars": self.tokenizer.max_uncut_chars,
        }


class Owner(Protocol):
    """What a session asks of all sessions of its model."""

    memory: SessionMemory

    def append_many(self, pairs: Iterable[tuple[Session, str | bytes]]) -> None: ...
    def vectors(self, sessions: Sequence[Session]) -> FloatArray: ...
    def write(self, path: Path, point: Point, settings: Settings) -> None: ...


class Session:
    """A text that grows. Made by `Embedder.session`, `Embedder.restore` and `fork`.

    What has been appended has gone through the model, but for the last few characters, whose tokens depend on what
    comes next. So a vector costs as much as those, and memory is that of one state, however long the text is. Vectors
    are those of `Embedder.encode` for the same text, however it was cut.

    Methods may be called from any thread; those of one session wait for each other.
    """

    def __init__(self, owner: Owner, settings: Settings, point: Point) -> None:
        self.owner = owner
        self.settings = settings
        self.place = Place(owner.memory, point, settings.tokenizer)
        self.reset()
        reset_when_forked(self)

    def reset(self) -> None:
        """Begin with a lock that nobody holds."""
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"Session({self.tokens:,} tokens, {self.nbytes / 2**20:.1f} MiB)"

    @property
    def tokens(self) -> int:
        """Tokens of the text as if it ended here; prompt, BOS and EOS included."""
        with self.opened() as point:
            return point.n_run + len(ending(self.settings.tokenizer, point, self.settings.empty_id))

    @property
    def nbytes(self) -> int:
        """Bytes of the state, in memory or on disk."""
        return self.place.nbytes

    def append(self, text: str | bytes) -> None:
        """Read on. If that fails, the session is as it was.

        Args:
            text: what comes next, cut anywhere; bytes are UTF-8.

        Raises:
            InvalidInputError: it is neither str nor bytes.
            TokenizationError: it is no UTF-8 or holds a lone surrogate, or a str follows half a character.
            NumericalError: the model's numbers became inf or NaN.
        """
        self.owner.append_many([(self, text)])

    def vector(self) -> FloatArray:
        """The vector (d,) float32 of the text as if it ended here. The session goes on.

        Raises:
            TokenizationError: it ends inside a character.
            NumericalError: the model's numbers became inf or NaN.
        """
        vector: FloatArray = self.owner.vectors([self])[0]
        return vector

    def fork(self) -> Session:
        """Another session at the same point. The two share a state until one of them goes on."""
        with self.opened() as point:
            return Session(self.owner, self.settings, point)

    def save(self, path: str | Path) -> Path:
        """Write the session to a file for `Embedder.restore`, at once or not at all; where it is.

        Raises:
            OSError: naming the file, which is as it was before.
        """
        with self.opened() as point:
            self.owner.write(Path(path), point, self.settings)
        return Path(path)

    @contextmanager
    def opened(self) -> Iterator[Point]:
        """Where the session stands, in memory, while no other thread moves it."""
        with self._lock, self.place.opened() as point:
            yield point
