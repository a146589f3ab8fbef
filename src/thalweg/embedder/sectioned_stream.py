"""A text to ids, which are given out once it is known in which section of the text each begins."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thalweg.embedder.boundaries import Boundaries
from thalweg.embedder.paragraphs import BLANK, LOOK_BEHIND
from thalweg.tokenization.text import TextSource, text_pieces
from thalweg.tokenization.tokenizer import TokenStream

PIECE_CHARS = 1 << 10


class SectionEnd(NamedTuple):
    """A boundary: the token that begins the next section, counted from the text's first (BOS, prompt), and the
    character."""

    token: int
    char: int


class SectionedStream:
    """The ids of one text in order, as `TokenStream` has them, and where its sections end among them.

    A token begins at its first character that is not blank: many tokens are a word with the space before it, and a
    boundary lies between the two. Only tokens with characters of their own begin a section: BOS and the prompt are in
    the first, EOS in the last. A boundary after which no token begins before the next one is left out.

    Args:
        text: of the document.
        boundaries: of that text.
        tokenize: opens a stream over the pieces of the text.
    """

    def __init__(
        self, text: TextSource, boundaries: Boundaries, tokenize: Callable[[Iterator[str]], TokenStream]
    ) -> None:
        self.ends: deque[SectionEnd] = deque()  # of tokens that were given out; for who reads them to empty
        self._boundaries = boundaries
        self._found: deque[tuple[int, int]] = deque()  # boundaries ahead, and where the blanks before each begin
        self._tail, self._tail_start = "", 0  # the text in which boundaries may still be found, and a little before it
        self._settled: float = 0  # before this character no further boundary will be found
        self._pieces = self._watched(text)
        self._stream = tokenize(self._pieces)
        self._ids = np.zeros(0, dtype=np.int32)
        self._offsets = np.zeros((0, 2), dtype=np.int64)
        self._ended = False
        self._n_given = 0
        self._start = 0  # the farthest of a token that was given out
        self._has_begun = False  # whether one with characters was

    @property
    def truncated(self) -> bool:
        """See `TokenStream`."""
        return self._stream.truncated

    def take_with_offsets(self, n: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], bool]:
        """See `TokenStream`."""
        while not self._ended and (ready := self._n_ready()) < n:
            if ready and self._stream.is_slow:
                break
            ids, offsets, self._ended = self._stream.take_with_offsets(n - ready)
            self._ids, self._offsets = np.concatenate([self._ids, ids]), np.concatenate([self._offsets, offsets])
        if self._ended:
            self._settle()
            ready = len(self._ids)
        n = min(n, ready)
        ids, offsets = self._ids[:n], self._offsets[:n]
        self._give_out(offsets)
        self._ids, self._offsets = self._ids[n:], self._offsets[n:]
        return ids, offsets, self._ended and not len(self._ids)

    def _watched(self, text: TextSource) -> Iterator[str]:
        """The pieces of the text, seen by the boundaries first."""
        for piece in text_pieces(text, PIECE_CHARS):
            self._tail += piece
            self._find(self._boundaries.push(piece))
            self._settled = self._boundaries.settled
            kept = max(self._tail_start, self._boundaries.settled - LOOK_BEHIND)
            self._tail, self._tail_start = self._tail[kept - self._tail_start :], kept
            yield piece
        self._find(self._boundaries.finish())
        self._settled = math.inf

    def _find(self, chars: list[int]) -> None:
        for char in chars:
            before = self._tail[: char - self._tail_start]
            self._found.append((char, self._tail_start + len(before.rstrip(BLANK))))

    def _n_ready(self) -> int:
        """Tokens of which is known where they belong."""
        starts, ends = self._offsets.T
        open_ = (ends > self._settled) & (ends > starts)
        return int(open_.argmax()) if open_.any() else len(open_)

    def _settle(self) -> None:
        """Read on until it is known where the last tokens belong: `max_length` may have cut the text before."""
        while self._n_ready() < len(self._ids) and next(self._pieces, None) is not None:
            pass

    def _give_out(self, offsets: npt.NDArray[np.int64]) -> None:
        starts = np.maximum.accumulate(np.append(self._start, offsets[:, 0]))[1:]
        with_text = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
        starts, ends = starts[with_text], offsets[with_text, 1]
        found: list[SectionEnd] = []
        while len(starts) and self._found:
            char, blank = self._found[0]
            begins = (starts >= char) | ((starts >= blank) & (ends > char))
            first = int(begins.argmax())
            if not begins[first]:
                break
            self._found.popleft()
            if first == 0 and not self._has_begun:
                continue  # there is no section before
            token = self._n_given + int(with_text[first])
            if found and found[-1].token == token:
                found.pop()
            found.append(SectionEnd(token, char))
        self.ends += found
        self._n_given += len(offsets)
        if len(starts):
            self._start, self._has_begun = int(starts[-1]), True
