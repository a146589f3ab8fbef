"""From hidden vectors to one vector for a document or section: the one home of pooling.

pooling.py   what a pooling is, and the running mean that all of them keep
last.py      the last token
mean.py      the mean over all tokens, alone or with a lexicon
lexicon.py   a text's words beside its mean
vectors.py   what is done to pooled vectors: cut, normalised, rounded
"""

from __future__ import annotations

from thalweg.errors import InvalidInputError
from thalweg.pooling.last import LastToken
from thalweg.pooling.lexicon import Lexicon
from thalweg.pooling.mean import Mean, MeanWithLexicon
from thalweg.pooling.pooling import Pooling

__all__ = ["POOLINGS", "LastToken", "Lexicon", "Mean", "MeanWithLexicon", "Pooling", "make_pooling"]

POOLINGS: dict[str, type[LastToken] | type[Mean]] = {kind.name: kind for kind in (LastToken, Mean)}
"""All poolings by name."""


def make_pooling(name: str | Pooling, *, n_eos: int = 1, lexicon: Lexicon | None = None) -> Pooling:
    """The pooling of that name, with what a model's settings say; one that is made already stays as it is.

    Raises:
        InvalidInputError: no such pooling, fewer than one end token, or a lexicon where it cannot be.
    """
    if isinstance(name, Pooling):
        return name
    if name not in POOLINGS:
        raise InvalidInputError(f"pooling must be one of {', '.join(POOLINGS)}, got {name!r}")
    if lexicon is None:
        return POOLINGS[name](n_eos=n_eos)
    if name != Mean.name:
        raise InvalidInputError(f"a lexicon goes with mean pooling only, not with {name!r}")
    return MeanWithLexicon(n_eos=n_eos, lexicon=lexicon)
