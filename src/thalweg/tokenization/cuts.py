"""Where one tokenizer lets a text be cut, so that the ids left and right of the cut stay those of the whole text.

A cut lies between two characters x|y. It is used only when no stage of the tokenizer can look or join across it,
whatever else the text holds:

    added tokens    none has x and y side by side after what is before x here, so that none lies over the cut
    normalizer      a kind that works character by character (or on a run of marks or spaces); x and y are no part
                    of such a run
    pre-tokenizer   a kind, or a published pattern, that never reads on from x to y (`KNOWN_PATTERNS`)
    model           sees x and y in different words, or (BPE over the whole text, as in Llama) has no vocabulary
                    entry with x and y side by side, so that no merge joins them

The first three are checked on the tokenizer's own settings once, and on x and y for each cut; the last one in the
encoding of the window around the cut. What this file cannot prove safe is not cut: such a text is tokenised whole, up
to a bound.
"""

import json
import re
import string
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from thalweg.tokenization.added_tokens import AddedTokens
from thalweg.tokenization.library_errors import normalize
from thalweg.tokenization.normalizers import RUNS_OF_SPACES, NormalizerRules
from thalweg.tokenization.patterns import AFTER_NUMBERS_ARE_APART, KNOWN_PATTERNS, NUMBERS, as_known

