"""Which characters a pre-tokenizer leaves in one word when they come in a row.

A pre-tokenizer is a sequence of parts, each with one or more kinds of rows (`patterns.Run`). A row stays one word if
every part has a kind that all its characters belong to. The kinds of a character are bits of a mask, eight for each
part, so that those of a row are the `and` of its characters' masks.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Regex, pre_tokenizers

from thalweg.tokenization.patterns import GPT2, KNOWN_PATTERNS, Run, as_known

Masks = npt.NDArray[np.uint64]

_BITS = 8  # kinds of a part
_PARTS = 7  # of a pre-tokenizer; published ones have up to four
_KNOWN = np.uint64(1 << _BITS * _PARTS)  # a bit of every character of which anything is known
# A part that decides by the classes of two neighbours keeps a row of one class together. These stand for the classes.
_SAMPLES = "a1.一"


class Kinds(NamedTuple):
    """Masks (n,) of n characters: kinds they belong to, can be the first of, and must not come before."""

    members: Masks
    first: Masks
    not_after: Masks


class RunRules:
    """Rules of rows in a pre-tokenizer with these settings, all of which `CutRules` has found to be local."""

    def __init__(self, settings: Sequence[Mapping[str, Any]]) -> None:
        self._parts = [_Part(part) for part in settings]
        self.refusal = f"its pre-tokenizer has more than {_PARTS} parts" if len(settings) > _PARTS else None

    def kinds(self, chars: str) -> Kinds:
        """The kinds of characters, as the normalizer leaves them."""
        if not chars:
            return Kinds(*(np.zeros(0, dtype=np.uint64) for _ in Kinds._fields))
        masks = Kinds(*(np.full(len(chars), of_all, dtype=np.uint64) for of_all in (_KNOWN, _KNOWN, 0)))
        texts: Sequence[str] = list(chars)
        for number, part in enumerate(self._parts):
            begins = np.cumsum([0, *map(len, texts)])[:-1]
            found = part.kinds("".join(texts))
            shift = np.uint64(_BITS * number)
            masks.members[:] |= np.bitwise_and.reduceat(found.members, begins) << shift
            masks.first[:] |= found.first[begins] << shift
            masks.not_after[:] |= np.bitwise_or.reduceat(found.not_after, begins) << shift
            texts = [part.changed(text) for text in texts]
        return masks

    def in_one_word(self, masks: Masks) -> npt.NDArray[np.bool_]:
        """Whether rows with these masks have a kind in every part."""
        field = np.uint64((1 << _BITS) - 1)
        kept = masks & _KNOWN != 0
        for number in range(len(self._parts)):
            kept = kept & ((masks >> np.uint64(_BITS * number)) & field != 0)
        return kept


class _Part:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        pattern = settings.get("pattern", {}).get("Regex")
        self._runs: Sequence[Run] = KNOWN_PATTERNS.get(as_known(pattern), ()) if pattern else ()
        if settings["type"] == "ByteLevel" and settings.get("use_regex", True):
            self._runs = KNOWN_PATTERNS[GPT2]
        self._type = settings["type"]
        self._replacement = settings.get("replacement", " ")
        self._pre_tokenizer = _made(settings)

    def kinds(self, chars: str) -> Kinds:
        found = np.zeros((3, len(chars)), dtype=np.uint64)
        if self._runs:
            for number, run in enumerate(self._runs):
                bit = np.uint64(1 << number)
                for masks, pattern in zip(found, (run.members, run.first, run.not_after), strict=True):
                    if pattern:
                        masks |= _matches(pattern, chars) * bit
        else:
            for number, sample in enumerate(_SAMPLES):
                found[:2] |= self._joins(sample, chars) * np.uint64(1 << number)
        return Kinds(*found)

    def _joins(self, sample: str, chars: str) -> Masks:
        """Whether each character between two samples is in one piece with both."""
        text = sample + "".join(char + sample for char in chars)
        inside = np.zeros(len(text) + 1, dtype=np.uint64)  # whether no piece ends before this character
        for _, (start, stop) in self._pre_tokenizer.pre_tokenize_str(text):
            inside[start + 1 : stop] = 1
        return inside[1:-1:2] & inside[2::2]

    def changed(self, text: str) -> str:
        """What later parts see of it."""
        if self._type == "ByteLevel":
            return "".join(map(_byte_names().__getitem__, text.encode()))
        return text.replace(" ", self._replacement) if self._type == "Metaspace" else text


def _matches(pattern: str, chars: str) -> Masks:
    matched = np.ones(len(chars), dtype=np.uint64)
    for _, (start, stop) in pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(chars):
        matched[start:stop] = 0
    return matched


@functools.cache
def _byte_names() -> Mapping[int, str]:
    """The character by which ByteLevel writes each byte that UTF-8 has."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    names: dict[int, str] = {}
    for code in (*range(0x80), *range(0x80, 0x800, 0x40), *range(0x80, 0xC0), 0x800, *range(0x1000, 0x110000, 0x1000)):
        char = chr(code)
        if not 0xD800 <= code < 0xE000:
            names.update(zip(char.encode(), level.pre_tokenize_str(char)[0][0], strict=True))
    return names


def _made(settings: Mapping[str, Any]) -> pre_tokenizers.PreTokenizer:
    file = tokenizers.Tokenizer(tokenizers.models.BPE()).to_str()
    made = tokenizers.Tokenizer.from_str(json.dumps(json.loads(file) | {"pre_tokenizer": settings})).pre_tokenizer
    assert made is not None
    return made
