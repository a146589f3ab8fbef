"""Documents on their way to the engine: texts, tokenised as they are pulled, that know which characters they are at."""

from __future__ import annotations

import functools
import io
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from thalweg.embedder.given import refused
from thalweg.embedder.prefixes import TextPrefixes
from thalweg.embedder.sectioned_ids import SectionedIds, SectionEnd
from thalweg.embedder.sectioned_stream import SectionedStream
from thalweg.embedder.sections import Sections
from thalweg.engine.read_ahead import BlockingSource
from thalweg.engine.results import DocumentState, Pooled
from thalweg.engine.sources import Answer, TokenArray
from thalweg.errors import InvalidInputError, ThalwegError, TokenizationError
from thalweg.tokenization.tokenizer import TextSource, Tokenizer, TokenStream

SHORT_TEXT = 8192
"""Characters below which a string is tokenised together with its neighbours."""

GROUP = 64
"""Strings tokenised together: the input is read at most so far ahead."""


def tokenized(
    documents: Iterable[TextSource],
    tokenizer: Tokenizer,
    prompt: str,
    max_length: int | None,
    sections: Sections | None,
    eos: int | None,
    prefixes: TextPrefixes | None = None,
    open_resumable: Callable[[int, TextSource], TokenizedText] | None = None,
) -> Iterator[TokenizedText]:
    """Documents as token sources: short strings tokenised many at a time, everything else as it is pulled.

    Args:
        prompt: put before every text.
        max_length: tokens a text is cut to, or None.
        sections: how documents are cut, where sections will be asked for, and so the characters of each.
        eos: the id that stands for an empty text where nothing else does.
        prefixes: knows of a text's ids how many at their beginning have been run, and the state after them.
        open_resumable: makes the source of a document of this number that is no short string, where documents are to
            leave states on their way.
    """
    group: list[str] = []

    def flush() -> Iterator[TokenizedText]:
        try:
            encoded = tokenizer.encode_batch(group, prompt)
        except TokenizationError:  # one of them is no text: each on its own, so that only that one fails
            for text in group:
                yield TokenizedText(tokenizer.stream(text, prompt), len(text), eos)
        else:
            for text, ids in zip(group, encoded, strict=True):
                yield whole(ids, len(text))
        group.clear()

    def whole(ids: npt.NDArray[np.int32], length: int) -> TokenizedText:
        n, state = (0, None) if prefixes is None else prefixes.of(ids)
        return TokenizedText(_WholeText(ids[n:]), length, eos, n=n, state=state)

    for number, document in enumerate(documents):
        if isinstance(document, str) and len(document) < SHORT_TEXT and max_length is None and sections is None:
            group.append(document)
            if len(group) == GROUP:
                yield from flush()
            continue
        yield from flush()
        error = refused(document)
        if error is None and sections is not None and sections.of_one_text and number:
            error = InvalidInputError(
                "the boundaries in by= are those of one text, but there are several; call encode_sections for each"
            )
        if error is not None:
            yield TokenizedText(_NoText(error), 0, eos)
            continue
        if open_resumable is not None:
            yield open_resumable(number, document)
            continue
        blocks = may_block(document)
        try:
            yield open_text(
                document, tokenizer, prompt, max_length, sections, eos, prefixes, blocks=blocks, threaded=blocks
            )
        except ThalwegError as caught:
            yield TokenizedText(_NoText(caught), 0, eos)
    yield from flush()


def open_text(
    document: TextSource,
    tokenizer: Tokenizer,
    prompt: str,
    max_length: int | None,
    sections: Sections | None,
    eos: int | None,
    prefixes: TextPrefixes | None = None,
    *,
    blocks: bool,
    threaded: bool,
) -> TokenizedText:
    """One document as a token source, tokenised as it is pulled; see `tokenized`.

    Args:
        blocks: whether reading it may wait for someone.
        threaded: have a thread of its own pull it.

    Raises:
        ThalwegError: boundaries that cannot be.
    """
    length = len(document) if isinstance(document, str) and max_length is None else None
    located = sections is not None or length is None
    open_stream = functools.partial(
        tokenizer.stream,
        prompt=prompt,
        max_length=max_length,
        with_offsets=located,
        eager=blocks and sections is not None,
    )
    if sections is None or sections.by == "tokens":
        stream = open_stream(document)
        n, state = 0, None
        if prefixes is not None and sections is None and max_length is None and (prefixes.share or not blocks):
            n, state = prefixes.begin(stream)
        in_sections = sections is not None
        return TokenizedText(
            stream, length, eos, located, in_sections=in_sections, may_block=threaded, n=n, state=state
        )
    sectioned = SectionedStream(document, SectionedIds(sections.boundaries(document)), open_stream)
    return TokenizedText(sectioned, length, eos, located, may_block=threaded)


