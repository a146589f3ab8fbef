"""What is told of a run while it goes: its log, and TensorBoard's events where that is installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from thalweg.storage.durable import write_durably
from thalweg.training.dev_scores import Evaluators, main_scores, metrics

LOG_FILE, EVENTS = "log.jsonl", "tensorboard"

Entry = dict[str, Any]
"""A line of the log: `step`, `epoch`, and either `loss`, `learning_rate`, `grad_norm`, `tokens` and `cut` (both until
then), or `dev`: the score of each dev set, and `metric`: what that is, such as nDCG@10."""


@dataclass(frozen=True)
class Status:
    """How far a run is.

    stage: "teacher", "train" or "write"; done of total: texts of the first, steps of the second; entry: just logged;
    notice: what a user should know before it starts.
    """

    stage: str
    done: int = 0
    total: int = 0
    entry: Entry | None = None
    notice: str | None = None


def entries(history: list[dict[str, Any]], evaluators: Evaluators) -> list[Entry]:
    """The log that a trainer's history holds."""
    kept = []
    metric = metrics(evaluators)
    for line in history:
        place = {"step": line["step"], "epoch": round(line["epoch"], 6)}
        scores = main_scores(evaluators, line)
        if "loss" in line:
            kept.append(place | {key: line[key] for key in ("loss", "learning_rate", "grad_norm", "tokens", "cut")})
        elif scores:
            kept.append(place | {"dev": scores, "metric": {name: metric[name] for name in scores}})
    return kept


class Follow(TrainerCallback):
    """Writes `log.jsonl` and tells how far the run is; for the first process."""

    def __init__(self, folder: Path, evaluators: Evaluators, on_status: Callable[[Status], None]) -> None:
        self._path = folder / LOG_FILE
        self._evaluators = evaluators
        self._on_status = on_status

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The log of a resumed run is that of its checkpoint: what came after is done again."""
        lines = entries(state.log_history, self._evaluators)
        write_durably(self._path, lambda stream: stream.writelines(map(_line, lines)))
        self._on_status(Status("train", state.global_step, state.max_steps))

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for entry in entries(state.log_history[-1:], self._evaluators):
            with self._path.open("ab") as stream:
                stream.write(_line(entry))
            self._on_status(Status("train", state.global_step, state.max_steps, entry))


def _line(entry: Entry) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def event_callbacks(folder: Path, first_step: int) -> list[TrainerCallback]:
    """transformers' callback for TensorBoard, where it is installed; events of steps done again are dropped."""
    if importlib.util.find_spec("tensorboard") is None:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    callback: Any = TensorBoardCallback
    return [callback(SummaryWriter(str(folder / EVENTS), purge_step=first_step))]
