"""Long documents that a later run goes on with: on their way they leave what is needed to go on from there.

At a mark, every so many tokens, the tokenizer's part is noted when the text is pulled, and the engine gives the state
when it has got there. What goes on from the two reads the text from its start again, neither tokenising nor running it,
and holds it to a checksum.
"""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

from thalweg.checks import whole_number
from thalweg.embedder.documents import TokenizedText, may_block
from thalweg.embedder.prefixes import TextPrefixes
from thalweg.embedder.sectioned_ids import SectionedIds
from thalweg.embedder.sectioned_stream import SectionedStream
from thalweg.embedder.sections import Sections
from thalweg.embedder.sessions.file import Saved
from thalweg.embedder.sessions.point import Ids
from thalweg.engine.results import DocumentState
from thalweg.engine.sources import TokenArray
from thalweg.errors import InvalidInputError
from thalweg.tokenization.backend import WINDOW_CHARS
from thalweg.tokenization.text import text_pieces
from thalweg.tokenization.tokenizer import TextSource, Tokenizer, TokenStream

Found = TypeVar("Found")


class ChangedTextError(InvalidInputError):
    """A text is not the one that it was when its state was saved."""


class Checkpoints(Protocol):
    """Where documents, by their number in the input, leave where they stand. every: tokens from one time to the next,
    at least 1."""

    every: int

    def load(self, number: int, build: Callable[[Saved], Found]) -> Found | None:
        """What is made of where a document stood; None where nothing was left, or nothing that can be gone on from.
        `build` raises any exception for that."""

    def save(self, number: int, saved: Saved) -> None:
        """A document stands here. model and settings are for whoever saves it to fill in. Of one in sections, those
        before `saved.state.section` may still be on their way."""


