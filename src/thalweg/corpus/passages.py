"""The text that goes with a vector, kept while the document streams by."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from thalweg.corpus.documents import Document
from thalweg.corpus.rows import EXCERPT
from thalweg.errors import CorpusError

STORED = 1 << 28
"""Characters of the longest text that is stored with a vector: as UTF-8 it fits into a value of Arrow and Parquet."""


class Passage:
    """A document on its way through the embedder, and the text of it that is still to be stored.

    Args:
        document: its text is read by who iterates over `text`.
        saved: the sections that an earlier run has stored.
        in_sections: keep the text of sections as they come, instead of the document's beginning.
        with_text: False keeps nothing.
    """

    def __init__(self, document: Document, saved: frozenset[int], *, in_sections: bool, with_text: bool) -> None:
        self.document = document
        self.saved = saved
        self.n_finished = 0  # sections whose rows are there
        self._sections = in_sections
        self._with_text = with_text
        self._whole = isinstance(document.text, str)
        self._kept = ""
        self._kept_from = 0
        self._n_read = 0
        self._lock = threading.Lock()  # the text is read by a thread of its own
        if isinstance(document.text, str):
            self.text: str | Iterator[str] = document.text
            self._keep(document.text)
        else:
            self.text = self._watched(document.text)

    def cut(self, start: int, end: int) -> str:
        """The text of a section, the characters [start, end), or the document's beginning.

        Sections come in order, each starting where the last one ended: text before `end` is let go.
        """
        if not self._sections:
            return self._kept
        with self._lock:
            text = self._kept[start - self._kept_from : end - self._kept_from]
            if not self._whole:  # a row is in memory anyway, and cutting a long one at every section would be quadratic
                self._kept = self._kept[end - self._kept_from :]
                self._kept_from = end
            return text

    def begin_at(self, char: int, section: int) -> None:
        """The document goes on with this section, which begins at this character: the text before it is not kept."""
        self.n_finished = section
        if not self._whole:
            self._kept_from = char

    def _watched(self, pieces: Iterator[str]) -> Iterator[str]:
        for piece in pieces:
            self._keep(piece)
            yield piece

    def _keep(self, piece: str) -> None:
        if not self._with_text:
            return
        if self._sections:
            with self._lock:
                self._kept += piece[max(0, self._kept_from - self._n_read) :]
                self._n_read += len(piece)
            if not self._whole and len(self._kept) > STORED:
                raise CorpusError(
                    f"a section has more than {STORED:,} characters, which is too much to store; use smaller sections, "
                    "or --no-text"
                )
        elif len(self._kept) < EXCERPT:
            self._kept += piece[: EXCERPT - len(self._kept)]
