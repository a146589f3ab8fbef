"""Where in a text an added token of the library may lie over a place that would be cut."""

import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

import tokenizers

from thalweg.tokenization.library_errors import normalize

_CHANGED_BY_WHAT_IS_BEFORE = 8  # characters at most, at the start of a piece of text


class AddedTokens:
    """The added tokens of one tokenizer: some are looked for in the text as it is, the others when it is normalized."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self._normalizer = library.normalizer
        by_id = library.get_added_tokens_decoder()
        self.ids = frozenset(by_id)
        tokens = list(by_id.values())
        self.raw = [token.content for token in tokens if not token.normalized]
        self.normalized = [self._normalize(token.content) for token in tokens if token.normalized]
        self.longest = max(map(len, [*self.raw, *self.normalized]), default=0)
        self.take_spaces = any(token.lstrip or token.rstrip for token in tokens)
        self._pairs = frozenset(x + y for token in tokens for x, y in itertools.pairwise(_folded(token.content)))
        self._beginnings = _beginnings(self.raw)
        # A window that starts in a text may be given what a normalizer prepends to the whole.
        without_prefix = [token.content for token in tokens if token.normalized]
        self._folded_beginnings = _beginnings([_folded(content) for content in (*self.normalized, *without_prefix)])

    def may_lie_over(self, text: str, place: int) -> bool:
        """Whether one may lie over text[place - 1]|text[place], across which no normalizer looks, whatever follows."""
        x, y = text[place - 1], text[place]
        if _folded(x)[-1:] + _folded(y)[:1] not in self._pairs:
            return False
        left = text[max(0, place - self.longest) : place]
        if any(left.endswith(beginning) for beginning in self._beginnings.get(x + y, ())):
            return True
        return bool(self._folded_beginnings) and self._may_lie_over_normalized(text, place)

    def _may_lie_over_normalized(self, text: str, place: int) -> bool:
        start = max(0, place - 4 * self.longest - 64)
        left = _folded(self._normalize(text[start:place]))
        if start:
            left = left[_CHANGED_BY_WHAT_IS_BEFORE:]
            if len(left) < self.longest:
                return True
        beginnings = self._folded_beginnings.get(left[-1:] + _folded(text[place])[:1], ())
        return any(left.endswith(beginning) for beginning in beginnings)

    def _normalize(self, text: str) -> str:
        return normalize(self._normalizer, text)


def _beginnings(contents: Sequence[str]) -> Mapping[str, frozenset[str]]:
    """Two neighbouring characters in any content → what there is up to the first of them."""
    found: dict[str, set[str]] = defaultdict(set)
    for content in contents:
        for i, pair in enumerate(itertools.pairwise(content), start=1):
            found["".join(pair)].add(content[:i])
    return {pair: frozenset(beginnings) for pair, beginnings in found.items()}


def _folded(text: str) -> str:
    """`text` without what a normalizer may take away: case, accents, compatibility forms, kinds of whitespace, and what
    stands for a space."""
    decomposed = unicodedata.normalize("NFKD", text).lower()
    kept = (char for char in decomposed if unicodedata.category(char) != "Mn")
    return "".join(" " if char.isspace() or char == "▁" else char for char in kept)
