"""All models on all tasks; what is done is stored at once, and a run that was broken off goes on where it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import mteb

from thalweg.evaluation.lengths import score_by_length
from thalweg.evaluation.models import Contestant
from thalweg.evaluation.store import Store
from thalweg.integrations.mteb import ThalwegEncoder
from thalweg.storage.lock import hold

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.results import TaskResult
    from mteb.types import EncodeKwargs

log = logging.getLogger("thalweg")


@dataclass(frozen=True)
class Outcome:
    """What came of one model on one task: mteb's result, or why there is none."""

    model: str
    task: AbsTask
    result: TaskResult | None = None
    stored: bool = False
    error: str | None = None


def evaluate(
    contestants: Sequence[Contestant],
    tasks: Sequence[AbsTask],
    folder: Path,
    *,
    overwrite: bool = False,
    on_start: Callable[[Contestant, AbsTask], None] = lambda contestant, task: None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
    on_texts: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Evaluate models on tasks.

    Args:
        folder: of mteb's results. Those of an earlier run for the same model files, settings and data are taken over.
        overwrite: measure again instead.
        on_start, on_end: called before and after each task that a model takes.
        on_texts: called while a model of thalweg embeds, with the texts that are done and their number.

    Raises:
        CorpusError: another run is writing to the folder.

    A task that fails (its data cannot be had, say) is an outcome with an error, and the others go on.
    """
    outcomes = []
    with hold(folder):
        store = Store(folder, list(tasks))
        for contestant in contestants:
            mine = [task for task in tasks if contestant.takes(task)]
            model = contestant.load() if mine else None
            if isinstance(model, ThalwegEncoder):
                model.on_texts = on_texts
            for task in mine:
                on_start(contestant, task)
                outcomes.append(_evaluate_task(contestant, model, task, store, overwrite))
                on_end(outcomes[-1])
    return outcomes


def _evaluate_task(contestant: Contestant, model: Any, task: AbsTask, store: Store, overwrite: bool) -> Outcome:
    score_by_length(task)
    stored = not overwrite and store.holds(task, model.mteb_model_meta)
    try:
        results = mteb.evaluate(
            model,
            task,
            cache=store,
            co2_tracker=False,
            overwrite_strategy="always" if overwrite else "only-missing",
            show_progress_bar=False,
            encode_kwargs=cast("EncodeKwargs", {"show_progress_bar": False, **contestant.encode_kwargs}),
        )
    except Exception as error:  # data that cannot be had, or whatever else a task of mteb raises
        log.debug("%s on %s", contestant.label, task.metadata.name, exc_info=True)
        return Outcome(contestant.label, task, error=f"{type(error).__name__}: {error}")
    if results.exceptions:
        return Outcome(contestant.label, task, error=str(results.exceptions[0].exception))
    # As it is stored, and so the same in a run that goes on later.
    return Outcome(contestant.label, task, store.load_task_result(task.metadata.name, model.mteb_model_meta), stored)
