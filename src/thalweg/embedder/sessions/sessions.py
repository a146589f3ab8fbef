"""All sessions of one embedder: begun, restored, moved on together."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
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
from thalweg.errors import InvalidInputError, ThalwegError
from thalweg.models.protocol import State
from thalweg.pooling import Pooling
from thalweg.pooling.vectors import FloatArray, finish
from thalweg.storage.durable import errors_named, write_durably
from thalweg.tokenization.backend import WINDOW_CHARS
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
    def run_sources(self, sources: Sequence[TokenSource]) -> Generator[Pooled | Failure, None, None]: ...
    def after_pooling(self, vector: FloatArray) -> FloatArray: ...


class Sessions:
    """What is done with the sessions of an embedder. See the methods of `Embedder` that have the same names.

    Sessions hold their embedder by this, and it does not hold them: a model goes with the last session that needs it.
    """

    def __init__(self, embedder: Embedding, memory: SessionMemory) -> None:
        self._embedder = embedder
        self.memory = memory

    @property
    def state_nbytes(self) -> int:
        """Bytes of one session's state and sums."""
        return nbytes(self._like) + 8 * self._width

    def begin(self, prompt: str, settings: Settings) -> Session:
        """A session of which nothing is known but its prompt."""
        return Session(self, settings, start(settings.tokenizer, prompt))

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
        errors: dict[Session, Exception] = {}
        for batch in self._batches(list(texts)):
            with _all_opened(batch, self.state_nbytes) as closed:
                errors |= closed | self._grow([each for each in batch if each not in closed], texts)
        for session in texts:
            if session in errors:
                raise errors[session]

    def vectors(self, sessions: Iterable[Session]) -> FloatArray:
        """Sessions may be named twice."""
        sessions = list(sessions)
        found: dict[Session, FloatArray] = {}
        for session in sessions:
            self._check_mine(session)
        for batch in self._batches(list(dict.fromkeys(sessions))):
            with _all_opened(batch) as closed:
                for error in closed.values():
                    raise error
                sources = [
                    Continuation(ending(each.settings.tokenizer, point, each.settings.empty_id), point.state)
                    for each, point in ((each, each.place.point) for each in batch)
                ]
                with closing(self._embedder.run_sources(sources)) as results:
                    for result in results:
                        if isinstance(result, Failure):
                            raise result.error
                        settings = batch[result.key].settings
                        pooled = self._embedder.after_pooling(result.vector)[None]
                        vector = finish(pooled, normalize=settings.normalize, truncate_dim=settings.truncate_dim)
                        found[batch[result.key]] = vector[0]
        if not sessions:
            return np.zeros((0, self._embedder.dimension), dtype=np.float32)
        widths = {len(vector) for vector in found.values()}
        if len(widths) > 1:
            raise InvalidInputError(
                f"these sessions have vectors of {' and '.join(map(str, sorted(widths)))} dimensions (truncate_dim): "
                "ask for those of one width at a time"
            )
        return np.stack([found[session] for session in sessions])

    def write(self, path: Path, point: Point, settings: Settings) -> None:
        """A session's file, for `restore`."""
        data = to_bytes(_saved(point, self._embedder.state_identity, settings.plain()))
        write_durably(path, lambda stream: stream.write(data), shared=True)

    def restore(
        self, path: Path, settings_of: Callable[[Mapping[str, Any]], Settings], *, same_numeric_path: bool
    ) -> Session:
        """settings_of: makes the settings of a session of what the file says of them."""
        here = self._embedder.state_identity

        def check(model: Mapping[str, str]) -> None:
            for name, value in here.items():
                if model.get(name) != value and (same_numeric_path or name != "numeric path"):
                    hint = "; other_numeric_path=True takes it all the same" if name == "numeric path" else ""
                    raise InvalidInputError(f"its {name} is {model.get(name)!r:.200}, and this model's {value!r}{hint}")

        saved = read_session(path, self._like, self._width, check)
        try:
            settings = settings_of(saved.settings)
            point = _point(saved, settings.tokenizer)
            _try(point, settings.tokenizer)
        except Exception as error:
            raise InvalidInputError(f"{path} cannot be restored: it is damaged, or was changed ({error})") from error
        return Session(self, settings, point)

    # -- going on ----------------------------------------------------------------------------------------------------

    def _grow(
        self, batch: Sequence[Session], texts: Mapping[Session, Sequence[str | bytes]]
    ) -> dict[Session, Exception]:
        """Run what has come. Those that fail stay as they were; their errors."""
        errors: dict[Session, Exception] = {}
        running: list[tuple[Session, Growth]] = []
        for session in batch:
            growth = self._growth(session, texts[session])
            begun = growth.begin()
            if isinstance(begun, Exception):
                errors[session] = begun
            elif begun:
                running.append((session, growth))
            else:
                session.place.set(growth.end(growth.state))
        with closing(self._embedder.run_sources([growth for _, growth in running])) as results:
            for result in results:
                session, growth = running[result.key]
                growth.state = None  # so that the states before and after are both there only while it runs
                if isinstance(result, Failure):
                    errors[session] = result.error
                else:
                    session.place.set(growth.end(result.state))
        return errors

    def _growth(self, session: Session, texts: Sequence[str | bytes]) -> Growth:
        n_held = max(0, self._embedder.pooling.n_last - len(session.settings.tokenizer.suffix))
        return Growth(session.place.point, texts, n_held)

    def _batches(self, sessions: list[Session]) -> Iterator[list[Session]]:
        """As many as may be in memory at the same time."""
        most = self.memory.max_bytes
        n = len(sessions) if most is None else most // self.state_nbytes
        return (sessions[at : at + max(1, n)] for at in range(0, len(sessions), max(1, n)))

    def _check_mine(self, session: Session) -> None:
        if not isinstance(session, Session) or session.owner.memory is not self.memory:
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

    def spill(self, path: Path, point: Point) -> None:
        """See `Files`."""
        try:
            with errors_named(path):
                path.write_bytes(to_bytes(_saved(point, {}, {})))
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def read_back(self, path: Path, tokenizer: Tokenizer) -> Point:
        """See `Files`."""
        try:
            return _point(read_session(path, self._like, self._width), tokenizer)
        except OSError as error:
            reason = f"an idle session cannot be read from disk, where it waited: {os.strerror(error.errno or 0)}"
            raise OSError(error.errno, reason, str(path)) from error


