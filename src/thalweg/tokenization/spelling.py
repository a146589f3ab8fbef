"""What a tokenizer gives to its model: the words of a text, character by character.

The library shows its words only in the tokens of its model. So it is given a model whose tokens are bytes: the added
tokens, the normalizer, the pre-tokenizer and the offsets are the library's own.
"""

import json
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from thalweg.tokenization.library_errors import encode
from thalweg.tokenization.segmenters import Segmenter, Symbols

Int64 = npt.NDArray[np.int64]

_BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


class Spelled(NamedTuple):
    """chars: all words end to end, without added tokens; words, starts, ends (n,): of each its word's number, and the
    characters of the text that it stands for."""

    chars: str
    words: Int64
    starts: Int64
    ends: Int64

    def between(self, begin: int, end: int) -> "Spelled":
        return Spelled(self.chars[begin:end], self.words[begin:end], self.starts[begin:end], self.ends[begin:end])


class Speller:
    """`library` without its model."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        settings = json.loads(library.to_str())
        settings["model"] = {"type": "BPE", "vocab": _BYTES, "merges": [], "byte_fallback": True}
        contents = [token["content"] for token in settings["added_tokens"]]
        settings["added_tokens"] = [token | {"id": len(_BYTES) + i} for i, token in enumerate(settings["added_tokens"])]
        self.refusal = next((f"it has the added token {text!r}" for text in contents if text in _BYTES), None)
        self._library = tokenizers.Tokenizer.from_str(json.dumps(settings))
        self._library.encode_special_tokens = library.encode_special_tokens

    def spell(self, text: str) -> Spelled:
        encoding = encode(self._library, text)
        ids = np.array(encoding.ids, dtype=np.int64)
        words = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
        spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        in_words = ids < len(_BYTES)
        ids, words, spans = ids[in_words], words[in_words], spans[in_words]
        leads = (ids & 0xC0) != 0x80  # the first byte of each character
        return Spelled(ids.astype(np.uint8).tobytes().decode(), words[leads], spans[leads, 0], spans[leads, 1])


def symbols_of(segmenter: Segmenter, spelled: Spelled, *, first: bool, last: bool) -> Symbols:
    """What the model starts from for a part of a word, the `first` or the `last` of it."""
    found = segmenter.symbols(spelled.chars, first=first, last=last)
    counts = [len(symbols) for symbols in found]
    flat = np.array([symbol for symbols in found for symbol in symbols], dtype=np.int32)
    return Symbols(flat, np.repeat(spelled.starts, counts), np.repeat(spelled.ends, counts))
