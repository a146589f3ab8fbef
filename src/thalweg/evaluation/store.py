"""Results of mteb on the disk: each whole or not at all, so that a run can end at any moment and go on later."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mteb
from mteb.results import TaskResult

from thalweg.storage.durable import move_durably, sync_file

log = logging.getLogger("thalweg")

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta


class Store(mteb.ResultCache):
    """mteb's cache in a folder, whose files appear at once.

    A result counts as long as its task's data are what they were; `tasks` says what they are now.
    """

    def __init__(self, folder: Path, tasks: list[AbsTask]) -> None:
        super().__init__(folder)
        self._revisions = {task.metadata.name: task.metadata.revision for task in tasks}

    def load_task_result(self, task_name: str, model_name: Any, *args: Any, **kwargs: Any) -> TaskResult | None:
        """What is stored for this model and task, None where it is nothing of use."""
        try:
            result = super().load_task_result(task_name, model_name, *args, **kwargs)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # Written by us, whole or not at all: something else has changed it since.
            log.warning("the stored result of %s is damaged (%s), so it is measured again", task_name, error)
            return None
        wanted = self._revisions.get(task_name)
        return None if result is None or (wanted and result.dataset_revision != wanted) else result

    def holds(self, task: AbsTask, meta: ModelMeta) -> bool:
        """Whether nothing of the task is left to do for the model."""
        result = self.load_task_result(task.metadata.name, meta)
        return result is not None and not result.get_missing_evaluations(task)

    def save_to_cache(
        self,
        task_result: TaskResult,
        model_name: str | ModelMeta,
        model_revision: str | None = None,
        *,
        encode_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Store a result."""
        whole = _Durable.model_construct(**dict(task_result))
        super().save_to_cache(whole, model_name, model_revision, encode_kwargs=encode_kwargs)


class _Durable(TaskResult):
    def to_disk(self, path: Path) -> None:
        fresh = path.with_name(f"{path.name}.tmp")
        super().to_disk(fresh)
        sync_file(fresh)
        move_durably(fresh, path)