def _saved(point: Point, model: Mapping[str, str], settings: Mapping[str, Any]) -> Saved:
    return Saved(model, settings, point.window.state(), point.held, point.state, point.pending, point.n_bytes)


def _point(saved: Saved, tokenizer: Tokenizer) -> Point:
    """Where the saved session stood."""
    return Point(tokenizer.restored(saved.window), saved.held, saved.state, saved.pending, saved.n_bytes)


def _try(point: Point, tokenizer: Tokenizer) -> None:
    """Have the window read on and end, as what a file says of it may be anything.

    Raises:
        Exception: of whatever kind: it is no window of a text.
    """
    going_on = point.window.copy()
    blocks = [*going_on.flush(), *going_on.push(" and so on" * (WINDOW_CHARS // 5))]
    for ids in (ending(tokenizer, replace(point, pending=b""), None), *(block.ids for block in blocks)):
        if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
            raise ValueError(f"it holds the id {ids.max()}")


@contextmanager
def _all_opened(sessions: Sequence[Session], room: int = 0) -> Iterator[dict[Session, Exception]]:
    """Have the points of several sessions in memory; those that cannot be there, and why.

    They are locked in one order everywhere, so that no two calls wait for each other for ever.
    """
    with ExitStack() as stack:
        tried = {each: _open(stack, each, room) for each in sorted(sessions, key=lambda each: each.place.number)}
        yield {session: error for session, error in tried.items() if error is not None}


def _open(stack: ExitStack, session: Session, room: int) -> Exception | None:
    try:
        stack.enter_context(session.opened(room))
    except (OSError, ThalwegError) as error:
        return error
    return None
