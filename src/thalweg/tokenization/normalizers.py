"""Across which places of a text the normalizers of a tokenizer neither look nor join.

What is said here holds for the kinds that `CutRules` lets pass: they work on each character alone, on a character and
the marks after it (NFC and its like; graphemes), or on a run of spaces or of listed punctuation.
"""

import functools
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Place = Literal["alone", "mark", "unsure"]

RUNS_OF_SPACES = frozenset({" {2,}", " +", r"\s+", r"\s{2,}"})
"""Regular expressions of `Replace` that are known to match nothing but spaces."""

_LETTERS_JOINED_AFTER = frozenset(  # by Unicode's rules for graphemes
    map(chr, (0xD4E, 0x111C2, 0x111C3, 0x113D1, 0x1193F, 0x11941, 0x11A3A, *range(0x11A84, 0x11A8A), 0x11D46, 0x11F02))
)
_FLAGS = range(0x1F1E6, 0x1F200)  # graphemes in pairs
_JAMO, _LATER_JAMO = (
    range(0x1100, 0x1200),
    range(0x1160, 0x1200),
)  # parts of Hangul syllables, all but the first of them
_SYLLABLES = range(0xAC00, 0xD7A4)
_VIRAMA = 9  # combining class: joins consonants, but not in Thai and Lao
_THAI_AND_LAO = range(0xE00, 0xF00)


class NormalizerRules:
    """`settings`: of all normalizers, in order."""

    def __init__(self, settings: Sequence[Mapping[str, Any]]) -> None:
        types = {part["type"] for part in settings}
        patterns = [part["pattern"] for part in settings if part["type"] == "Replace"]
        texts = [pattern["String"] for pattern in patterns if "String" in pattern]
        self._composes = not types.isdisjoint({"NFC", "NFD", "NFKC", "NFKD", "BertNormalizer"})
        self._by_grapheme = "Precompiled" in types
        self._in_patterns = frozenset("".join(text for text in texts if len(text) > 1))
        self.joins_spaces = "Strip" in types or any(pattern.get("Regex") in RUNS_OF_SPACES for pattern in patterns)

    def place(self, char: str) -> Place:
        """Where a character stands: "alone" if nothing looks or joins across its start, as long as what is before it is
        not "unsure"; a "mark" may belong to what is before it."""
        decomposed = unicodedata.normalize("NFKD", char)
        if unicodedata.category(char) in ("Cn", "Cs") or not self._in_patterns.isdisjoint(char + decomposed):
            return "unsure"
        if self.joins_spaces and any(part.isspace() for part in char + decomposed):
            return "unsure"
        if self._composes and _joins_before(decomposed[0]):
            return "mark"
        return _place_among_graphemes(char, decomposed[0]) if self._by_grapheme else "alone"

    def apart(self, x: str, y: str) -> bool:
        """Whether nothing looks or joins across x|y, whatever is around them."""
        if self.place(x) == "unsure":
            return False
        if self.place(y) == "mark":
            return not self._by_grapheme and not _joins_after(unicodedata.normalize("NFKD", x)[-1])
        return self.place(y) == "alone"


def _place_among_graphemes(char: str, first: str) -> Place:
    is_jamo = ord(first) in _JAMO and ord(char) not in _SYLLABLES
    joins_consonants = unicodedata.combining(char) == _VIRAMA and ord(char) not in _THAI_AND_LAO
    if char in "\r\n\u200d" or char in _LETTERS_JOINED_AFTER or joins_consonants or is_jamo:
        return "unsure"
    is_base = unicodedata.category(char)[0] in "LNPZ" or unicodedata.category(char) in ("Sc", "Sm", "So")
    return "alone" if is_base and unicodedata.category(first)[0] != "M" and ord(char) not in _FLAGS else "mark"


def _joins_before(char: str) -> bool:
    """Whether Unicode's normal forms may join or reorder a character with what is before it."""
    return unicodedata.combining(char) != 0 or char in _composed()[1] or ord(char) in _LATER_JAMO


def _joins_after(char: str) -> bool:
    """Whether they may join or reorder it with what is after it."""
    return unicodedata.combining(char) != 0 or char in _composed()[0] or ord(char) in _JAMO


@functools.cache
def _composed() -> tuple[frozenset[str], frozenset[str]]:
    """The characters that come first, and those that come second, in canonical decompositions."""
    pairs = [
        [chr(int(code, 16)) for code in parts]
        for char in map(chr, range(0x20000))
        if len(parts := unicodedata.decomposition(char).split()) == 2 and parts[0][0] != "<"
    ]
    return frozenset(first for first, _ in pairs), frozenset(second for _, second in pairs)
