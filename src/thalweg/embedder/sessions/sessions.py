"""All sessions of one embedder: begun, restored, moved on together."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from thalweg.checks import whole_number
from thalweg.embedder.results import Embedding
from thalweg.embedder.sectioned_ids import CountedIds, IdsInSections, SectionedIds, restore_ids
from thalweg.embedder.sections import Sections
from thalweg.embedder.sessions.file import Saved, read_session, to_bytes
from thalweg.embedder.sessions.memory import SessionMemory
from thalweg.embedder.sessions.point import Continuation, Cut, Growth, Point, ending, start
from thalweg.embedder.sessions.session import Session, Settings
from thalweg.engine.results import DocumentState, Failure, OpenSection, Pooled
from thalweg.engine.sections import TokenSections
from thalweg.engine.sources import TokenSource
from thalweg.engine.states import nbytes
from thalweg.errors import InvalidInputError, ThalwegError
from thalweg.models.protocol import State
from thalweg.pooling import Pooling
from thalweg.pooling.vectors import FloatArray, finish
from thalweg.storage.durable import errors_named, write_durably
from thalweg.tokenization.backend import WINDOW_CHARS
from thalweg.tokenization.tokenizer import Tokenizer


class Model(Protocol):
    """What sessions need of their embedder."""

    model: Any
    tokenizer: Tokenizer

    @property
    def pooling(self) -> Pooling: ...
    @property
    def appends_eos(self) -> bool: ...
    @property
    def probe_id(self) -> int | None: ...
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

    def __init__(self, embedder: Model, memory: SessionMemory) -> None:
        self._embedder = embedder
        self.memory = memory

    @property
    def state_nbytes(self) -> int:
        """Bytes of one session's state and sums."""
        return nbytes(self._like) + 8 * self._width

    def begin(self, prompt: str, settings: Settings) -> Session:
        """A session of which nothing is known but its prompt."""
        return Session(self, settings, start(settings.tokenizer, prompt, self._cut(settings)))

    def append_many(self, pairs: Iterable[tuple[Session, str | bytes]]) -> dict[Session, Exception]:
        """The sessions that failed, in the order in which they were named. One named twice gets its texts in order."""
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
        return {session: errors[session] for session in texts if session in errors}

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
                endings = [ending(each.settings.tokenizer, each.place.point, each.settings.empty_id) for each in batch]
                for result in self._run(endings):
                    found[batch[result.key]] = self._finished(result, batch[result.key].settings)
        if not sessions:
            return np.zeros((0, self._embedder.dimension), dtype=np.float32)
        widths = {len(vector) for vector in found.values()}
        if len(widths) > 1:
            raise InvalidInputError(
                f"these sessions have vectors of {' and '.join(map(str, sorted(widths)))} dimensions (truncate_dim): "
                "ask for those of one width at a time"
            )
        return np.stack([found[session] for session in sessions])

    def open_sections(self, session: Session) -> list[Embedding]:
        """Those that have not ended, as if the text ended here. The session is open."""
        settings, point = session.settings, session.place.point
        assert point.cut is not None
        rest = ending(settings.tokenizer, point, settings.empty_id, in_sections=True)
        starts, ends = [point.cut.char, *rest.chars], rest.chars
        return [self._section(result, settings, (starts[n], ends[n])) for n, result in enumerate(self._run([rest]))]

    def write(self, path: Path, session: Session) -> None:
        """A session's file, for `restore`."""
        saved = _saved(session.place.point, self._embedder.state_identity, session.settings.plain())
        data = to_bytes(replace(saved, kept=session.kept))
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
            self._check_cut(point, settings)
            width = settings.truncate_dim or self._embedder.dimension
            if any(len(section.vector) != width for section in saved.kept):
                raise ValueError("its sections have vectors of another width")
            _try(point, settings.tokenizer)
        except Exception as error:
            raise InvalidInputError(f"{path} cannot be restored: it is damaged, or was changed ({error})") from error
        return Session(self, settings, point, saved.kept)

    # -- going on ----------------------------------------------------------------------------------------------------

    def _grow(
        self, batch: Sequence[Session], texts: Mapping[Session, Sequence[str | bytes]]
    ) -> dict[Session, Exception]:
        """Run what has come. Those that fail stay as they were; their errors."""
        errors: dict[Session, Exception] = {}
        closing_ones: list[tuple[Session, Growth, Pooled]] = []
        running: list[tuple[Session, Growth]] = []
        ended: dict[Session, list[Embedding]] = {session: [] for session in batch}
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
                elif not result.last:
                    ended[session].append(self._section(result, session.settings, growth.pass_end()))
                elif not growth.ends_with_section:
                    session.place.set(growth.end(result.state))
                    session.kept += ended[session]
                else:
                    closing_ones.append((session, growth, result))
        for session, growth, result in closing_ones:
            try:
                last, state = self._close_section(result, growth)
            except Exception as error:
                errors[session] = error
                continue
            ended[session].append(self._section(last, session.settings, growth.pass_end()))
            session.place.set(growth.end(state))
            session.kept += ended[session]
        return errors

    def _close_section(self, result: Pooled, growth: Growth) -> tuple[Pooled, DocumentState]:
        """The section that ends exactly where what was to be run does, and the state with the next one begun."""
        state, vector = result.state, result.vector
        assert growth.sections is not None
        assert state is not None
        assert state.section is not None
        if growth.sections.are_probed(self._embedder.pooling, appends_eos=self._embedder.appends_eos):
            n, eos = self._embedder.pooling.n_last, self._embedder.probe_id
            assert eos is not None
            (probed,) = self._run([Continuation(np.full(n, eos, dtype=np.int32), state)])
            vector = probed.vector
        sums = None if state.section.sums is None else state.sums.copy()
        begun = OpenSection(state.section.number + 1, result.stop, sums)
        return replace(result, vector=vector, last=False), replace(state, section=begun)

    def _run(self, endings: Sequence[Continuation]) -> Iterator[Pooled]:
        """Results of ends of texts; the first failure is raised."""
        with closing(self._embedder.run_sources(endings)) as results:
            for result in results:
                if isinstance(result, Failure):
                    raise result.error
                yield result

    def _finished(self, result: Pooled, settings: Settings) -> FloatArray:
        pooled = self._embedder.after_pooling(result.vector)[None]
        return finish(pooled, normalize=settings.normalize, truncate_dim=settings.truncate_dim)[0]

    def _section(self, result: Pooled, settings: Settings, chars: tuple[int, int]) -> Embedding:
        """chars: those of the section, [start, end)."""
        vector = self._finished(result, settings)
        return Embedding(0, result.section, result.stop - result.start, *chars, vector, result.last, False)

    def _growth(self, session: Session, texts: Sequence[str | bytes]) -> Growth:
        settings = session.settings
        n_held = self._n_beyond(settings) - (settings.sections is None)
        return Growth(session.place.point, texts, max(0, n_held))

    def _n_beyond(self, settings: Settings) -> int:
        """Ids that must be known beyond a section's end so that what comes cannot move it."""
        return max(1, self._embedder.pooling.n_last + 1 - len(settings.tokenizer.suffix))

    def _cut(self, settings: Settings) -> Cut | None:
        """Where the sections of a text stand of which nothing is known."""
        sections = settings.sections
        if sections is None:
            return None
        if sections.by == "tokens":
            ids: IdsInSections = CountedIds(sections.n_units, self._n_beyond(settings))
        else:
            ids = SectionedIds(sections.boundaries(""))
        return Cut(ids, 0, self._spec(sections))

    def _check_cut(self, point: Point, settings: Settings) -> None:
        """What a file says of a session's sections must be possible with its settings.

        Raises:
            ValueError: it is not.
        """
        fresh, cut, state = self._cut(settings), point.cut, point.state
        if fresh is None or cut is None:
            if fresh is not cut:
                raise ValueError("its sections are missing, or not asked for")
            return
        if cut.spec != fresh.spec or not cut.ids.are_like(fresh.ids):
            raise ValueError("its sections are of another kind than its settings")
        if cut.ids.n_given != point.n_run + len(point.held):
            raise ValueError("its sections are those of another text")
        begun = None if state is None else state.section
        if state is not None and (begun is None or (begun.sums is None) != (cut.spec.mode == "prefix")):
            raise ValueError("its open section is missing")

    def _spec(self, sections: Sections) -> TokenSections:
        mode = sections.in_tokens().with_mode(self._embedder.pooling).mode
        return TokenSections(mode=mode, open_ended=True)

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
    cut = None
    if point.cut is not None:
        cut = {"ids": point.cut.ids.state(), "char": point.cut.char, "mode": point.cut.spec.mode}
    return Saved(model, settings, point.window.state(), point.held, point.state, point.pending, point.n_bytes, cut)


def _point(saved: Saved, tokenizer: Tokenizer) -> Point:
    """Where the saved session stood."""
    cut = None
    if saved.cut is not None:
        spec = TokenSections(mode=saved.cut["mode"], open_ended=True)
        cut = Cut(restore_ids(saved.cut["ids"]), whole_number("char", saved.cut["char"], 0), spec)
    window = tokenizer.restored(saved.window, with_offsets=cut is not None)
    return Point(window, saved.held, saved.state, saved.pending, saved.n_bytes, cut)


def _try(point: Point, tokenizer: Tokenizer) -> None:
    """Have the window read on and end, as what a file says of it may be anything.

    Raises:
        Exception: of whatever kind: it is no window of a text.
    """
    going_on, more = point.window.copy(), " and so on" * (WINDOW_CHARS // 5)
    blocks = [*going_on.flush(), *going_on.push(more)]
    if point.cut is not None:
        waiting = point.cut.ids.copy()
        waiting.see(more)
        waiting.add(blocks)
        blocks.append(waiting.take(waiting.n_ready))
        ending(tokenizer, replace(point, pending=b""), None, in_sections=True)
    for ids in (ending(tokenizer, replace(point, pending=b""), None).ids, *(block.ids for block in blocks)):
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
