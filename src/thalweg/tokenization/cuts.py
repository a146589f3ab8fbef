"""Where one tokenizer lets a text be cut, so that the ids left and right of the cut stay those of the whole text.

A cut lies between two characters x|y. It is used only when no stage of the tokenizer can look or join across it,
whatever else the text holds:

    added tokens    none contains x and y side by side, so none lies over the cut
    normalizer      a kind that works character by character (or on a run of marks or spaces); x and y are no part
                    of such a run
    pre-tokenizer   a kind, or a published pattern, that never reads on from x to y (`KNOWN_PATTERNS`)
    model           sees x and y in different words, or (BPE over the whole text, as in Llama) has no vocabulary
                    entry with x and y side by side, so that no merge joins them

The first three are checked on the tokenizer's own settings once, and on x and y for each cut; the last one in the
encoding of the window around the cut. What this file cannot prove safe is not cut: such a text is tokenised whole, up
to a bound.
"""

import itertools
import json
import re
import string
import unicodedata
from collections.abc import Iterator
from typing import Any

import tokenizers

# Patterns of `Split` pre-tokenizers that have been read by hand: whether a piece ends between characters x|y that
# `_is_local` allows is decided by the text up to y alone, and nothing looks behind, so that the pieces right of such an
# end are those of the text from there on. (BLOOM's is missing: its " ?" after punctuation depends on what follows.)
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED_WORD = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+@|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*@|"
)
KNOWN_PATTERNS = frozenset(
    {
        # GPT-2
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        # cl100k, Llama 3, Granite; Qwen 2; MiniCPM
        *(
            _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
            for digits in (r"\p{N}{1,3}", r"\p{N}", r"\p{N}+")
        ),
        # cl100k as OpenAI publishes it; LLaDA
        *(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|"
            + digits
            + r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
            for digits in (r"\p{N}{1,3}", r"\p{N}")
        ),
        # Qwen 3.5
        _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES,
        # o200k; Mistral's tekken, Nemotron
        _CASED_WORD.replace("@", _CONTRACTION + "?") + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES,
        _CASED_WORD.replace("@", "") + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES,
        # DeepSeek 3, three in a row
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
        + _SPACES,
        # Falcon, after punctuation, GPT-2's pattern and digits
        r"[0-9][0-9][0-9]",
    }
)

