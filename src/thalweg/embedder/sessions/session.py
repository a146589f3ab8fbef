"""A text that grows, with its vector at any time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from thalweg.embedder.results import Embedding
from thalweg.embedder.sections import Sections
from thalweg.embedder.sessions.memory import Files, Place, SessionMemory
from thalweg.embedder.sessions.point import Point, ending
from thalweg.errors import InvalidInputError
from thalweg.pooling.vectors import FloatArray
from thalweg.system.forked import reset_when_forked
from thalweg.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class Settings:
    """What holds for a session from its beginning on.

    normalize, truncate_dim: of its vectors; tokenizer: with the settings of the session; empty_id: what stands for a
    text without tokens; sections: how the text is cut, if at all.
    """

    normalize: bool
    truncate_dim: int | None
    tokenizer: Tokenizer
    empty_id: int | None
    sections: Sections | None = None

    def plain(self) -> dict[str, Any]:
        """As a file holds it. How much memory a text may take that cannot be cut is for whoever restores it to say."""
        return {
            "normalize": self.normalize,
            "truncate_dim": self.truncate_dim,
            "special_tokens": self.tokenizer.special_tokens,
        } | ({} if self.sections is None else {"sections": self.sections.plain()})


class Owner(Files, Protocol):
    """What a session asks of all sessions of its model."""

    memory: SessionMemory

    def append_many(self, pairs: Iterable[tuple[Session, str | bytes]]) -> dict[Session, Exception]: ...
    def vectors(self, sessions: Sequence[Session]) -> FloatArray: ...
    def open_sections(self, session: Session) -> list[Embedding]: ...
    def write(self, path: Path, session: Session) -> None: ...


class Session:
    """A text that grows. Made by `Embedder.session`, `Embedder.restore` and `fork`.

    What has been appended has gone through the model, but for the last few characters, whose tokens depend on what
    comes next. So a vector costs as much as those, and memory is that of one state, however long the text is. Vectors
    are those of `Embedder.encode` for the same text, however it was cut.

    Methods may be called from any thread; those of one session wait for each other.
    """

    def __init__(self, owner: Owner, settings: Settings, point: Point, kept: Sequence[Embedding] = ()) -> None:
        self.owner = owner
        self.settings = settings
        self.kept = list(kept)  # the sections that have ended and were not taken
        self.place = Place(owner.memory, owner, point, settings.tokenizer)
        self._lock = threading.RLock()
        reset_when_forked(self)

    def reset(self) -> None:
        """In a forked process: begin with locks that nobody holds."""
        self._lock = threading.RLock()
        self.place.reset()

    def __repr__(self) -> str:
        where = "" if self.place.in_memory else ", on disk"
        return f"Session({self.place.n_run:,} tokens read, {self.nbytes / 2**20:.1f} MiB{where})"

    def __copy__(self) -> Session:
        return self.fork()

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        return self.fork()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled: use its save(path), and restore(path) of the model")

    @property
    def tokens(self) -> int:
        """Tokens of the text as if it ended here; prompt, BOS and EOS included.

        Raises:
            TokenizationError: it ends inside a character.
        """
        with self.opened():
            point = self.place.point
            return point.n_run + len(ending(self.settings.tokenizer, point, self.settings.empty_id).ids)

    @property
    def nbytes(self) -> int:
        """Bytes of the state, in memory or on disk. The vectors of sections that wait to be taken are not counted."""
        return self.place.nbytes

    def append(self, text: str | bytes) -> None:
        """Read on. If that fails, the session is as it was.

        Args:
            text: what comes next, cut anywhere; bytes are UTF-8.

        Raises:
            InvalidInputError: it is neither str nor bytes.
            TokenizationError: it is no UTF-8 or holds a lone surrogate, or a str follows half a character.
            NumericalError: the model's numbers became inf or NaN.
            OSError: an idle session has to be read from disk or written there, and cannot (`limit_sessions`).
        """
        for error in self.owner.append_many([(self, text)]).values():
            raise error

    def vector(self) -> FloatArray:
        """The vector (d,) float32 of the text as if it ended here. The session goes on.

        Raises:
            TokenizationError: it ends inside a character.
            NumericalError: the model's numbers became inf or NaN.
            OSError: as in `append`.
        """
        vector: FloatArray = self.owner.vectors([self])[0]
        return vector

    def sections(self) -> list[Embedding]:
        """The sections of the text as if it ended here, but for those that were taken. The session goes on.

        They are those that `Embedder.encode_sections` gives for the whole text. Sections that have ended wait in the
        session, 4 bytes for every dimension, until they are taken; the last one is computed anew at every call.

        Raises:
            InvalidInputError: the session was begun without `sections=`.
            TokenizationError, NumericalError, OSError: as in `vector`.
        """
        self._check_in_sections()
        with self.opened():
            return [*self.kept, *self.owner.open_sections(self)]

    def take_sections(self) -> list[Embedding]:
        """The sections that have ended since they were last taken; nothing that comes can change them. The session
        forgets them, so that it takes the same memory at any length.

        Raises:
            InvalidInputError: the session was begun without `sections=`.
        """
        self._check_in_sections()
        with self._lock:
            taken, self.kept = self.kept, []
            return taken

    def _check_in_sections(self) -> None:
        if self.settings.sections is None:
            raise InvalidInputError(
                "this session has one vector and no sections: begin it with session(sections=thalweg.Sections(…))"
            )

    def fork(self) -> Session:
        """Another session at the same point. The two share a state until one of them goes on."""
        with self.opened():
            return Session(self.owner, self.settings, self.place.point, self.kept)

    def save(self, path: str | Path) -> Path:
        """Write the session to a file for `Embedder.restore`, at once or not at all; where it is.

        Raises:
            InvalidInputError: more sections wait than a file may have; take them first.
            OSError: naming the file, which is as it was before.
        """
        with self.opened():
            self.owner.write(Path(path), self)
        return Path(path)

    @contextmanager
    def opened(self, room: int = 0) -> Iterator[None]:
        """Have `place.point` in memory, while no other thread moves it. room: see `Place.opened`."""
        with self._lock, self.place.opened(room):
            yield