class ResumableTexts:
    """The documents of one call as token sources that can be gone on with.

    Args:
        max_length, prompt, eos, prefixes: as in `tokenized`; sections: by tokens or units, without look-ahead.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: str,
        max_length: int | None,
        eos: int | None,
        prefixes: TextPrefixes | None,
        checkpoints: Checkpoints,
        sections: Sections | None = None,
    ) -> None:
        self._sections = sections
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._max_length = max_length
        self._eos = eos
        self._prefixes = prefixes
        self._checkpoints = checkpoints

    def open(self, number: int, document: TextSource) -> TokenizedText:
        """One document, from where it stood or from its start."""
        length = len(document) if isinstance(document, str) and self._max_length is None else None
        located = length is None or self._sections is not None
        pieces = _Pieces(text_pieces(document, WINDOW_CHARS // 4))
        by_units = self._sections is not None and self._sections.by != "tokens"

        def build(saved: Saved) -> tuple[TokenStream | SectionedStream, DocumentState, int]:
            if saved.state is None:
                raise ValueError("it holds no state")
            char = self._checked_cut(saved)
            ended = bool(saved.window["complete"]) and not saved.window["truncated"]
            pieces.expect(saved.settings["characters"], saved.settings["sha256"], ended=ended)
            if not by_units:
                stream = self._tokenizer.resumed(saved.window, saved.held, pieces, with_offsets=located)
                return stream, saved.state, char
            assert saved.cut is not None
            sections = SectionedIds.restore(saved.cut["ids"])
            if not sections.are_like(self._new_sections()):
                raise ValueError("its sections are of another kind")
            if sections.n_given != saved.state.n_tokens:
                raise ValueError("its sections are those of another text")
            sections.ends = deque(end for end in sections.ends if end.token > saved.state.n_tokens)
            resumed = functools.partial(self._tokenizer.resumed, saved.window, saved.held, with_offsets=True)
            return SectionedStream(pieces, sections, resumed), saved.state, char

        found = self._checkpoints.load(number, build)
        n, state, shares_state, char = 0, None, True, 0
        blocks = may_block(document)
        if found is not None:
            stream, state, char = found
            n, shares_state = state.n_tokens, False
        else:
            pieces.expect(0, None)
            open_stream = functools.partial(
                self._tokenizer.stream,
                prompt=self._prompt,
                max_length=self._max_length,
                with_offsets=located,
                eager=blocks and self._sections is not None,
            )
            stream = SectionedStream(pieces, self._new_sections(), open_stream) if by_units else open_stream(pieces)
            prefixes = None if self._sections is not None else self._prefixes
            if prefixes is not None and self._max_length is None and (prefixes.share or not blocks):
                assert isinstance(stream, TokenStream)
                n, state = prefixes.begin(stream)
        return _ResumableText(
            stream,
            pieces,
            self._checkpoints.every,
            lambda saved: self._checkpoints.save(number, saved),
            length=length,
            eos=self._eos,
            with_offsets=located,
            in_sections=self._sections is not None,
            may_block=blocks,
            n=n,
            state=state,
            shares_state=shares_state,
            char=char,
        )

    def _new_sections(self) -> SectionedIds:
        assert self._sections is not None
        return SectionedIds(self._sections.boundaries(""))

    def _checked_cut(self, saved: Saved) -> int:
        """Where the section begins that is under way.

        Raises:
            ValueError, InvalidInputError: the state is not one of a document in such sections.
        """
        begun = None if saved.state is None else saved.state.section
        if self._sections is None:
            if begun is not None or saved.cut is not None:
                raise ValueError("its document was in sections")
            return 0
        if begun is None or saved.cut is None or (begun.sums is None) != (saved.cut["mode"] == "prefix"):
            raise ValueError("its document was not in sections")
        return whole_number("char", saved.cut["char"], 0)


class _Noted(NamedTuple):
    """What is known of a text beside the state, at a mark. sections: of `SectionedIds`."""

    ids: Ids
    stream: dict[str, Any]
    settings: dict[str, Any]
    sections: dict[str, Any]


class _ResumableText(TokenizedText):
    """A text that notes where its tokens are at every mark, for the state that comes later.

    Args:
        stream, pieces: of the text; the one reads the other.
        save: given everything.
    """

    def __init__(
        self,
        stream: TokenStream | SectionedStream,
        pieces: _Pieces,
        every: int,
        save: Callable[[Saved], None],
        *,
        length: int | None,
        eos: int | None,
        with_offsets: bool,
        in_sections: bool,
        may_block: bool,
        n: int,
        state: DocumentState | None,
        shares_state: bool,
        char: int,
    ) -> None:
        by_tokens = in_sections and isinstance(stream, TokenStream)
        super().__init__(
            stream, length, eos, with_offsets, in_sections=by_tokens, may_block=may_block, n=n, state=state, char=char
        )
        self.shares_state = shares_state
        self.state_at = n + every
        self._sections = stream.sections if isinstance(stream, SectionedStream) else None
        self._stream, self._pieces = stream.stream if isinstance(stream, SectionedStream) else stream, pieces
        self._every, self._save = every, save
        self._next_mark = n + every  # of what is pulled; this may be well ahead of what is run
        self._noted: deque[_Noted] = deque()

    def keep(self, state: DocumentState) -> None:
        """See `TokenSource`."""
        self.state_at += self._every
        noted = self._noted.popleft()
        cut = None
        if state.section is not None:
            char = 0 if state.section.start == 0 else self._end_at(state.section.start)
            mode = "prefix" if state.section.sums is None else "mean"
            cut = {"ids": noted.sections, "char": char, "mode": mode}
        self._save(Saved({}, noted.settings, noted.stream, noted.ids, state, b"", 0, cut))

    def _pull(self, n: int) -> tuple[TokenArray, bool]:
        self.state = None  # the engine has it; it would be in memory as long as the document is under way
        self._pieces.catch_up()
        ids, last = super()._pull(min(n, self._next_mark - self._taken))
        if self._taken == self._next_mark:
            self._next_mark += self._every
            sections = {} if self._sections is None else self._sections.state()
            ahead, stream = self._stream.ids.copy(), self._stream.state()
            self._noted.append(_Noted(ahead, stream, self._pieces.settings(), sections))
        return ids, last


class _Pieces:
    """A text in pieces that is read to its checksum. What was read of it before is read again without being given."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._rest = ""
        self._n_chars = 0
        self._sha256 = hashlib.sha256()
        self._expected: tuple[int, str | None, bool] = 0, None, False

    def expect(self, n_chars: Any, sha256: Any, *, ended: bool = False) -> None:
        """So many characters have been read, and must have this checksum (hexadecimal; None: any); ended: these
        were all.

        Raises:
            InvalidInputError: that is no number.
        """
        self._expected = whole_number("characters", n_chars, 0), sha256, ended

    def catch_up(self) -> None:
        """Read what has been read before.

        Raises:
            ChangedTextError: it is not what it was.
        """
        n_chars, sha256, ended = self._expected
        if sha256 is None:
            return
        while self._n_chars < n_chars:
            piece = next(self._pieces, "")
            if not piece:
                break
            piece, self._rest = piece[: n_chars - self._n_chars], piece[n_chars - self._n_chars :]
            self._read(piece)
        goes_on = ended and (self._rest or next(self._pieces, ""))
        if self._n_chars < n_chars or self._sha256.hexdigest() != sha256 or goes_on:
            raise ChangedTextError("the text has changed since its state was saved")
        self._expected = 0, None, False

    def settings(self) -> dict[str, Any]:
        """What `expect` is to be told."""
        return {"characters": self._n_chars, "sha256": self._sha256.hexdigest()}

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece, self._rest = self._rest or next(self._pieces), ""
        self._read(piece)
        return piece

    def _read(self, piece: str) -> None:
        self._n_chars += len(piece)
        self._sha256.update(piece.encode())
