"""What many texts begin with, run once: prompts, and the beginnings that documents have in common.

A text goes on from the longest prefix of its own ids whose state is kept. Which characters a prefix stands for does not
matter: where the tokenizer joins its end with what follows, the ids part a little earlier.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from thalweg.embedder.sessions.point import Continuation
from thalweg.engine.prefixes import PrefixStates
from thalweg.engine.results import DocumentState, Failure, Pooled
from thalweg.engine.sources import TokenSource
from thalweg.errors import ThalwegError
from thalweg.pooling import Pooling
from thalweg.system.forked import reset_when_forked
from thalweg.tokenization.tokenizer import Tokenizer, TokenStream

Ids = npt.NDArray[np.int32]

MAX_BYTES = 256 << 20
"""Bytes of states and ids that are kept."""

LEAST = 16
"""Tokens that are worth a state: fewer are sooner run than looked up."""

LEAST_SHARED = 64
"""Tokens that two documents must have in common for a state at their end."""

PEEK, PEEK_SHARED = 1 << 11, 1 << 15
"""Tokens of a long text that are looked at for a prefix, and for what it has in common with others."""

MOST_KNOWN = 64
"""Prefixes whose ids are remembered, so that they are not tokenised at every call."""

LATER = ("a", "The", "ing", " a", "1", ".", "\n", "é", "中", "")
"""What may follow a prefix: beginnings that tokenizers join with its end, or do not."""


class Embedding(Protocol):
    """What prefixes need of their embedder."""

    @property
    def pooling(self) -> Pooling: ...
    def run_sources(self, sources: Sequence[TokenSource]) -> Iterator[Pooled | Failure]: ...


class Prefixes:
    """What is kept for one embedder, within `max_bytes`. Copies begin without any."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self.reset()
        reset_when_forked(self)

    def reset(self) -> None:
        """Begin without any."""
        self.states = PrefixStates(self._max_bytes)
        self.in_vain = False  # a state does not fit
        self.cuts: dict[tuple[str, str, Hashable], list[Ids]] = {}  # ids of prefixes that were asked for by their text

    def __deepcopy__(self, memo: dict[int, Any]) -> Prefixes:
        return Prefixes(self._max_bytes)

    def __reduce__(self) -> tuple[type[Prefixes], tuple[int]]:
        return Prefixes, (self._max_bytes,)


class TextPrefixes:
    """The prefixes of the texts of one call.

    Args:
        embedder: runs what is to be kept.
        salt: what a state depends on besides the ids.
        share: whether the texts may have more in common than what is kept.
    """

    def __init__(self, prefixes: Prefixes, embedder: Embedding, salt: Hashable, *, share: bool = False) -> None:
        self._prefixes = prefixes
        self._embedder = embedder
        self._salt = salt
        self.share = share

    def keep(self, tokenizer: Tokenizer, prefix: str) -> int:
        """Run a prefix, if it is not there; how many of its tokens are sure to be those of a text that begins with it.

        Kept are the states at the places where the ids of texts may leave those of the prefix: before its last token,
        which may be joined with what follows, and where the ids of some samples do.
        """
        if self._prefixes.in_vain:
            return 0
        known, key = self._prefixes.cuts, (prefix, tokenizer.special_tokens, self._salt)
        if key not in known:
            known[key] = _cuts(tokenizer, prefix)
            if len(known) > MOST_KNOWN:
                known.pop(next(iter(known)), None)
        cuts = known.get(key, [])
        kept = [self._at(ids) is not None for ids in cuts]
        return len(cuts[0]) if cuts and kept[0] else 0

    def of(self, ids: Ids) -> tuple[int, DocumentState | None]:
        """How many of the ids (n,) at a text's beginning have been run, and the state after them. What it shares with
        a text before is run now, if that is asked for and worth it."""
        most = max(0, len(ids) - self._embedder.pooling.n_last)
        may_share = self.share and most >= LEAST_SHARED  # others are not worth remembering
        shared = min(self._prefixes.states.see(ids, salt=self._salt), most) if may_share else 0
        n, state = self._prefixes.states.longest(ids[:most], salt=self._salt)
        if shared - n < LEAST_SHARED or self._prefixes.in_vain:
            return n, state
        longer = self._at(ids[:shared])
        return (n, state) if longer is None else (shared, longer)

    def begin(self, stream: TokenStream) -> tuple[int, DocumentState | None]:
        """The same for a text that is tokenised as it is pulled; the ids that have been run are taken from it."""
        try:
            ids = stream.peek(PEEK_SHARED if self.share else PEEK)
        except (ThalwegError, OSError):
            return 0, None  # it fails again where it is pulled
        n, state = self.of(ids)
        if n:
            stream.take(n)
        return n, state

    def _at(self, ids: Ids) -> DocumentState | None:
        """The state after exactly these ids; None if the model fails there, as it will in every text that has them."""
        states = self._prefixes.states
        n, state = states.longest(ids, salt=self._salt)
        if state is not None and n == len(ids):
            return state
        source = Continuation(ids[n:], state)
        source.keep_state = True
        for result in self._embedder.run_sources([source]):
            if isinstance(result, Failure):
                return None
            assert result.state is not None
            self._prefixes.in_vain |= not states.put(ids, result.state, salt=self._salt)
            return result.state
        raise AssertionError("a document has a result")


def _cuts(tokenizer: Tokenizer, prefix: str) -> list[Ids]:
    """The ids of a prefix up to where those of longer texts may leave them, the shortest first; none if it is short."""
    bare, *longer = tokenizer.encode_batch(["", *LATER], prefix)
    ids = bare[: len(bare) - len(tokenizer.suffix)]
    cuts = sorted({len(ids) - 1, *(_n_common(ids, each) for each in longer)})
    return [] if cuts[0] < LEAST else [ids[:cut] for cut in cuts]


def _n_common(a: Ids, b: Ids) -> int:
    """How many ids at the beginning of both are the same."""
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n
