"""Prompts of a run that is not made."""

from __future__ import annotations

from collections.abc import Iterator

from thalweg.synthesis.prompts import Prompt, brainstorm_prompt, example_prompt
from thalweg.synthesis.settings import Settings
from thalweg.synthesis.tasks import KINDS

TASK_TO_COME = "(a task out of the first step)"


def first_prompts(settings: Settings) -> Iterator[Prompt]:
    """The first prompt of each step for each type, as a run with these settings sends it."""
    for name in settings.counts:
        task = None
        if KINDS[name].brainstormed:
            yield brainstorm_prompt(settings.seed, name, 0, 0, settings.tasks_per_call)
            task = TASK_TO_COME
        yield example_prompt(settings.seed, name, 0, 0, settings.languages, task)


def n_requests(settings: Settings) -> tuple[int, int]:
    """Requests of the two steps if no reply is rejected and no task comes twice."""
    brainstorms = 0
    for name, count in settings.counts.items():
        if KINDS[name].brainstormed:
            tasks = -(-count // settings.examples_per_task)
            brainstorms += -(-tasks // settings.tasks_per_call)
    return brainstorms, sum(settings.counts.values())
