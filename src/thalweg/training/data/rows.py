"""One row of a file, however its columns are called, to texts to train on; every error names file, row and column."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from thalweg.errors import CorpusError
from thalweg.inputs.streams import check_text

QUERY = ("anchor", "query", "question")
POSITIVE = ("positive", "pos", "positives", "positive_passages", "document", "text", "answer", "passage")
NEGATIVE = ("negative", "neg", "negatives", "hard_negative", "hard_negatives", "negative_passages")
INSTRUCTION = ("instruction", "task", "prompt")
PASSAGE = ("text", "passage", "document", "positive", "contents")
"""What columns are called; of several the first counts. Negatives may be in several, and numbered: `negative_1`, …"""

LICENCE = ("licence", "license")

_NUMBERED = re.compile(r"(?:hard_)?neg(?:ative)?_(\d+)")
_SHOWN = 80


class Columns(NamedTuple):
    """Where a row has what."""

    query: str
    positive: str
    negatives: tuple[str, ...]
    instruction: str | None
    licence: str | None
    source: str | None

    @property
    def used(self) -> list[str]:
        """All of them."""
        optional = [name for name in (self.instruction, self.licence, self.source) if name is not None]
        return [self.query, self.positive, *self.negatives, *optional]


class Place(NamedTuple):
    """Where a row stands, for messages: `unit` is "line" or "row", `number` counts from 1."""

    file: str
    unit: str
    number: int

    def error(self, column: str, value: Any, problem: str) -> CorpusError:
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        return CorpusError(f"{self.file}, {self.unit} {self.number}, column {column!r}: {shown} {problem}")


class Example(NamedTuple):
    """The texts of a row as they stand there, none checked for being empty; `positives` are alternatives."""

    query: str
    positives: list[str]
    negatives: list[str]
    instruction: str
    licence: str
    source: str


@functools.lru_cache(maxsize=1024)
def find_columns(names: tuple[str, ...]) -> Columns | str:
    """The columns of a row or table with these names; a str says what is missing."""

    def first(spellings: Sequence[str]) -> str | None:
        return next((name for name in spellings if name in names), None)

    query, positive = first(QUERY), first(POSITIVE)
    if query is None or positive is None:
        what, spellings = ("query", QUERY) if query is None else ("positive", POSITIVE)
        has = ", ".join(map(repr, names)) or "no columns"
        return f"there is no column for the {what}; it has {has}: rename one to {' or '.join(map(repr, spellings))}"
    numbered = sorted((int(match[1]), name) for name in names if (match := _NUMBERED.fullmatch(name)))
    negatives = (*(name for name in NEGATIVE if name in names), *(name for _, name in numbered))
    source = "source" if "source" in names else None
    return Columns(query, positive, negatives, first(INSTRUCTION), first(LICENCE), source)


def example_columns(names: tuple[str, ...]) -> list[str] | str:
    """Those of `find_columns` that are used, or what is missing."""
    found = find_columns(names)
    return found if isinstance(found, str) else found.used


def passage_columns(names: tuple[str, ...]) -> list[str] | str:
    """The columns of a passage: one of `PASSAGE`, and "title" if there is one."""
    text = next((name for name in PASSAGE if name in names), None)
    if text is None:
        has = ", ".join(map(repr, names)) or "no columns"
        return f"there is no column for the text; it has {has}: rename one to {' or '.join(map(repr, PASSAGE))}"
    return [text, *(["title"] if "title" in names and text != "title" else [])]


def read_passage(row: Mapping[str, Any], place: Place) -> str:
    """The text of a row of a corpus, after its title if it has one; "" for an empty one.

    Raises:
        CorpusError: a column that is missing, or a value that is no text.
    """
    columns = passage_columns(tuple(row))
    if isinstance(columns, str):
        raise CorpusError(f"{place.file}, {place.unit} {place.number}: {columns}")
    text, title = (_text(row.get(name), name, place) for name in (columns[0], columns[-1]))
    return f"{title}\n{text}" if len(columns) > 1 and title.strip() and text.strip() else text


def read_example(row: Mapping[str, Any], place: Place) -> Example:
    """The texts of a row.

    Raises:
        CorpusError: a column that is missing, or a value that is no text.
    """
    columns = find_columns(tuple(row))
    if isinstance(columns, str):
        raise CorpusError(f"{place.file}, {place.unit} {place.number}: {columns}")
    return Example(
        query=_text(row[columns.query], columns.query, place),
        positives=_texts(row[columns.positive], columns.positive, place),
        negatives=[text for name in columns.negatives for text in _texts(row[name], name, place)],
        instruction=_text(row[columns.instruction], columns.instruction, place) if columns.instruction else "",
        licence=_text(row[columns.licence], columns.licence, place) if columns.licence else "",
        source=_text(row[columns.source], columns.source, place) if columns.source else "",
    )


def _text(value: Any, column: str, place: Place) -> str:
    """One text; null is an empty one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise place.error(column, value, f"is {_kind(value)}, but a text is needed: write one string a row")
    return _checked(value, column, place)


def _texts(value: Any, column: str, place: Place) -> list[str]:
    """A text, a passage {title, text}, or a list of those; null is none at all."""
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [_passage(each, column, place) for each in values]


def _passage(value: Any, column: str, place: Place) -> str:
    if isinstance(value, str):
        return _checked(value, column, place)
    if isinstance(value, Mapping):
        title, text = value.get("title") or "", value.get("text")
        if isinstance(title, str) and isinstance(text, str):
            return _checked(f"{title}\n{text}" if title.strip() else text, column, place)
    raise place.error(
        column, value, f"is {_kind(value)}, but a string, {{'title': …, 'text': …}} or a list of those is needed"
    )


def _checked(text: str, column: str, place: Place) -> str:
    try:
        return check_text(text)
    except CorpusError as error:
        raise place.error(column, text, f"is {error}; write it as UTF-8") from error


def _kind(value: Any) -> str:
    names = {"NoneType": "null", "bool": "a truth value", "int": "a number", "float": "a number"}
    names |= {"list": "a list", "dict": "an object"}
    return names.get(type(value).__name__, f"of type {type(value).__name__}")
