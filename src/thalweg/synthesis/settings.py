"""What a user can say about a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from thalweg.errors import InvalidInputError
from thalweg.synthesis.languages import default_languages
from thalweg.synthesis.prompts import PROMPTS_VERSION
from thalweg.synthesis.tasks import TASK_TYPES, TaskType
from thalweg.system.words import counted

MOST_EXAMPLES = 10_000_000
"""The numbers of a run's examples are held in memory."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    counts: examples wanted of each type; languages: weights; attempts: at one example, before it is given up;
    examples_per_task: a task of the first step is used so often; price: of a million tokens of prompts and of replies.
    """

    counts: Mapping[TaskType, int]
    seed: int = 0
    languages: Mapping[str, float] = field(default_factory=default_languages)
    concurrency: int = 16
    attempts: int = 5
    tasks_per_call: int = 20
    examples_per_task: int = 1
    brainstorm_temperature: float = 1.0
    temperature: float = 0.8
    send_seed: bool = False
    price: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "attempts", "tasks_per_call", "examples_per_task"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} has to be at least 1, not {getattr(self, name)}")
        for name in ("brainstorm_temperature", "temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInputError(f"{name} has to be a number from 0 on, not {getattr(self, name)}")
        if self.price is not None and not all(0 <= each < math.inf for each in self.price):
            raise InvalidInputError(f"prices have to be numbers from 0 on, not {self.price[0]} and {self.price[1]}")
        if not self.counts:
            raise InvalidInputError("no examples are wanted: give --counts or --total")
        for task_type, count in self.counts.items():
            if task_type not in TASK_TYPES or count < 1:
                raise InvalidInputError(f"{task_type}={count} is no number of examples of {', '.join(TASK_TYPES)}")
        if sum(self.counts.values()) > MOST_EXAMPLES:
            raise InvalidInputError(
                f"{counted(sum(self.counts.values()), 'example')} are wanted, more than the {MOST_EXAMPLES:,} of one "
                "run; start several, each with another --seed and folder"
            )
        if not self.languages:
            raise InvalidInputError("no language is left to write in")
        if "bitext" in self.counts and len(self.languages) < 2:
            raise InvalidInputError(
                f"bitext needs two languages, but {', '.join(self.languages)} was given alone: add one, or leave "
                "bitext out"
            )

    def identity(self, model: str, top_p: float) -> dict[str, Any]:
        """What a run must keep from its beginning to its end. Counts may change, and the endpoint may move."""
        return {
            "model": model,
            "seed": self.seed,
            "languages": dict(self.languages),
            "tasks_per_call": self.tasks_per_call,
            "examples_per_task": self.examples_per_task,
            "temperatures": [self.brainstorm_temperature, self.temperature],
            "top_p": top_p,
            "prompts_version": PROMPTS_VERSION,
        }
