r"""The patterns of published `Split` pre-tokenizers that have been read by hand, and what was found.

Of each pattern below this holds. *Cuts*: whether a piece ends between characters x|y that `cuts.py` asks about is
decided by the text up to y alone, and nothing looks behind, so that the pieces right of such an end are those of the
text from there on. (BLOOM's is missing: its " ?" after punctuation depends on what follows.) *Rows*: in a row of
characters of one `Run` no piece ends, but for the first few of them, and how many they are beyond a few changes nothing
in the pieces before and after. So a row that goes on is one word, and its middle may be left out where words are looked
for.
"""

from typing import NamedTuple


class Run(NamedTuple):
    """Classes of characters, as regular expressions of the library.

    A row of `members` whose first character is in `first`; the character before it is not in `not_after`.
    """

    members: str
    first: str = r"[\s\S]"
    not_after: str = ""


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED_WORD = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+@|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*@|"
)
# Apostrophes may begin a contraction, so none of them is in a run.
_LETTERS, _NUMBERS = Run(r"\p{L}"), Run(r"\p{N}")
_OTHERS = Run(r"[^\s\p{L}\p{N}']")
_OTHERS_BUT_MARKS = Run(r"[^\s\p{L}\p{M}\p{N}']")
# Small letters are in the second class of a cased word only and capitals in the first only. After letters of both, a
# row of capitals belongs to the word before it or not, depending on what comes after the row.
_CASED = (
    Run(r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", first=r"\p{Ll}"),
    Run(r"[\p{Lm}\p{Lo}\p{M}]", first=r"[\p{Lm}\p{Lo}]"),
    Run(r"[\p{Lu}\p{Lt}]", not_after=r"[\p{Lm}\p{Lo}\p{M}]"),
    _OTHERS_BUT_MARKS,
)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

NUMBERS = r"\p{N}{1,3}"
_THREE_DIGITS = r"[0-9][0-9][0-9]"
_DEEPSEEK_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    + _SPACES
)


def _cl100k(digits: str) -> str:
    return _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES


def _published_cl100k(digits: str) -> str:
    return (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )


KNOWN_PATTERNS: dict[str, tuple[Run, ...]] = {
    GPT2: (_LETTERS, _NUMBERS, _OTHERS),
    # cl100k, Llama 3, Granite; Qwen 2; MiniCPM
    _cl100k(r"\p{N}{1,3}"): (_LETTERS, _OTHERS),
    _cl100k(r"\p{N}"): (_LETTERS, _OTHERS),
    _cl100k(r"\p{N}+"): (_LETTERS, _NUMBERS, _OTHERS),
    # cl100k as OpenAI publishes it; LLaDA
    _published_cl100k(r"\p{N}{1,3}"): (_LETTERS, _OTHERS),
    _published_cl100k(r"\p{N}"): (_LETTERS, _OTHERS),
    # Qwen 3.5
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES: (
        Run(r"[\p{L}\p{M}]"),
        _OTHERS_BUT_MARKS,
    ),
    # o200k; Mistral's tekken, Nemotron
    _CASED_WORD.replace("@", _CONTRACTION + "?") + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES: _CASED,
    _CASED_WORD.replace("@", "") + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES: _CASED,
    # DeepSeek 3, three in a row. ASCII letters after one mark of punctuation are a piece without other letters.
    NUMBERS: (Run(r"\P{N}"),),
    r"[一-龥぀-ゟ゠-ヿ]+": (Run(r"[一-龥぀-ゟ゠-ヿ]"), Run(r"[^一-龥぀-ゟ゠-ヿ]")),
    _DEEPSEEK_WORDS: (Run("[A-Za-z]"), Run(r"[[\p{L}\p{M}]&&[^A-Za-z]]"), Run(r"[\p{P}\p{S}]")),
    # Falcon, after punctuation, GPT-2's pattern and digits
    _THREE_DIGITS: (Run("[^0-9]"),),
}

AFTER_NUMBERS_ARE_APART = frozenset({_DEEPSEEK_WORDS, _THREE_DIGITS})
"""Patterns for which all this holds only where an earlier part has parted numbers from letters."""


def as_known(pattern: str) -> str:
    """A pattern as it is written here; files may have line breaks in it."""
    return pattern.replace("\r", r"\r").replace("\n", r"\n").replace(r"\"", '"')
