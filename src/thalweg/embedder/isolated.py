"""Sections that are embedded as texts of their own, packed, as the text that they are cut from arrives."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from thalweg.embedder.boundaries import Boundaries
from thalweg.embedder.given import refused
from thalweg.embedder.results import Embedding
from thalweg.embedder.sectioned_stream import PIECE_CHARS
from thalweg.embedder.sections import Sections
from thalweg.engine.results import Failure, Progress
from thalweg.errors import InvalidInputError, ThalwegError
from thalweg.tokenization.backend import Block, Window
from thalweg.tokenization.text import TextSource, text_pieces

HELD_CHARS = 1 << 14
"""Characters up to which a section of a streamed text is held whole, so that it is packed with others."""


Encode: TypeAlias = Callable[[Iterable[TextSource], Callable[[Progress], None] | None], Iterator[Embedding | Failure]]
"""`Embedder.encode_stream` with its options: documents, and what is called after every step."""


class TokenBoundaries:
    """Boundaries after every so many tokens of a text, by the characters where those tokens end.

    Args:
        window: of the tokenizer, with offsets.
        every: tokens of a section.
    """

    def __init__(self, window: Window, every: int) -> None:
        self._window = window
        self._every = every
        self._count = 0  # tokens in the section that is under way
        self._end = 0  # of the last token
        self._full: int | None = None  # where a section ends, if there is text for another one

    @property
    def settled(self) -> int:
        """See `Boundaries`."""
        return self._end if self._full is None else self._full

    def push(self, piece: str) -> list[int]:
        """See `Boundaries`."""
        return self._found(self._window.push(piece))

    def finish(self) -> list[int]:
        """See `Boundaries`."""
        return self._found(self._window.finish())

    def _found(self, blocks: list[Block]) -> list[int]:
        found = []
        for block in blocks:
            assert block.offsets is not None
            for start, end in block.offsets.tolist():
                if start == end:
                    continue
                self._end = max(self._end, end)
                if self._full is not None and self._full < self._end:
                    found.append(self._full)
                    self._full = None
                self._count += 1
                if self._count == self._every:
                    self._count, self._full = 0, self._end
        return found


class Cursor:
    """One text, read up to where its next section ends.

    Args:
        held: characters up to which a section is held whole.
    """

    def __init__(self, text: TextSource, boundaries: Boundaries | TokenBoundaries, held: int) -> None:
        self._pieces = text_pieces(text, PIECE_CHARS)
        self._boundaries = boundaries
        self._held = held
        self._ends: deque[int] = deque()  # boundaries after `start`
        self._ahead: deque[str] = deque()  # text that is in no section yet
        self._read = 0  # characters
        self.start = 0  # of the next section
        self.ended = False  # whether the text has no other

    def next(self) -> str | None:
        """The next section, or None where it is too long to be held: then `pieces` has it."""
        while not self._ends and not self.ended and self._read - self.start <= self._held:
            self._pull()
        if self._ends:
            return "".join(self._up_to(self._ends.popleft()))
        return "".join(self._up_to(self._read)) if self.ended else None

    def pieces(self) -> Iterator[str]:
        """The next section as it arrives."""
        while not self._ends and not self.ended:
            settled = min(self._boundaries.settled, self._read)
            yield from self._up_to(settled)
            self._pull()
        yield from self._up_to(self._ends.popleft() if self._ends else self._read)

    def _pull(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            self._ends += self._boundaries.finish()
            self.ended = True
            return
        self._ahead.append(piece)
        self._read += len(piece)
        self._ends += self._boundaries.push(piece)

    def _up_to(self, end: int) -> Iterator[str]:
        while self.start < end:
            piece = self._ahead.popleft()
            cut = end - self.start
            if len(piece) > cut:
                self._ahead.appendleft(piece[cut:])
                piece = piece[:cut]
            self.start += len(piece)
            yield piece

    @property
    def is_done(self) -> bool:
        """Whether no section is left."""
        return self.ended and not self._ends and self.start == self._read


@dataclass(frozen=True)
class Place:
    """Where a section comes from: the number of its document, its own, and the character where it begins."""

    index: int
    section: int
    start: int
    last: bool


class Splitter:
    """Documents to their sections, in order.

    Args:
        open_window: of the tokenizer, for sections of so many tokens.
    """

    def __init__(self, documents: Iterable[TextSource], sections: Sections, open_window: Callable[[], Window]) -> None:
        self._documents = enumerate(documents)
        self._sections = sections
        self._open_window = open_window
        self._cursor: Cursor | None = None
        self._index = self._section = 0
        self.places: deque[Place] = deque()  # of sections that were given out
        self.long: Cursor | None = None  # whose next section is too long to be held
        self.failed: set[int] = set()  # documents of which nothing more is wanted

    def short(self) -> Iterator[TextSource]:
        """Sections that are held whole, up to one that is too long."""
        while (cursor := self._current()) is not None:
            start = cursor.start
            try:
                text = cursor.next()
            except (ThalwegError, OSError) as error:
                self._cursor = None
                self._place(start, last=True)
                yield _broken(error)
                continue
            if text is None:
                self.long = cursor
                return
            self._place(start, last=cursor.is_done)
            yield text

    def take_long(self) -> tuple[Place, Iterator[str]]:
        """The section that was too long, in pieces. Only when these are used up is known whether it is the last."""
        assert self.long is not None
        cursor, self.long = self.long, None
        place = Place(self._index, self._section, cursor.start, last=False)
        self._section += 1
        return place, cursor.pieces()

    def at_end(self) -> bool:
        """Whether the document under way has no other section."""
        return self._cursor is None or self._cursor.is_done

    def _place(self, start: int, *, last: bool) -> None:
        self.places.append(Place(self._index, self._section, start, last))
        self._section += 1

    def _current(self) -> Cursor | None:
        """The text under way, or the next."""
        if self._cursor is not None and (self._index in self.failed or (self._section and self._cursor.is_done)):
            self._cursor = None
        if self._cursor is None:
            found = next(self._documents, None)
            if found is None:
                return None
            self._index, self._section = found[0], 0
            self._cursor = self._open(*found)
        return self._cursor

    def _open(self, index: int, document: Any) -> Cursor:
        sections = self._sections
        error = refused(document)
        if error is None and sections.of_one_text and index:
            error = InvalidInputError(
                "the boundaries in by= are those of one text, but there are several; call encode_sections for each"
            )
        try:
            if error is not None:
                raise error
            if sections.by == "tokens":
                boundaries: Boundaries | TokenBoundaries = TokenBoundaries(self._open_window(), sections.n_units)
            else:
                boundaries = sections.boundaries(document)
        except ThalwegError as caught:
            return Cursor(_broken(caught), TokenBoundaries(self._open_window(), 1), 0)
        whole = isinstance(document, str | bytes | bytearray | memoryview)
        return Cursor(document, boundaries, sys.maxsize if whole else HELD_CHARS)


def _broken(error: Exception) -> Iterator[str]:
    """A text that cannot be read."""
    raise error
    yield ""


def encode_isolated(
    encode: Encode,
    splitter: Splitter,
    on_error: Literal["raise", "yield"],
    progress: Callable[[Progress], None] | None,
) -> Iterator[Embedding | Failure]:
    """The vectors of all sections in order, each that of a text of its own.

    Short sections are packed as any texts are. One of a streamed text that is too long to be held is run by itself, as
    its text arrives.

    Args:
        encode: gives vectors in order, and failures.
        on_error, progress: see `Embedder.encode_stream`.
    """
    for result in _encode(encode, splitter, progress):
        if on_error == "raise" and isinstance(result, Failure):
            raise result.error
        yield result


def _encode(
    encode: Encode, splitter: Splitter, progress: Callable[[Progress], None] | None
) -> Iterator[Embedding | Failure]:
    tokens = documents = run_tokens = 0

    def on_step(done: Progress) -> None:
        nonlocal run_tokens
        run_tokens = done.tokens
        if progress is not None:
            progress(done._replace(tokens=tokens + done.tokens, documents=documents))

    while True:
        run_tokens = 0
        for result in encode(splitter.short(), on_step):
            place = splitter.places.popleft()
            if place.index in splitter.failed:
                continue
            documents += place.last and isinstance(result, Embedding)
            yield _placed(result, place, splitter.failed)
        tokens += run_tokens
        if splitter.long is None:
            return
        place, pieces = splitter.take_long()
        run_tokens = 0
        for found in encode([pieces], on_step):
            result = _read_on(found, pieces)
            last = splitter.at_end()
            documents += last and isinstance(result, Embedding)
            yield _placed(result, replace(place, last=last), splitter.failed)
        tokens += run_tokens


def _read_on(result: Embedding | Failure, pieces: Iterator[str]) -> Embedding | Failure:
    """Read to the section's end, from where `max_length` may have cut it."""
    if isinstance(result, Failure):
        return result
    try:
        for _ in pieces:
            pass
    except (ThalwegError, OSError) as error:
        return Failure(result.index, error)
    return result


def _placed(result: Embedding | Failure, place: Place, failed: set[int]) -> Embedding | Failure:
    if isinstance(result, Failure):
        failed.add(place.index)
        return Failure(place.index, result.error)
    return replace(
        result,
        index=place.index,
        section=place.section,
        char_start=place.start,
        char_end=place.start + result.char_end,
        last=place.last,
    )
