"""Languages by their English names, with the script that a text in them has to be in.

A text in the wrong language is found only where the scripts differ; that is most of what goes wrong between languages,
and it needs no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from thalweg.errors import InvalidInputError

ENGLISH = "English"

_SCRIPTS = {
    "Latin": "A-Za-z\u00aa-\u024f\u1e00-\u1eff",
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "Hebrew": "\u0590-\u05ff",
    "Devanagari": "\u0900-\u097f",
    "Bengali": "\u0980-\u09ff",
    "Tamil": "\u0b80-\u0bff",
    "Telugu": "\u0c00-\u0c7f",
    "Thai": "\u0e00-\u0e7f",
    "Georgian": "\u10a0-\u10ff\u1c90-\u1cbf",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff",
    "Japanese": "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff",
    "Korean": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
}

_BY_SCRIPT = {
    "Latin": "Albanian Catalan Croatian Czech Danish Dutch English Estonian Finnish French German Hungarian Indonesian "
    "Italian Latvian Lithuanian Malay Norwegian Polish Portuguese Romanian Slovak Slovenian Spanish Swahili Swedish "
    "Turkish Vietnamese",
    "Cyrillic": "Bulgarian Kazakh Macedonian Russian Ukrainian",
    "Greek": "Greek",
    "Arabic": "Arabic Persian Urdu",
    "Hebrew": "Hebrew",
    "Devanagari": "Hindi Marathi Nepali",
    "Bengali": "Bengali",
    "Tamil": "Tamil",
    "Telugu": "Telugu",
    "Thai": "Thai",
    "Georgian": "Georgian",
    "Han": "Chinese",
    "Japanese": "Japanese",
    "Korean": "Korean",
}

SCRIPT_OF = {name: script for script, names in _BY_SCRIPT.items() for name in names.split()}

_LETTERS = {script: re.compile(f"[{ranges}]") for script, ranges in _SCRIPTS.items()}
_UNSPACED = re.compile(f"[{_SCRIPTS['Japanese']}{_SCRIPTS['Thai']}]")
"""Scripts that put no space between words."""

LEAST_SHARE = 0.3
"""A text has at least this share of its letters in its language's script: names and terms are often foreign."""


def default_languages() -> dict[str, float]:
    """English for 43 of 100 texts, as in the paper's data; the others share the rest."""
    others = [name for name in SCRIPT_OF if name != ENGLISH]
    return {ENGLISH: 43.0, **{name: 57.0 / len(others) for name in others}}


def parse_languages(values: Iterable[str]) -> dict[str, float]:
    """`English=8`, `German` (= 1), … to weights by language.

    Raises:
        InvalidInputError: an unknown or repeated language, or a weight that is not above zero.
    """
    weights: dict[str, float] = {}
    for value in values:
        name, _, number = (part.strip() for part in value.partition("="))
        name = name.title()
        if name not in SCRIPT_OF:
            raise InvalidInputError(f"unknown language {name!r}: choose from {', '.join(sorted(SCRIPT_OF))}")
        if name in weights:
            raise InvalidInputError(f"{name} was given twice")
        try:
            weight = float(number or 1)
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise InvalidInputError(f"the weight of {value!r} has to be a number above zero, as in {name}=2")
        weights[name] = weight
    if sum(weights.values()) == float("inf"):
        raise InvalidInputError("the weights of the languages are too large: only their ratio matters, as in English=3")
    return weights


def in_script(text: str, language: str) -> bool:
    """Whether enough of a text's letters are of the language's script; a text without letters is."""
    letters = [c for c in text if c.isalpha()]
    pattern = _LETTERS[SCRIPT_OF[language]]
    return not letters or sum(bool(pattern.match(c)) for c in letters) >= LEAST_SHARE * len(letters)


def count_words(text: str) -> int:
    """Words; where a script has no spaces, two characters for one."""
    unspaced = len(_UNSPACED.findall(text))
    return len(_UNSPACED.sub(" ", text).split()) + (unspaced + 1) // 2