# Normalizers that map characters one by one, or runs of combining marks, or only the ends of the text.
_LOCAL_NORMALIZERS = frozenset(
    {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "Precompiled", "BertNormalizer"}
    | {"Strip", "Prepend"}
)
_SPACE_RUNS = frozenset({" {2,}", " +", r"\s+", r"\s{2,}"})
_CHARACTER_CLASS = re.compile(r"\[((?:\\u[0-9a-fA-F]{4}|[^]\\[^&-])+)\]")  # listed characters only
# Pre-tokenizers that decide by the classes of two neighbouring characters.
_LOCAL_PRE_TOKENIZERS = frozenset(
    {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits", "Metaspace", "CharDelimiterSplit"}
)
# Apostrophes belong to contractions, and a combining mark further on may turn the others into ≮ ≠ ≯.
_UNSURE = frozenset("'’<=>")


class CutRules:
    """What the settings of one `tokenizers.Tokenizer` allow; `refusal` says why nothing, if nothing."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        normalizers = _components(backend.normalizer, "normalizers")
        pre_tokenizers = _components(backend.pre_tokenizer, "pretokenizers")
        self.refusal = _normalizer_refusal(normalizers) or _pre_tokenizer_refusal(normalizers, pre_tokenizers)
        self._replaced = frozenset().union(
            *(_replaced_characters(part["pattern"]) for part in normalizers if part["type"] == "Replace")
        )
        self._pairs_in_added_tokens = _pairs_in_added_tokens(backend)
        self._merges = _MergeRule(backend, pre_tokenizers)

    def allows(self, x: str, y: str) -> bool:
        """Whether added tokens, normalizer and pre-tokenizer leave characters x|y apart."""
        return (
            _is_local(x, y)
            and self._replaced.isdisjoint(x + y + unicodedata.normalize("NFKD", x + y))
            and _folded(x)[-1:] + _folded(y)[:1] not in self._pairs_in_added_tokens
        )

    def token_at(self, encoding: tokenizers.Encoding, text: str, position: int) -> int | None:
        """Index of the first token of `text[position:]` in the encoding of `text`, None if this is no safe cut."""
        if not self.allows(text[position - 1], text[position]):
            return None
        left = encoding.char_to_token(position - 1)
        if left is None:
            return None
        right = left + 1
        while right < len(encoding) and _span(encoding, right)[0] < position:
            right += 1  # one character can be several tokens (bytes)
        if right == len(encoding) or _span(encoding, right - 1)[1] != position:
            return None
        if encoding.token_to_word(right - 1) != encoding.token_to_word(right):
            return right
        return right if self._merges.never_joins(text[position - 1], text[position]) else None


def _span(encoding: tokenizers.Encoding, token: int) -> tuple[int, int]:
    span = encoding.token_to_chars(token)
    assert span is not None
    return span


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
    if pattern.get("Regex") in _SPACE_RUNS:
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
    for settings in pre_tokenizers:
        pattern = settings.get("pattern", {}).get("Regex")
        if not _splits_locally(settings):
            return f"its pre-tokenizer {json.dumps(settings, ensure_ascii=False)[:300]} is not among the known ones"
        if spaces_replaced and (pattern or settings.get("use_regex")):
            return f"its pre-tokenizer {settings['type']} runs after the spaces were replaced"
        spaces_replaced |= settings["type"] == "Metaspace"
    return None


def _splits_locally(settings: dict[str, Any]) -> bool:
    if settings["type"] == "ByteLevel" or settings["type"] in _LOCAL_PRE_TOKENIZERS:
        return True
    if settings["type"] != "Split":
        return False
    if "String" in settings["pattern"]:
        return len(settings["pattern"]["String"]) == 1
    # Either way every match is one piece, and so is every gap between matches (that other way drops the gaps).
    keeps_matches = (settings["behavior"], settings["invert"]) in {("Isolated", False), ("Removed", True)}
    return keeps_matches and settings["pattern"]["Regex"] in KNOWN_PATTERNS


def _pairs_in_added_tokens(backend: tokenizers.Tokenizer) -> frozenset[str]:
    """Every two neighbouring characters inside an added token, folded as `_folded` does."""
    pairs: set[str] = set()
    for token in backend.get_added_tokens_decoder().values():
        pairs.update(x + y for x, y in itertools.pairwise(_folded(token.content)))
    return frozenset(pairs)


def _folded(text: str) -> str:
    """`text` without what a normalizer may take away: case, accents, compatibility forms, kinds of whitespace."""
    decomposed = unicodedata.normalize("NFKD", text).lower()
    return "".join(" " if char.isspace() else char for char in decomposed if unicodedata.category(char) != "Mn")


class _MergeRule:
    """For a BPE over characters: whether no merge can ever join x and y. For any other model: never sure."""

    def __init__(self, backend: tokenizers.Tokenizer, pre_tokenizers: list[dict[str, Any]]) -> None:
        self._backend = backend
        self._space = next((part["replacement"] for part in pre_tokenizers if part["type"] == "Metaspace"), " ")
        self._known: dict[str, bool] = {}
        model = backend.model
        self._applies = (
            isinstance(model, tokenizers.models.BPE)
            and not any(part["type"] == "ByteLevel" for part in pre_tokenizers)
            and not (model.ignore_merges or model.continuing_subword_prefix or model.end_of_word_suffix)
        )
        self._vocabulary = "\0".join(backend.get_vocab(with_added_tokens=False)) if self._applies else ""
        if "><0x" in self._vocabulary:  # merged byte-fallback tokens do not show their characters
            self._applies = False

    def never_joins(self, x: str, y: str) -> bool:
        if self._applies and x + y not in self._known:
            self._known[x + y] = self._search(x, y)
        return self._applies and self._known[x + y]

    def _search(self, x: str, y: str) -> bool:
        left, whole = f"a{x}", f"a{x}{y}a"  # the letters keep Prepend and Strip away from x and y
        if self._backend.normalizer is not None:
            left, whole = (self._backend.normalizer.normalize_str(text) for text in (left, whole))
        pair = whole[len(left) - 1 : len(left) + 1].replace(" ", self._space)
        return whole.startswith(left) and pair not in self._vocabulary
