"""The last token of every prefix of a word, found from those of shorter prefixes: the reference.

`kernels/native/segment.py` has the same names and signatures, compiled. Why the last tokens are enough is said in
`segmenters.py`.

Legend: V tokens, n symbols of a word that are not decided yet. Entries are given flat: the symbols of token t are
symbols[starts[t] : starts[t + 1]], none for a token that never comes out of a word.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class Bpe:
    """merges (n_merges, 3): left, right and resulting token, in the order of their ranks; symbols, starts (V + 1,)."""

    def __init__(self, merges: Int32, symbols: Int32, starts: Int64) -> None:
        self._ranks = {(left, right): (rank, result) for rank, (left, right, result) in enumerate(merges.tolist())}
        self._entries = _entries(symbols, starts)
        self._tokens = {entry: token for token, entry in enumerate(self._entries) if entry}
        self._longest = max(map(len, self._entries))
        self._is_encoding = functools.lru_cache(1 << 16)(self._encodes_to)

    def extend(self, symbols: Int32, tokens: Int32, lengths: Int32, before: int, begin: int) -> int:
        """Fill tokens and lengths (n,) from symbol `begin` on: the last token of the encoding of symbols[: p + 1].

        `before` is the token before symbol 0, -1 at the start of the word. Returns n, or the symbol where nothing fits,
        which is a fault of the tables.
        """
        word = symbols.tolist()
        for p in range(begin, len(word)):
            for start in range(max(0, p + 1 - self._longest), p + 1):
                token = self._tokens.get(tuple(word[start : p + 1]))
                if token is None:
                    continue
                left = int(tokens[start - 1]) if start else before
                if self._is_encoding((token,) if left < 0 else (left, token)):
                    tokens[p], lengths[p] = token, p + 1 - start
                    break
            else:
                return p
        return len(word)

    def _encodes_to(self, tokens: tuple[int, ...]) -> bool:
        return self.encode([symbol for token in tokens for symbol in self._entries[token]]) == list(tokens)

    def encode(self, word: list[int]) -> list[int]:
        """BPE by its definition: the merge of the lowest rank, the leftmost of several, until there is none."""
        while True:
            merges = [(*self._ranks[pair], i) for i, pair in enumerate(itertools.pairwise(word)) if pair in self._ranks]
            if not merges:
                return word
            _, result, i = min(merges, key=lambda merge: (merge[0], merge[2]))
            word = [*word[:i], result, *word[i + 2 :]]


class Unigram:
    """symbols, starts (V + 1,), scores (V,); a symbol without an entry of its own is `unknown`, at that score."""

    def __init__(self, symbols: Int32, starts: Int64, scores: Float64, unknown: int, unknown_score: float) -> None:
        entries = _entries(symbols, starts)
        self._scores = {entry: (token, float(scores[token])) for token, entry in enumerate(entries) if entry}
        self._longest = max(map(len, entries))
        self._unknown = (unknown, unknown_score)

    def extend(self, symbols: Int32, tokens: Int32, lengths: Int32, best: Float64, begin: int) -> None:
        """Fill tokens and lengths (n,) and best (n + 1,) from symbol `begin` on: the last token of the best path to
        symbols[: p + 1] and that path's score. Of equal scores the longest token wins."""
        word = symbols.tolist()
        for p in range(begin, len(word)):
            chosen = None
            for start in range(max(0, p + 1 - self._longest), p + 1):
                found = self._scores.get(tuple(word[start : p + 1]))
                if found is None and start == p:
                    found = self._unknown
                if found is not None and (chosen is None or found[1] + best[start] > chosen[0]):
                    chosen = (found[1] + best[start], found[0], p + 1 - start)
            assert chosen is not None
            best[p + 1], tokens[p], lengths[p] = chosen


def shared(lengths: Int32, live: int) -> Int32:
    """Where the tokens end, in order, that the paths of the last `live` prefixes share: int32, ascending.

    lengths (n,): of the last token of each prefix.
    """
    n = len(lengths)
    if live > n:
        return np.zeros(0, dtype=np.int32)
    paths = set(range(n - live + 1, n + 1))
    while len(paths) > 1:
        longest = max(paths)
        paths.remove(longest)
        paths.add(longest - int(lengths[longest - 1]))
    (end,) = paths
    ends = []
    while end:
        ends.append(end)
        end -= int(lengths[end - 1])
    return np.array(ends[::-1], dtype=np.int32)


def _entries(symbols: Int32, starts: Int64) -> Sequence[tuple[int, ...]]:
    flat, bounds = symbols.tolist(), starts.tolist()
    return [tuple(flat[start:stop]) for start, stop in itertools.pairwise(bounds)]