def may_block(document: TextSource) -> bool:
    """Whether reading a document may wait for someone: its pieces come from an iterator, a pipe or a terminal."""
    if isinstance(document, (str, bytes, list, tuple, io.StringIO, io.BytesIO)):
        return False
    try:
        return not stat.S_ISREG(os.fstat(document.fileno()).st_mode)  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):
        return True


class _WholeText:
    """The ids of a text that is tokenised already, pulled as those of a `TokenStream` are."""

    def __init__(self, ids: npt.NDArray[np.int32]) -> None:
        self._ids = ids

    def take(self, n: int) -> tuple[npt.NDArray[np.int32], bool]:
        ids, self._ids = self._ids[:n], self._ids[n:]
        return ids, not len(self._ids)


class _NoText:
    """What is no document."""

    def __init__(self, error: ThalwegError) -> None:
        self._error = error

    def take(self, n: int) -> tuple[npt.NDArray[np.int32], bool]:
        raise self._error


class TokenizedText:
    """A document's tokens on their way to the engine, and the characters they stand for.

    n, state: tokens before those that `source` gives, and the state after them, with which others begin too; char:
    where the section begins that is under way there.
    """

    shares_state = True

    def __init__(
        self,
        source: _WholeText | _NoText | TokenStream | SectionedStream,
        length: int | None,
        eos: int | None,
        with_offsets: bool = False,
        *,
        in_sections: bool = False,
        may_block: bool = False,
        n: int = 0,
        state: DocumentState | None = None,
        char: int = 0,
    ) -> None:
        self.state = state
        self._thread = BlockingSource(self._pull) if may_block else None
        self._source = source
        self._in_sections = in_sections
        self._with_offsets = with_offsets
        self._length = length
        self._eos = eos
        self._taken = n
        self._ends: deque[tuple[int, npt.NDArray[np.int64]]] = deque()  # first token, where each token's text ends
        self._chars: deque[SectionEnd] = deque()  # where the sections end that have not been asked for
        self._section_end = char
        self._section_stop = 0 if state is None or state.section is None else state.section.start  # the token there

    @property
    def truncated(self) -> bool:
        return isinstance(self._source, TokenStream | SectionedStream) and self._source.truncated

    def subscribe(self, wake: Callable[[], None]) -> None:
        """See `TokenSource`."""
        if self._thread is not None:
            self._thread.subscribe(wake)

    def close(self) -> None:
        """See `TokenSource`."""
        if self._thread is not None:
            self._thread.close()

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        """See `TokenSource`."""
        if self._thread is not None:
            return self._thread.take(n)
        ids, last = self._pull(n)
        return ids, Answer.ENDED if last else Answer.MORE

    def section_ends(self) -> list[int]:
        """See `TokenSource`."""
        found = []
        if isinstance(self._source, SectionedStream):
            while self._source.ends:
                end = self._source.ends.popleft()
                self._chars.append(end)
                found.append(end.token)
        return found

    def _pull(self, n: int) -> tuple[TokenArray, bool]:
        """The next n ids and whether they are the last. An empty text of a model that appends no EOS is one EOS: every
        text has a vector."""
        ids: TokenArray
        if self._with_offsets:
            assert isinstance(self._source, TokenStream | SectionedStream)
            ids, offsets, last = self._source.take_with_offsets(n)
            if not self._in_sections:
                self._ends.clear()  # only the document's end will be asked for
            self._ends.append((self._taken, offsets[:, 1].copy()))
        else:
            assert not isinstance(self._source, SectionedStream)
            ids, last = self._source.take(n)
        if last and self._taken + len(ids) == 0 and self._eos is not None:
            ids = np.array([self._eos])
            self._ends.append((0, np.zeros(1, dtype=np.int64)))
        self._taken += len(ids)
        return ids, last

    def characters(self, result: Pooled) -> tuple[int, int]:
        """The characters [start, end) of a section or of the whole document."""
        start = self._section_end
        if self._length is not None and result.last:
            return start, self._length
        self._section_end = self._end_at(result.stop)
        self._section_stop = result.stop
        while self._chars and self._chars[0].token <= result.stop:
            self._chars.popleft()
        while len(self._ends) > 1 and self._ends[1][0] < result.stop:
            self._ends.popleft()
        return start, self._section_end

    def _end_at(self, stop: int) -> int:
        """The character at which a section ends that has this token after it, or the document."""
        if stop == self._section_stop:
            return self._section_end
        for end in self._chars:
            if end.token == stop:
                return end.char
        first, ends = next(each for each in self._ends if each[0] < stop <= each[0] + len(each[1]))
        return max(self._section_end, int(ends[stop - 1 - first]))
