"""A `tokenizers.Tokenizer` as a backend."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from thalweg.errors import CheckpointError, TokenizationError
from thalweg.system.cached import cached_property
from thalweg.tokenization.backend import SpecialTokens
from thalweg.tokenization.library_errors import library_errors, normalize
from thalweg.tokenization.splitting import Splitter
from thalweg.tokenization.windows import LibraryWindow


class LibraryBackend:
    """`library` is taken over: truncation, padding, post-processor and BPE dropout are switched off in it, and the
    literals of its special tokens are read as `special_tokens` says."""

    def __init__(self, library: tokenizers.Tokenizer, special_tokens: SpecialTokens = "token") -> None:
        library.no_truncation()
        library.no_padding()
        library.post_processor = None
        if isinstance(library.model, tokenizers.models.BPE) and library.model.dropout is not None:
            library.model.dropout = None
        _refuse_tokens_of_nothing(library)
        library.encode_special_tokens = special_tokens == "text"
        self._special_tokens = special_tokens
        self._library = library
        self.splitter = Splitter(library)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included; not every id below need be a token."""
        return 1 + max(self._library.get_vocab().values(), default=-1)

    def reading(self, special_tokens: SpecialTokens) -> "LibraryBackend":
        return self if special_tokens == self._special_tokens else self._reading_otherwise

    @cached_property
    def _reading_otherwise(self) -> "LibraryBackend":
        """With a library of its own, so that texts of both kinds can be under way at the same time."""
        copy = tokenizers.Tokenizer.from_str(self._library.to_str())
        other = LibraryBackend(copy, "text" if self._special_tokens == "token" else "token")
        other._reading_otherwise = self
        return other

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        # As for a word that has no token, where none stands for unknown ones.
        with library_errors(TokenizationError, "a text cannot be encoded with the model's tokenizer.json"):
            encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        with library_errors(TokenizationError, "these ids cannot be decoded with the model's tokenizer.json"):
            text: str = self._library.decode([int(each) for each in ids], skip_special_tokens=skip_special_tokens)
        return text

    def window(self, *, with_offsets: bool, skip: int, window_chars: int, max_uncut_chars: int) -> LibraryWindow:
        return LibraryWindow(
            self.splitter,
            with_offsets=with_offsets,
            skip=skip,
            window_chars=window_chars,
            max_uncut_chars=max_uncut_chars,
        )

    def restored(self, state: Mapping[str, Any]) -> LibraryWindow:
        return LibraryWindow.from_state(self.splitter, state)


def _refuse_tokens_of_nothing(library: tokenizers.Tokenizer) -> None:
    """The library finds such a token everywhere: it panics, or allocates memory until there is none."""
    for token in library.get_added_tokens_decoder().values():
        with library_errors(
            CheckpointError, f"the added token {token.content!r} of tokenizer.json cannot be normalized"
        ):
            nothing = token.normalized and token.content and not normalize(library.normalizer, token.content)
        if nothing:
            raise CheckpointError(
                f'the tokenizer\'s normalizer leaves nothing of its added token {token.content!r}: set "normalized": '
                "false for it in tokenizer.json, or take it out"
            )
