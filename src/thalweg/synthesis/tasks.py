"""The six types of task as data: shares of a data set, fields of a reply, attributes that are sampled.

Four are asymmetric: a query and a text that answers it, each short or long. Their tasks are thought up by the model in
a first step. Two are symmetric and have one fixed instruction each: sentences of one meaning, and translations.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from thalweg.errors import InvalidInputError
from thalweg.system.words import counted

TaskType = Literal["short-long", "long-short", "short-short", "long-long", "sts", "bitext"]

TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)

SHARES: dict[TaskType, int] = {
    "short-long": 167,
    "long-short": 122,
    "short-short": 13,
    "long-long": 17,
    "sts": 99,
    "bitext": 89,
}
"""Thousands of examples in the data of e5-mistral (arXiv 2401.00368, section 4.1)."""


@dataclass(frozen=True)
class Field:
    """A text in a reply.

    name: its key; role: what it becomes in a row of training data; long: whether it is a passage, and so held to the
    number of words that was asked for, or a phrase or sentence.
    """

    name: str
    role: Literal["query", "positive", "negative"]
    long: bool = False


@dataclass(frozen=True)
class Kind:
    """A type of task.

    fields: of a reply; instruction: of every row, None where each task has its own; attributes: sampled for every
    example, a name and its values.
    """

    fields: tuple[Field, ...]
    instruction: str | None
    attributes: Mapping[str, tuple[str, ...]]

    @property
    def brainstormed(self) -> bool:
        """Whether tasks are thought up in a first step."""
        return self.instruction is None

    @property
    def has_negative(self) -> bool:
        return any(field.role == "negative" for field in self.fields)


_CLARITY = (
    "states exactly what is wanted",
    "leaves a little to be worked out by the reader",
    "is vague, as people often are",
)
_DIFFICULTY = ("a pupil", "a student of the subject", "a specialist")
_WORDS = ("50", "100", "200", "300", "400", "500")

KINDS: dict[TaskType, Kind] = {
    "short-long": Kind(
        (
            Field("query", "query"),
            Field("positive", "positive", long=True),
            Field("hard_negative", "negative", long=True),
        ),
        None,
        {
            "query_type": (
                "something that many people look up",
                "something that is looked up now and then",
                "something unusual that hardly anybody looks up",
            ),
            "query_length": ("at most 4 words", "between 5 and 14 words", "15 words or more"),
            "clarity": _CLARITY,
            "difficulty": _DIFFICULTY,
            "min_words": _WORDS,
        },
    ),
    "long-short": Kind(
        (Field("text", "query", long=True), Field("label", "positive"), Field("misleading_label", "negative")),
        None,
        {"clarity": _CLARITY, "difficulty": _DIFFICULTY, "min_words": _WORDS},
    ),
    "short-short": Kind((Field("input", "query"), Field("positive", "positive")), None, {}),
    "long-long": Kind((Field("input", "query", long=True), Field("positive", "positive", long=True)), None, {}),
    "sts": Kind(
        (Field("S1", "query"), Field("S2", "positive"), Field("S3", "negative")),
        "Find a text with the same meaning",
        {
            "unit": ("sentence", "phrase", "passage of two or three sentences"),
            "difficulty": _DIFFICULTY,
            "high": ("4", "4.5", "5"),
            "low": ("2", "2.5", "3", "3.5"),
        },
    ),
    "bitext": Kind(
        (Field("S1", "query"), Field("S2", "positive"), Field("S3", "negative")),
        "Find a translation of the text",
        {
            "unit": ("sentence", "phrase", "passage of two or three sentences"),
            "difficulty": _DIFFICULTY,
            "high": ("4", "4.5", "5"),
            "low": ("1.5", "2", "2.5", "3", "3.5"),
        },
    ),
}

SCALE = 5.0
"""Similarities run from 0, unrelated, to this, the same meaning."""


def counts_of_total(total: int, leave_out: Collection[TaskType] = ()) -> dict[TaskType, int]:
    """`total` examples in the paper's shares, to the last one (largest remainders).

    leave_out: types that get none; the others share the total.
    """
    if total < 1:
        raise InvalidInputError(f"a total of {counted(total, 'example')}: it has to be at least 1")
    shares = {name: share for name, share in SHARES.items() if name not in leave_out}
    whole = sum(shares.values())
    counts = {name: total * share // whole for name, share in shares.items()}
    by_rest = sorted(shares, key=lambda name: -(total * shares[name] % whole))
    for name in by_rest[: total - sum(counts.values())]:
        counts[name] += 1
    return {name: count for name, count in counts.items() if count}


def parse_counts(text: str) -> dict[TaskType, int]:
    """`short-long=1000,sts=200` to numbers by type, in the order of `TASK_TYPES`.

    Raises:
        InvalidInputError: an unknown or repeated type, or no number from 1.
    """
    counts: dict[TaskType, int] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in TASK_TYPES:
            raise InvalidInputError(f"unknown task type {name!r} in {text!r}: choose from {', '.join(TASK_TYPES)}")
        if name in counts:
            raise InvalidInputError(f"{name} stands twice in {text!r}")
        if not number.isdecimal() or len(number) > 18 or int(number) < 1:
            raise InvalidInputError(f"{part.strip()!r} gives no number of examples: write {name}=1000")
        counts[name] = int(number)
    return {name: counts[name] for name in TASK_TYPES if name in counts}
