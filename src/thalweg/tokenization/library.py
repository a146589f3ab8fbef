"""A `tokenizers.Tokenizer` as a backend."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import tokenizers

from thalweg.errors import TokenizationError
from thalweg.tokenization.cuts import CutRules
from thalweg.tokenization.library_errors import library_errors
from thalweg.tokenization.windows import WindowEncoder, find_mismatch


class LibraryBackend:
    """`library` is taken over: truncation, padding, post-processor and BPE dropout are switched off in it."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        library.no_truncation()
        library.no_padding()
        library.post_processor = None
        if isinstance(library.model, tokenizers.models.BPE) and library.model.dropout is not None:
            library.model.dropout = None
        self._library = library

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included; not every id below need be a token."""
        return 1 + max(self._library.get_vocab().values(), default=-1)

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        # As for a word that has no token, where none stands for unknown ones.
        with library_errors(TokenizationError, "a text cannot be encoded with the model's tokenizer.json"):
            encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def windows(
        self, pieces: Iterator[str], *, with_offsets: bool, skip: int, window_chars: int, max_uncut_chars: int
    ) -> WindowEncoder:
        return WindowEncoder(
            self._library,
            lambda: self.rules,
            pieces,
            with_offsets=with_offsets,
            skip=skip,
            window_chars=window_chars,
            max_uncut_chars=max_uncut_chars,
        )

    @functools.cached_property
    def rules(self) -> CutRules:
        """Made when the first text longer than a window comes; proves itself on awkward texts before use."""
        rules = CutRules(self._library)
        if rules.refusal is None:
            mismatch = find_mismatch(self._library, rules)
            if mismatch is not None:
                rules.refusal = f"its self-check failed: cut into parts, {mismatch[:60]!r}… gives other ids"
        return rules
