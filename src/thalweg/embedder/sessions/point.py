"""Where a growing text stands, and the tokens that more of it adds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from thalweg.embedder.sectioned_ids import IdsInSections, SectionEnd
from thalweg.engine.results import DocumentState
from thalweg.engine.sections import TokenSections
from thalweg.engine.sources import Answer, TokenArray
from thalweg.engine.states import nbytes
from thalweg.tokenization.backend import Block, Window
from thalweg.tokenization.text import Utf8Decoder, check_surrogates
from thalweg.tokenization.tokenizer import Tokenizer

PIECE = 1024
"""Characters of a str that are tokenised at a time; of bytes four times as many, which may be as many characters."""

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Cut:
    """Where the sections of a growing text stand; whoever goes on from it copies the ids first.

    ids: those that are decided, but not where they belong, and the ends that have been found; char: where the section
    that is under way begins; spec: what the engine is told.
    """

    ids: IdsInSections
    char: int
    spec: TokenSections


@dataclass(frozen=True)
class Point:
    """A value: whoever goes on from it copies the window first.

    window: the characters whose ids the tokenizer cannot decide yet; held: ids (n,) that are decided, but may be the
    text's last and are kept back for pooling; state: after all ids before these, None before the first; pending: bytes
    of a character that has not come to its end; n_bytes: bytes so far; cut: of a text in sections.
    """

    window: Window
    held: Ids
    state: DocumentState | None = None
    pending: bytes = b""
    n_bytes: int = 0
    cut: Cut | None = None

    @property
    def n_run(self) -> int:
        """Tokens that have gone through the model."""
        return 0 if self.state is None else self.state.n_tokens

    @property
    def nbytes(self) -> int:
        """Bytes of the state and the sums."""
        if self.state is None:
            return 0
        begun = self.state.section
        sums = [self.state.sums, *([] if begun is None or begun.sums is None else [begun.sums])]
        return nbytes(self.state.model) + sum(each.total.nbytes for each in sums)


def start(tokenizer: Tokenizer, prompt: str, cut: Cut | None) -> Point:
    """A text of which nothing is known but its prompt. cut: of a text of which nothing is known."""
    window = tokenizer.begin(prompt, with_offsets=cut is not None)
    first = Block.specials(tokenizer.prefix, 0, with_offsets=cut is not None)
    return Point(window, _placed(cut, [first, *window.push(prompt)]), cut=cut)


def ending(tokenizer: Tokenizer, point: Point, eos: int | None, *, in_sections: bool = False) -> Continuation:
    """What is left if the text ends here.

    eos: what stands for a text without any ids; in_sections: for the vectors of those that are left, not the text's.
    """
    Utf8Decoder(point.pending, point.n_bytes).finish()
    window = point.window.copy()
    cut = None if point.cut is None else replace(point.cut, ids=point.cut.ids.copy())
    if cut is not None:
        cut.ids.see_end()
    ids = np.concatenate([point.held, _placed(cut, window.finish()), np.array(tokenizer.suffix, dtype=np.int32)])
    if not len(ids) and not point.n_run and eos is not None:
        ids = np.array([eos], dtype=np.int32)
    rest = Continuation(ids, point.state)
    if cut is not None and in_sections:
        ends = [end for end in cut.ids.ends if end.token < point.n_run + len(ids)]
        rest.sections = replace(cut.spec, open_ended=False)
        rest.ends = [end.token for end in ends]
        rest.chars = [*(end.char for end in ends), window.end]
    return rest


def _placed(cut: Cut | None, blocks: list[Block]) -> Ids:
    """The ids of these blocks; in a text with sections those of which is known by now where they belong."""
    if cut is not None:
        cut.ids.add(blocks)
        blocks = [cut.ids.take(cut.ids.n_ready)]
    return np.concatenate([np.zeros(0, dtype=np.int32), *(block.ids for block in blocks)])


class Continuation:
    """Ids that go on from a state; see `TokenSource`.

    Attributes:
        ids: (n,) those that are left; sections: what they belong to, where that is wanted; ends, chars: where those
            end, the last one's character among them.
    """

    keep_state = False

    def __init__(self, ids: Ids, state: DocumentState | None) -> None:
        self.ids = ids
        self.state = state
        self.sections: TokenSections | None = None
        self.ends: list[int] = []
        self.chars: list[int] = []

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        """See `TokenSource`."""
        ids, self.ids = self.ids[:n], self.ids[n:]
        return ids, Answer.MORE if len(self.ids) else Answer.ENDED

    def section_ends(self) -> list[int]:
        """See `TokenSource`."""
        ends, self.ends = self.ends, []
        return ends


class Growth:
    """The ids that more text decides, as a source that keeps its state at the end; see `TokenSource`.

    Attributes:
        sections: what the engine is told; None for a text without.
        named: the ends of sections that the engine has been told and that `ended` has not been asked for.

    Args:
        point: where the text stands. It stays as it is.
        texts: what comes next, str or UTF-8 bytes cut anywhere.
        n_held: decided ids that are kept back; of a text in sections as many as make an end certain.
    """

    keep_state = True

    def __init__(self, point: Point, texts: Iterable[str | bytes], n_held: int) -> None:
        self.state = point.state
        self._decoder = Utf8Decoder(point.pending, point.n_bytes)
        self._window = point.window.copy()
        self._cut = None if point.cut is None else replace(point.cut, ids=point.cut.ids.copy())
        self.sections = None if self._cut is None else self._cut.spec
        self.named: deque[SectionEnd] = deque()
        self._pieces = self._decoded(texts)
        self._n_held = n_held
        self._ids = point.held
        self._n_taken = point.n_run
        self._ended = False

    def begin(self) -> bool | Exception:
        """Whether there is any id to be run, or why nothing can be read."""
        try:
            self._read(0)
        except Exception as error:
            return error
        return len(self._ids) > self._n_held

    def take(self, n: int) -> tuple[TokenArray, Answer]:
        """See `TokenSource`."""
        self._read(n)  # one more than n shows the end
        count = min(n, len(self._ids) - self._n_held)
        ids, self._ids = self._ids[:count], self._ids[count:]
        self._n_taken += count
        return ids, Answer.ENDED if self._ended and len(self._ids) == self._n_held else Answer.MORE

    def section_ends(self) -> list[int]:
        """See `TokenSource`. The end of what is to be run is none (`ends_with_section`)."""
        assert self._cut is not None
        ends, found = self._cut.ids.ends, []
        while ends and ends[0].token < self._n_taken + len(self._ids) - self._n_held:
            self.named.append(ends.popleft())
            found.append(self.named[-1].token)
        return found

    @property
    def ends_with_section(self) -> bool:
        """Whether a section ends exactly where all that was to be run has been."""
        return self._cut is not None and bool(self._cut.ids.ends) and self._cut.ids.ends[0].token == self._n_taken

    def pass_end(self) -> tuple[int, int]:
        """The next section has ended: its characters [start, end)."""
        assert self._cut is not None
        end = self.named.popleft() if self.named else self._cut.ids.ends.popleft()
        start = self._cut.char
        self._cut = replace(self._cut, char=end.char)
        return start, end.char

    def end(self, state: DocumentState | None) -> Point:
        """Where the text stands now. state: after what was run."""
        return Point(self._window, self._ids.copy(), state, self._decoder.pending, self._decoder.n_bytes, self._cut)

    def _read(self, n: int) -> None:
        found = [self._ids]
        count = len(self._ids)
        while count - self._n_held <= n and not self._ended:
            piece = next(self._pieces, None)
            self._ended = piece is None
            if self._cut is not None and piece is not None:
                self._cut.ids.see(piece)
            blocks = self._window.flush() if piece is None else self._window.push(piece)
            found.append(_placed(self._cut, blocks))
            count += len(found[-1])
        self._ids = np.concatenate(found)

    def _decoded(self, texts: Iterable[str | bytes]) -> Iterator[str]:
        for text in texts:
            if isinstance(text, bytes):
                for at in range(0, len(text), 4 * PIECE):
                    yield self._decoder.decode(text[at : at + 4 * PIECE])
            else:
                self._decoder.finish()
                for at in range(0, len(text), PIECE):
                    part = text[at : at + PIECE]
                    check_surrogates(part, at)
                    yield part
