"""All sessions of one embedder: begun, restored, moved on together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from thalweg.embedder.sessions.file import Saved, read_session, to_bytes
from thalweg.embedder.sessions.memory import SessionMemory
from thalweg.embedder.sessions.point import Continuation, Growth, Point, ending, start
from thalweg.embedder.sessions.session import Session, Settings
from thalweg.engine.results import Failure, Pooled
from thalweg.engine.sources import TokenSource
from thalweg.engine.states import nbytes
from thalweg.errors import InvalidInputError
from thalweg.models.protocol import State
from thalweg.pooling import Pooling
from thalweg.pooling.vectors import FloatArray, finish
from thalweg.storage.durable import errors_named, write_durably
from thalweg.tokenization.tokenizer import Tokenizer


class Embedding(Protocol):
    """What sessions need of their embedder."""

    model: Any
    tokenizer: Tokenizer

    @property
    def pooling(self) -> Pooling: ...
    @property
    def dimension(self) -> int: ...
    @property
    def state_identity(self) -> Mapping[str, str]: ...
    def run_sources(self, sources: Sequence[TokenSource]) -> Iterator[Pooled | Failure]: ...
    def after_pooling(self, vector: FloatArray) -> FloatArray: ...


class Sessions:
    """The sessions of an embedder. See the methods of `Embedder` that have the same names."""

    def __init__(self, embedder: Embedding) -> None:
        self._embedder = embedder
        self.memory = SessionMemory(self._spill, self._read_back)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sessions:
        return Sessions(memo.get(id(self._embedder), self._embedder))

    def __reduce__(self) -> tuple[type[Sessions], tuple[Embedding]]:
        return Sessions, (self._embedder,)

    @property
    def state_nbytes(self) -> int:
        """Bytes of one session's state and sums."""
        return nbytes(self._like) + 8 * self._width

    def begin(self, settings: Settings) -> Session:
        """A session of which nothing is known but its prompt."""
        return Session(self, settings, start(settings.tokenizer, settings.prompt))

    def append_many(self, pairs: Iterable[tuple[Session, str | bytes]]) -> None:
        """Sessions named twice get their texts in order."""
        texts: dict[Session, list[str | bytes]] = {}
        for session, text in pairs:
            self._check_mine(session)
            if not isinstance(text, str | bytes):
                raise InvalidInputError(
                    f"a session's text must be str or bytes, got {type(text).__name__}: {text!r:.80}; append what a "
                    "file or an iterator gives piece by piece"
                )
            texts.setdefault(session, []).append(text)
        errors = []
        for batch in self._batches(list(texts)):
            with _all_opened(batch) as points:
                growths = [self._growth(each, point, texts[each]) for each, point in zip(batch, points, strict=True)]
                errors += self._grow(batch, growths)
        self.memory.settle()
        if errors:
            raise errors[0]

    def vectors(self, sessions: Iterable[Session]) -> FloatArray:
        """Sessions may be named twice."""
        sessions = list(sessions)
        found: dict[Session, FloatArray] = {}
        for session in sessions:
            self._check_mine(session)
        for batch in self._batches(list(dict.fromkeys(sessions))):
            with _all_opened(batch) as points:
                sources = [
                    Continuation(ending(session.settings.tokenizer, point, session.settings.empty_id), point.state)
                    for session, point in zip(batch, points, strict=True)
                ]
                for result in self._embedder.run_sources(sources):
                    if isinstance(result, Failure):
                        raise result.error
                    settings = batch[result.key].settings
                    pooled = self._embedder.after_pooling(result.vector)[None]
                    vector = finish(pooled, normalize=settings.normalize, truncate_dim=settings.truncate_dim)
                    found[batch[result.key]] = vector[0]
        if not sessions:
            return np.zeros((0, self._embedder.dimension), dtype=np.float32)
        return np.stack([found[session] for session in sessions])

    def write(self, path: Path, point: Point, settings: Settings) -> None:
        """A session's file."""
        data = to_bytes(self._saved(point, settings.plain()))
        write_durably(path, lambda stream: stream.write(data))

    def restore(
        self, path: Path, settings_of: Callable[[Mapping[str, Any]], Settings], *, same_numeric_path: bool
    ) -> Session:
        """settings_of: makes the settings of a session of what the file says of them."""
        saved = read_session(path, self._like, self._width)
        here = self._embedder.state_identity
        for name, value in here.items():
            if saved.model.get(name) != value and (same_numeric_path or name != "numeric path"):
                hint = "; other_numeric_path=True takes it all the same" if name == "numeric path" else ""
                raise InvalidInputError(
                    f"{path} cannot be restored: its {name} is {saved.model.get(name)!r}, and this model's {value!r}"
                    f"{hint}"
                )
        try:
            settings = settings_of(saved.settings)
            point = self._point(saved, settings.tokenizer)
        except Exception as error:
            raise InvalidInputError(f"{path} cannot be restored: it is damaged, or was changed ({error})") from error
        return Session(self, settings, point)

    # -- going on ----------------------------------------------------------------------------------------------------

    def _growth(self, session: Session, point: Point, texts: Sequence[str | bytes]) -> Growth:
        n_held = max(0, self._embedder.pooling.n_last - len(session.settings.tokenizer.suffix))
        return Growth(point, texts, n_held)

    def _grow(self, sessions: Sequence[Session], growths: Sequence[Growth]) -> list[Exception]:
        """Run what has come. Those that fail stay as they were."""
        begun = [(session, growth, growth.begin()) for session, growth in zip(sessions, growths, strict=True)]
        running = [(session, growth) for session, growth, begin in begun if begin is True]
        errors = [begin for _, _, begin in begun if isinstance(begin, Exception)]
        for session, growth, begin in begun:
            if begin is False:
                session.place.set(growth.end(growth.state))
        for result in self._embedder.run_sources([growth for _, growth in running]):
            session, growth = running[result.key]
            if isinstance(result, Failure):
                errors.append(result.error)
            else:
                session.place.set(growth.end(result.state))
        return errors

    def _batches(self, sessions: list[Session]) -> Iterator[list[Session]]:
        """As many as may be in memory at the same time."""
        most = self.memory.max_bytes
        n = len(sessions) if most is None else most // self.state_nbytes
        return (sessions[at : at + max(1, n)] for at in range(0, len(sessions), max(1, n)))

    def _check_mine(self, session: Session) -> None:
        if not isinstance(session, Session) or session.owner is not self:
            raise InvalidInputError(f"a session of this model is wanted, made by its session(), got {session!r:.80}")

    # -- files -------------------------------------------------------------------------------------------------------

    @property
    def _like(self) -> State:
        """A state of one row."""
        state: State = self._embedder.model.init_state(1)
        return state

    @property
    def _width(self) -> int:
        return self._embedder.pooling.width(int(self._embedder.model.d_model))

    def _saved(self, point: Point, settings: Mapping[str, Any]) -> Saved:
        return Saved(
            self._embedder.state_identity,
            settings,
            point.window.state(),
            point.held,
            point.state,
            point.pending,
            point.n_bytes,
        )

    def _point(self, saved: Saved, tokenizer: Tokenizer) -> Point:
        """Where the saved session stood; what the file says of its window is tried."""
        point = Point(tokenizer.restored(saved.window), saved.held, saved.state, saved.pending, saved.n_bytes)
        ids = ending(tokenizer, replace(point, pending=b""), None)
        if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
            raise ValueError(f"it holds the id {ids.max()}")
        return point

    def _spill(self, path: Path, point: Point) -> None:
        try:
            with errors_named(path):
                path.write_bytes(to_bytes(self._saved(point, {})))
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _read_back(self, path: Path, tokenizer: Tokenizer) -> Point:
        return self._point(read_session(path, self._like, self._width), tokenizer)


@contextmanager
def _all_opened(sessions: Sequence[Session]) -> Iterator[list[Point]]:
    """Where several sessions stand. They are locked in one order everywhere, so that no two calls wait for each other
    for ever."""
    with ExitStack() as stack:
        points = {session: stack.enter_context(session.opened()) for session in sorted(sessions, key=id)}
        yield [points[session] for session in sessions]