# Normalizers that map characters one by one, or runs of combining marks, or only the ends of the text.
_LOCAL_NORMALIZERS = frozenset(
    {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "Precompiled", "BertNormalizer"}
    | {"Strip", "Prepend"}
)
_CHARACTER_CLASS = re.compile(r"\[((?:\\u[0-9a-fA-F]{4}|[^]\\[^&-])+)\]")  # listed characters only
# Pre-tokenizers that decide by the classes of two neighbouring characters.
_LOCAL_PRE_TOKENIZERS = frozenset(
    {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits", "Metaspace", "CharDelimiterSplit"}
)
# Apostrophes belong to contractions, and a combining mark further on may turn the others into ≮ ≠ ≯.
_UNSURE = frozenset("'’<=>")


class Cut(NamedTuple):
    char: int  # position in the text
    token: int  # first token of its encoding after it


class CutRules:
    """What the settings of one `tokenizers.Tokenizer` allow; `refusal` says why nothing, if nothing."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.normalizers = _components(backend.normalizer, "normalizers")
        self.pre_tokenizers = _components(backend.pre_tokenizer, "pretokenizers")
        self.refusal = _normalizer_refusal(self.normalizers) or _pre_tokenizer_refusal(
            self.normalizers, self.pre_tokenizers
        )
        self._places = NormalizerRules(self.normalizers)
        self._replaced = frozenset().union(
            *(_replaced_characters(part["pattern"]) for part in self.normalizers if part["type"] == "Replace")
        )
        self.added_tokens = AddedTokens(backend)
        precompiled = any(part["type"] == "Precompiled" for part in self.normalizers)
        self._vanishing = _VanishingCharacters(backend, self.added_tokens) if precompiled else None
        self._merges = _MergeRule(backend, self.pre_tokenizers)

    def offsets_hold(self, text: str) -> bool:
        """Whether offsets in the encoding of `text` are right. (Where `Precompiled` takes away the first character that
        it is given, all later ones are too small.)"""
        return self._vanishing is None or not self._vanishing.begin_a_part_of(text)

    def allows(self, x: str, y: str) -> bool:
        """Whether normalizer and pre-tokenizer leave characters x|y apart, where x and y are in different words or no
        merge joins them."""
        return (_is_local(x, y) or (_is_decided(x, y) and self._places.apart(x, y))) and self._replaced.isdisjoint(
            x + y + unicodedata.normalize("NFKD", x + y)
        )

    def last_cut(self, encoding: tokenizers.Encoding, text: str, low: int, high: int) -> Cut | None:
        """The last safe cut of `text`, which goes on, in (low, high]."""
        token = len(encoding) - 1
        if token >= 0 and encoding.ids[token] in self.added_tokens.ids:
            token -= 1  # not if it must be a word of its own, and what follows shows that it is none
        while token > 0:
            word = None if self._merges.applies else encoding.token_to_word(token)
            if word is not None:
                token = _tokens_of(encoding, word)[0]  # no other place in the word can be a cut
            char = _span(encoding, token - 1)[1] if token else 0
            if char <= low:
                return None
            if char <= high and self._is_cut(encoding, text, char, token):
                return Cut(char, token)
            token -= 1
        return None

    def token_at(self, encoding: tokenizers.Encoding, text: str, position: int) -> int | None:
        """Index of the first token of `text[position:]` in the encoding of `text`, None if this is no safe cut."""
        token = token_after(encoding, position)
        return token if token is not None and self._is_cut(encoding, text, position, token) else None

    def _is_cut(self, encoding: tokenizers.Encoding, text: str, char: int, token: int) -> bool:
        """Whether a safe cut at `char` lies between tokens token - 1 and token."""
        if token == len(encoding) or not self.allows(text[char - 1], text[char]):
            return False
        if self.added_tokens.may_lie_over(text, char):
            return False
        if _span(encoding, token - 1)[1] != char or _span(encoding, token)[0] < char:
            return False
        if encoding.token_to_word(token - 1) != encoding.token_to_word(token):
            return True
        return self._merges.never_joins(text[char - 1], text[char])


def token_after(encoding: tokenizers.Encoding, position: int) -> int | None:
    """Index of the first token that begins at `position` or later, None if the character before it is in no token."""
    left = encoding.char_to_token(position - 1)
    if left is None:
        return None
    right = left + 1
    while right < len(encoding) and _span(encoding, right)[0] < position:
        right += 1  # one character can be several tokens (bytes)
    return right


def _span(encoding: tokenizers.Encoding, token: int) -> tuple[int, int]:
    span = encoding.token_to_chars(token)
    assert span is not None
    return span


def _tokens_of(encoding: tokenizers.Encoding, word: int) -> tuple[int, int]:
    tokens = encoding.word_to_tokens(word)
    assert tokens is not None
    return tokens


def _is_local(x: str, y: str) -> bool:
    if y in " \t\n\r":
        return _is_solid(x) or x in string.punctuation
    return _is_solid(x) and _is_punctuation(y)


def _is_solid(x: str) -> bool:
    """A letter or digit that stays one under any normalizer: x itself, not a mark on what precedes it."""
    return unicodedata.normalize("NFKD", x).isalnum()


def _is_punctuation(y: str) -> bool:
    first = unicodedata.normalize("NFKD", y)[0]
    return first not in _UNSURE and (first in string.punctuation or unicodedata.category(first).startswith("P"))


def _is_decided(x: str, y: str) -> bool:
    """Whether a word that ends between x|y when the text ends with y does so whatever follows, and none that does not.

    x is a letter or digit, y too or a mark or symbol. What follows decides only whether capitals belong to the letters
    without case before them.
    """
    last, first = unicodedata.normalize("NFKD", x)[-1], unicodedata.normalize("NFKD", y)[0]
    before, after = ({unicodedata.category(char) for char in chars} for chars in (x + last, y + first))
    if not last.isalnum() or first in _UNSURE or not {kind[0] for kind in after} <= set("LNMS"):
        return False
    return after.isdisjoint({"Lu", "Lt"}) or before <= {"Ll", "Nd", "Nl", "No"}


def _components(component: Any, key: str) -> list[dict[str, Any]]:
    """The settings of a normalizer or pre-tokenizer as a flat list, sequences unfolded."""
    return [] if component is None else list(_flat(json.loads(component.__getstate__()), key))


def _flat(settings: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    if settings["type"] == "Sequence":
        for part in settings[key]:
            yield from _flat(part, key)
    else:
        yield settings


def _normalizer_refusal(normalizers: list[dict[str, Any]]) -> str | None:
    for settings in normalizers:
        if settings["type"] in _LOCAL_NORMALIZERS:
            continue
        if settings["type"] == "Replace" and _replaces_locally(settings["pattern"], settings["content"]):
            continue
        return f"its normalizer {json.dumps(settings, ensure_ascii=False)[:200]} may change a text across a cut"
    return None


def _replaces_locally(pattern: dict[str, str], content: str) -> bool:
    if pattern.get("Regex") in RUNS_OF_SPACES:
        return content in (" ", "▁")
    if pattern.get("String") == " ":
        return content == "▁"
    if _replaced_characters(pattern):
        return content.isascii()
    return content != "" and all(char in string.punctuation for char in pattern.get("String", " ") + content)


def _replaced_characters(pattern: dict[str, str]) -> frozenset[str]:
    """The characters other than the space that a `Replace` maps one by one; none for a pattern of another kind."""
    if "String" in pattern:
        return frozenset(pattern["String"]) - {" "} if len(pattern["String"]) == 1 else frozenset()
    listed = _CHARACTER_CLASS.fullmatch(pattern["Regex"])
    if listed is None:
        return frozenset()
    return frozenset(re.sub(r"\\u(....)", lambda code: chr(int(code[1], 16)), listed[1]))


def _pre_tokenizer_refusal(normalizers: list[dict[str, Any]], pre_tokenizers: list[dict[str, Any]]) -> str | None:
    spaces_replaced = any(settings.get("content") == "▁" for settings in normalizers)
    numbers_are_apart = False
    for settings in pre_tokenizers:
        pattern = settings.get("pattern", {}).get("Regex")
        if not _splits_locally(settings, numbers_are_apart):
            return f"its pre-tokenizer {json.dumps(settings, ensure_ascii=False)[:300]} is not among the known ones"
        if spaces_replaced and (pattern or settings.get("use_regex")):
            return f"its pre-tokenizer {settings['type']} runs after the spaces were replaced"
        spaces_replaced |= settings["type"] == "Metaspace"
        numbers_are_apart |= settings["type"] == "Digits" or pattern == NUMBERS or bool(settings.get("use_regex"))
    return None


def _splits_locally(settings: dict[str, Any], numbers_are_apart: bool) -> bool:
    if settings["type"] == "ByteLevel" or settings["type"] in _LOCAL_PRE_TOKENIZERS:
        return True
    if settings["type"] != "Split":
        return False
    if "String" in settings["pattern"]:
        return len(settings["pattern"]["String"]) == 1
    # Either way every match is one piece, and so is every gap between matches (that other way drops the gaps).
    keeps_matches = (settings["behavior"], settings["invert"]) in {("Isolated", False), ("Removed", True)}
    pattern = as_known(settings["pattern"]["Regex"])
    return keeps_matches and pattern in KNOWN_PATTERNS and (numbers_are_apart or pattern not in AFTER_NUMBERS_ARE_APART)


class _VanishingCharacters:
    """Those that the normalizer takes away, at the start of a text or after an added token."""

    def __init__(self, backend: tokenizers.Tokenizer, added_tokens: AddedTokens) -> None:
        self._normalizer = backend.normalizer
        ends = [rf"{re.escape(content)}\s*" for content in added_tokens.raw]
        self._starts = re.compile("|".join(["^", *ends]))

    def begin_a_part_of(self, text: str) -> bool:
        firsts = {text[match.end()] for match in self._starts.finditer(text) if match.end() < len(text)}
        nothing = normalize(self._normalizer, "xx")
        return any(normalize(self._normalizer, f"x{char}x") == nothing for char in firsts)


class _MergeRule:
    """For a BPE over characters: whether no merge can ever join x and y. For any other model: never sure."""

    def __init__(self, backend: tokenizers.Tokenizer, pre_tokenizers: list[dict[str, Any]]) -> None:
        self._normalizer = backend.normalizer
        self._space = next((part["replacement"] for part in pre_tokenizers if part["type"] == "Metaspace"), " ")
        model = backend.model
        self.applies = (
            isinstance(model, tokenizers.models.BPE)
            and not any(part["type"] == "ByteLevel" for part in pre_tokenizers)
            and not (model.ignore_merges or model.continuing_subword_prefix or model.end_of_word_suffix)
        )
        vocabulary = "\0".join(backend.get_vocab(with_added_tokens=False)) if self.applies else ""
        if "><0x" in vocabulary:  # merged byte-fallback tokens do not show their characters
            self.applies = False
        chars = np.frombuffer(vocabulary.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
        self._pairs = np.unique(chars[:-1] << np.uint64(32) | chars[1:])  # all two neighbours in an entry

    def never_joins(self, x: str, y: str) -> bool:
        if not self.applies:
            return False
        left, whole = f"a{x}", f"a{x}{y}a"  # the letters keep Prepend and Strip away from x and y
        left, whole = (normalize(self._normalizer, text) for text in (left, whole))
        if not whole.startswith(left) or len(whole) == len(left):
            return False
        first, second = (
            np.uint64(ord(char)) for char in whole[len(left) - 1 : len(left) + 1].replace(" ", self._space)
        )
        pair = first << np.uint64(32) | second
        at = np.searchsorted(self._pairs, pair)
        return bool(at == len(self._pairs) or self._pairs[at] != pair)
