"""A text to ids, which are given out once it is known in which section of the text each begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from thalweg.embedder.boundaries import Boundaries
from thalweg.embedder.sectioned_ids import SectionedIds, SectionEnd
from thalweg.tokenization.backend import Block
from thalweg.tokenization.text import TextSource, text_pieces
from thalweg.tokenization.tokenizer import TokenStream

PIECE_CHARS = 1 << 10


class SectionedStream:
    """The ids of one text in order, as `TokenStream` has them, and where its sections end among them (`SectionedIds`).

    Args:
        text: of the document.
        boundaries: of that text.
        tokenize: opens a stream over the pieces of the text.
    """

    def __init__(
        self, text: TextSource, boundaries: Boundaries, tokenize: Callable[[Iterator[str]], TokenStream]
    ) -> None:
        self._sections = SectionedIds(boundaries)
        self._pieces = self._watched(text)
        self._stream = tokenize(self._pieces)
        self._ended = False

    @property
    def ends(self) -> deque[SectionEnd]:
        """Of tokens that were given out; for who reads them to empty."""
        return self._sections.ends

    @property
    def truncated(self) -> bool:
        """See `TokenStream`."""
        return self._stream.truncated

    def take_with_offsets(self, n: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], bool]:
        """See `TokenStream`."""
        while not self._ended and (ready := self._sections.n_ready) < n:
            if ready and self._stream.is_slow:
                break
            ids, offsets, self._ended = self._stream.take_with_offsets(n - ready)
            self._sections.add([Block(ids, offsets)])
        if self._ended:
            self._settle()
        block = self._sections.take(min(n, self._sections.n_ready))
        assert block.offsets is not None
        return block.ids, block.offsets, self._ended and not self._sections.n_waiting

    def _watched(self, text: TextSource) -> Iterator[str]:
        """The pieces of the text, seen by the boundaries first."""
        for piece in text_pieces(text, PIECE_CHARS):
            self._sections.see(piece)
            yield piece
        self._sections.see_end()

    def _settle(self) -> None:
        """Read on until it is known where the last tokens belong: `max_length` may have cut the text before."""
        while self._sections.n_ready < self._sections.n_waiting and next(self._pieces, None) is not None:
            pass
